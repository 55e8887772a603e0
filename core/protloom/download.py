"""Downloads files with the standard library: goes on where it stopped, checks what arrives, never harms what is there.

A file arrives as ``NAME.part`` beside its place and gets its name when its size and, where it is known, its SHA-256 are
right. Whatever ends a download (a lost connection, a full disk, a kill), the part stays, and the next attempt asks the
server for the rest (``Range``, with ``If-Range`` where the server gave an entity tag); a server that does not know
ranges sends everything again.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn

from protloom.errors import UserError
from protloom.files import write_text

CHUNK = 1 << 18
"""Bytes read at once."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""


@dataclass(frozen=True)
class Patience:
    """How failures that may pass are met.

    Attributes:
        attempts: in a row that bring no byte; one that brings some begins a new row.
        pause: seconds before the second attempt, doubled each time.
    """

    attempts: int = 5
    pause: float = 1.0


class _Passing(Exception):
    """A failure that a further attempt may mend."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
    patience: Patience | None = None,
) -> Path:
    """Downloads a file unless it is there.

    Args:
        url: where it is.
        target: where it goes; its folder must exist.
        sha256: that it must have, None where it is not known.
        size: bytes that it must have, None where it is not known.
        progress: told the bytes that are there and the bytes of the whole file, None where nobody knows.
        patience: with failures that may pass.

    Returns:
        ``target``.

    Raises:
        UserError: the server has no such file or cannot be reached, the file is another one than it should be, or it
            cannot be written; a file that was there is unchanged.
    """
    if target.is_file():
        return target
    if not url.startswith(("https://", "http://")):
        raise UserError(f"{url}: not an address of a web server (https://...)")
    part = target.with_name(f"{target.name}.part")
    kept = part.is_file()
    try:
        _fetch(url, part, size, progress, patience or Patience())
        problem = _problem(part, sha256, size)
        if problem is not None and kept:
            # the earlier part was of another file: once more from the start
            _forget(part)
            _fetch(url, part, size, progress, patience or Patience())
            problem = _problem(part, sha256, size)
        if problem is not None:
            _forget(part)
            raise UserError(
                f"{url}: what arrived {problem}; it was removed: the file was changed or damaged on its way"
            )
        part.replace(target)
        _tag_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror or error}; what has arrived is kept, the same command goes on"
        ) from error
    return target


def _problem(part: Path, sha256: str | None, size: int | None) -> str | None:
    """Returns what is wrong with a file that arrived, None if nothing is."""
    found = part.stat().st_size
    if size is not None and found != size:
        return f"has {found:,} bytes, not {size:,}"
    if sha256 is not None:
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            return f"has the SHA-256 {digest[:12]}…, not {sha256[:12]}…"
    return None


def _fetch(
    url: str, part: Path, size: int | None, progress: Callable[[int, int | None], None], patience: Patience
) -> None:
    """Brings a part to its full length."""
    failures = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        if size is not None and before == size:
            return  # whole when something ended the last attempt; its hash is yet to be looked at
        try:
            _transfer(url, part, before, progress)
            return
        except _Passing as error:
            after = part.stat().st_size if part.is_file() else 0
            failures = 1 if after > before else failures + 1
            if failures >= patience.attempts:
                raise UserError(f"{url}: {error}; what has arrived is kept, the same command goes on") from None
        time.sleep(patience.pause * 2 ** (failures - 1))


def _transfer(url: str, part: Path, have: int, progress: Callable[[int, int | None], None]) -> None:
    """Asks once for what is missing and writes it.

    Raises:
        _Passing: the connection fails or ends early.
        UserError: a further attempt would fail too.
    """
    with _open(url, part, have) as response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        if resumed and _range_start(response.headers) != have:
            raise _Passing("the server sent another range than was asked for")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        tag = response.headers.get("ETag")
        if tag is not None and not tag.startswith("W/"):  # a weak tag does not promise the same bytes
            write_text(_tag_file(part), tag)
        elif not resumed:
            _tag_file(part).unlink(missing_ok=True)
        done = start
        with part.open("ab" if resumed else "wb") as file:
            while block := _read(response):
                file.write(block)
                done += len(block)
                progress(done, total)
    if total is not None and done < total:
        raise _Passing(f"the connection ended after {done:,} of {total:,} bytes")


def _open(url: str, part: Path, have: int) -> Any:
    """Sends the request; returns the response."""
    headers = {"User-Agent": "protloom", "Accept-Encoding": "identity"}  # not compressed: ranges count its bytes
    if have:
        headers["Range"] = f"bytes={have}-"
        if _tag_file(part).is_file():
            headers["If-Range"] = _tag_file(part).read_text(encoding="utf-8")
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except ValueError as error:
        raise UserError(f"{url}: not an address of a web server ({error})") from None
    except urllib.error.HTTPError as error:
        _explain(error, url, part, have)
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError | ConnectionError):
            raise _Passing(f"cannot be reached ({error.reason})") from None
        raise UserError(f"{url}: cannot be reached ({error.reason}): check the network, or --url-base") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Passing(f"cannot be reached ({error})") from None


def _explain(error: urllib.error.HTTPError, url: str, part: Path, have: int) -> NoReturn:
    """Raises what an answer other than the file means."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
        _forget(part)  # as long as the file or longer: start again
        raise _Passing("the part that was there does not fit the file")
    if error.code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT) or error.code >= 500:
        raise _Passing(f"the server answers {error.code} {error.reason}")
    what = {
        404: "there is no such file (404): its repository may have moved",
        403: "access is denied (403)",
        401: "access is denied (401)",
    }.get(error.code, f"the server answers {error.code} {error.reason}")
    raise UserError(f"{url}: {what}") from None


def _read(response: Any) -> bytes:
    try:
        block: bytes = response.read(CHUNK)
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Passing(f"the connection ended ({error or type(error).__name__})") from None
    return block


def _range_start(headers: Any) -> int | None:
    """Returns the first byte of ``Content-Range: bytes 5-9/10``."""
    unit, _, rest = str(headers.get("Content-Range", "")).partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)
