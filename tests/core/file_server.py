"""A web server on this machine that gives files, whole or in ranges, and does what a test wants to go wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """What the server has and what happened to it.

    Attributes:
        files: path -> content.
        cuts: path -> numbers of bytes after which the connection ends, one for each request.
        fail: status codes to answer with before the right one.
        ranges: knows ``Range``.
        tags: sends entity tags, and honours ``If-Range``.
        lengths: states ``Content-Length``.
        requests: (path, Range, If-Range) of every request.
        address: where it is.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    fail: list[int] = field(default_factory=list)
    ranges: bool = True
    tags: bool = True
    lengths: bool = True
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    address: str = ""

    def asked(self) -> list[str | None]:
        """Returns the Range header of each request."""
        return [wanted for _, wanted, _ in self.requests]


class _Handler(BaseHTTPRequestHandler):
    served: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        state = self.served
        state.requests.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if state.fail:
            return self._answer(state.fail.pop(0))
        if self.path not in state.files:
            return self._answer(404)
        content = state.files[self.path]
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        start = self._start(tag)
        if start is not None and start >= len(content):
            return self._answer(416)
        body = content[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if state.tags:
            self.send_header("ETag", tag)
        if state.lengths:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        cuts = state.cuts.get(self.path)
        if not cuts:
            self.wfile.write(body)
            self.close_connection = not state.lengths
            return None
        self.wfile.write(body[: cuts.pop(0)])
        self.wfile.flush()
        self.close_connection = True
        return self.connection.close()

    def _start(self, tag: str) -> int | None:
        """Returns the first byte asked for, None for the whole file."""
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted is None or not self.served.ranges or (condition is not None and condition != tag):
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(state: FileServer) -> Iterator[FileServer]:
    """Runs the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"served": state}))
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a cut connection is what a test wants
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
