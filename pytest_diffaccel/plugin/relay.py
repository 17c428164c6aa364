"""What xdist starts in place of a worker that runs elsewhere: it passes on what the two say to each other.

``python relay.py SOCKET ARGUMENT ...``: xdist speaks to the standard input and output of its workers; this program
joins them to a Unix socket of :class:`.ray_carrier.RayCarrier`, to which it first sends the arguments of the worker's
interpreter. It imports nothing beside the standard library: each one starts in no time.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading

_CHUNK = 1 << 16


def main() -> None:
    """Pass on until either side has ended.

    Ctrl-C is for the session, which then ends both sides; a terminal sends it to every process in front.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as carrier:
        carrier.connect(sys.argv[1])
        carrier.sendall(json.dumps(sys.argv[2:]).encode() + b"\n")
        threading.Thread(target=_from_xdist, args=(carrier,), daemon=True).start()
        while data := carrier.recv(_CHUNK):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _from_xdist(carrier: socket.socket) -> None:
    while data := os.read(sys.stdin.fileno(), _CHUNK):
        carrier.sendall(data)
    carrier.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
