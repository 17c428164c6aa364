"""A hub on loopback: as much of its API as downloading a repository takes, serving folders of this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


class LocalHub:
    """Repositories that it serves, and what was asked of it.

    Attributes:
        url: for ``HF_ENDPOINT``.
        repositories: folder by repository, ``"owner/name"``.
        asked: path of every request, in order.
        cut: names of files of which only the first half is sent.
        gated: repositories that give their files to nobody: none has accepted their licence.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.repositories: dict[str, Path] = {}
        self.asked: list[str] = []
        self.cut: set[str] = set()
        self.gated: set[str] = set()

    @property
    def downloaded(self) -> set[str]:
        """Names of the files that were asked for, without their repositories."""
        return {path.partition(f"/resolve/{COMMIT}/")[2] for path in self.asked if f"/resolve/{COMMIT}/" in path}


def _files(folder: Path) -> list[dict[str, Any]]:
    """Every file as the hub lists it."""
    return [
        {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size, "oid": _etag(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve until the block is left, on 127.0.0.1 alone."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_content=False)

        def do_GET(self) -> None:
            self._answer(with_content=True)

        def _answer(self, *, with_content: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
            folder = hub.repositories.get(name)
            if folder is None:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            elif path.startswith("/api/models/") and "/tree/" in path:
                self._send(200, json.dumps(_files(folder)).encode(), {"Content-Type": "application/json"})
            elif path.startswith("/api/models/"):
                siblings = [{"rfilename": one["path"]} for one in _files(folder)]
                info = {"id": name, "sha": COMMIT, "private": False, "siblings": siblings, "tags": [], "downloads": 0}
                self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif name in hub.gated:
                self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            else:
                self._send_file(folder, path.split("/", 5)[-1], with_content=with_content)

        def _send_file(self, folder: Path, name: str, *, with_content: bool) -> None:
            file = folder / name
            if not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
                return
            content = file.read_bytes()
            headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": COMMIT}
            sent = content[: len(content) // 2] if name in hub.cut else content
            self._send(200, sent if with_content else b"", headers, length=len(content))
            self.close_connection = len(sent) < len(content)

        def _send(self, status: int, content: bytes, headers: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = LocalHub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
