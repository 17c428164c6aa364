"""Messages between the judge, the fork server and a script's process: JSON and bytes, framed; nothing is executed."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_FRAME = struct.Struct(">II")
# Beyond these a message is no message of ours: some images of 1024 x 1024 pixels fit.
_LONGEST_HEADER = 2**20
_LONGEST_BODY = 2**28
_CHUNK = 2**20
_IDLE_S = 0.25


class ChannelClosed(Exception):
    """The other side is gone."""


class ChannelError(Exception):
    """The other side sent what is no message."""


@dataclass(frozen=True)
class Message:
    """One message.

    Attributes:
        header: a JSON object; of a script's process it is a claim, to be checked.
        body: raw bytes.
    """

    header: Mapping[str, Any]
    body: bytes = b""


class Channel:
    """One end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, header: Mapping[str, Any], body: bytes = b"") -> None:
        """Send one message.

        Raises:
            ChannelClosed: when the other side is gone.
        """
        text = json.dumps(header).encode()
        try:
            self._end.sendall(_FRAME.pack(len(text), len(body)) + text + body)
        except OSError as error:
            raise ChannelClosed(str(error)) from error

    def receive(self, timeout_s: float | None = None, idle: Callable[[], None] | None = None) -> Message:
        """Wait for one whole message.

        Args:
            timeout_s: for all of it, however slowly it trickles in; None waits for ever.
            idle: called a few times a second while nothing comes; what it raises ends the wait.

        Raises:
            TimeoutError: when it is not there in time.
            ChannelClosed: when the other side is gone.
            ChannelError: when it is too long or not JSON.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        header_length, body_length = _FRAME.unpack(self._read(_FRAME.size, deadline, idle))
        if header_length > _LONGEST_HEADER or body_length > _LONGEST_BODY:
            raise ChannelError(f"a message of {header_length} + {body_length} bytes")
        text, body = self._read(header_length, deadline, idle), self._read(body_length, deadline, idle)
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ChannelError(f"not JSON: {error}") from error
        if not isinstance(header, dict):
            raise ChannelError("a message whose header is no object")
        return Message(header, body)

    def _read(self, length: int, deadline: float | None, idle: Callable[[], None] | None) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            self._end.settimeout(left if idle is None else min(_IDLE_S, left or _IDLE_S))
            try:
                part = self._end.recv(min(_CHUNK, length - len(parts)))
            except TimeoutError:
                if idle is not None:
                    idle()
                continue
            except OSError as error:
                raise ChannelClosed(str(error)) from error
            if not part:
                raise ChannelClosed("end of stream")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        """Close this end."""
        self._end.close()
