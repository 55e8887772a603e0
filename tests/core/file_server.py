"""A web server on this machine that gives files, whole or in ranges, and does what a test wants to go wrong."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, TypeVar


class Request(NamedTuple):
    """What was asked: the path, and headers."""

    path: str
    range: str | None
    if_range: str | None
    authorization: str | None


@dataclass
class FileServer:
    """What the server has and what happened to it.

    Subclasses say under which paths the files are, what else there is, and what more is stated of a file.

    Attributes:
        files: name -> content; a name is a path, unless :meth:`name` says otherwise.
        cuts: name -> numbers of bytes after which the connection ends, one for each request.
        fail: status codes to answer with before the right one.
        moved: name -> address that the server redirects to.
        token: that every request must bring, None for none.
        ranges: knows ``Range``.
        shift: bytes by which a range begins later than was asked for.
        tags: sends entity tags, and honours ``If-Range``.
        lengths: states ``Content-Length``.
        requests: every one, in order.
        address: where it is.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    fail: list[int] = field(default_factory=list)
    moved: dict[str, str] = field(default_factory=dict)
    token: str | None = None
    ranges: bool = True
    shift: int = 0
    tags: bool = True
    lengths: bool = True
    requests: list[Request] = field(default_factory=list)
    address: str = ""

    def name(self, path: str) -> str:
        """Returns the name of the file that a path means."""
        return path

    def document(self, path: str) -> bytes | None:
        """Returns what is at a path that is no file's, None where nothing is."""
        return None

    def stated(self, name: str) -> Mapping[str, str]:
        """Returns headers that are sent of a file besides the usual ones, also with a redirect."""
        return {}

    def asked(self, name: str | None = None) -> list[str | None]:
        """Returns the Range header of each request, or of those for one file."""
        return [request.range for request in self.requests if name is None or self.name(request.path) == name]


class _Handler(BaseHTTPRequestHandler):
    served: FileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        state = self.served
        headers = (self.headers.get(key) for key in ("Range", "If-Range", "Authorization"))
        state.requests.append(Request(self.path, *headers))
        name, document = state.name(self.path), state.document(self.path)
        if state.fail:
            self._answer(state.fail.pop(0))
        elif state.token is not None and self.headers.get("Authorization") != f"Bearer {state.token}":
            self._answer(401)
        elif document is not None:
            self._answer(200, document)
        elif name in state.moved:
            self._answer(302, Location=state.moved[name], **state.stated(name))
        elif name in state.files:
            self._give(name)
        else:
            self._answer(404)

    def _give(self, name: str) -> None:
        """Sends a file or the rest of one, as far as the test lets it."""
        state, content = self.served, self.served.files[name]
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
        for key, value in state.stated(name).items():
            self.send_header(key, value)
        self.end_headers()
        cuts = state.cuts.get(name)
        if not cuts:
            self.wfile.write(body)
            self.close_connection = not state.lengths
            return None
        self.wfile.write(body[: cuts.pop(0)])
        self.wfile.flush()
        self.close_connection = True
        return self.connection.close()

    def _start(self, tag: str) -> int | None:
        """Returns the first byte to send, None for the whole file."""
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted is None or not self.served.ranges or (condition is not None and condition != tag):
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-")) + self.served.shift

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


Server = TypeVar("Server", bound=FileServer)


@contextmanager
def serve(state: Server) -> Iterator[Server]:
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
