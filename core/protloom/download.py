"""Downloads files with the standard library: goes on where it stopped, checks what arrives, never harms what is there.

A file arrives as ``NAME.part`` beside its place and gets its name when its size and, where it is known, its SHA-256 are
right. Whatever ends a download (a lost connection, a full disk, a kill), the part stays, and the next attempt asks the
server for the rest (``Range``, with ``If-Range`` where the server gave an entity tag); a server that does not know
ranges sends everything again. A part that does not fit what the server sends is dropped, once, and the file begun anew.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from protloom.errors import UserError
from protloom.files import write_text

T = TypeVar("T")
Progress = Callable[[int, int | None], None]

CHUNK = 1 << 18
"""Bytes read at once."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection is given up."""
REFUSALS = {
    404: "there is no such file (404): its repository may have moved",
    403: "access is denied (403)",
    401: "access is denied (401)",
}


@dataclass(frozen=True)
class Patience:
    """How failures that may pass are met.

    Attributes:
        attempts: in a row that bring no byte; one that brings some begins a new row.
        pause: seconds before the second attempt, doubled each time.
    """

    attempts: int = 5
    pause: float = 1.0


@dataclass(frozen=True)
class Access:
    """How a server is asked, and what to tell where it refuses.

    Attributes:
        headers: sent to the host of the address, such as a token; another host that it redirects to is not given them.
        refusals: status code -> what it means here and what to do.
        advice: what to do where no server answers.
    """

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    refusals: Mapping[int, str] = field(default_factory=dict)
    advice: str = "check the network, or --url-base"


@dataclass(frozen=True)
class Expected:
    """What a file must be.

    Attributes:
        sha256: its hash in hexadecimal, None where it is not known.
        size: its bytes, None where they are not known.
    """

    sha256: str | None = None
    size: int | None = None


class _Passing(Exception):
    """A failure that a further attempt may mend."""


class _Unfit(Exception):
    """The part that is there does not go together with what the server sends."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    stated: Callable[[Sequence[Message]], Expected] = lambda answers: Expected(),
    access: Access | None = None,
    progress: Progress = lambda done, total: None,
    patience: Patience | None = None,
) -> Path:
    """Downloads a file unless it is there.

    Args:
        url: where it is.
        target: where it goes; its folder must exist.
        sha256: that it must have, None where it is not known.
        size: bytes that it must have, None where it is not known.
        stated: tells the same from the headers of the server's answers, of which all but the last are redirects.
        access: how the server is asked.
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
    part = target.with_name(f"{target.name}.part")
    kept = part.is_file()

    def fetch() -> str | None:
        answers = _fetch(url, part, size, access or Access(), progress, patience or Patience())
        said = stated(answers) if answers else Expected()
        return _problem(part, Expected(sha256 or said.sha256, said.size if size is None else size))

    try:
        problem = fetch()
        if problem is not None and kept:
            # the earlier part was of another file: once more from the start
            _forget(part)
            problem = fetch()
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


def read(url: str, *, access: Access | None = None, patience: Patience | None = None) -> bytes:
    """Returns what a server answers: for short documents, which are kept in memory alone.

    Args:
        url: where it is.
        access: how the server is asked.
        patience: with failures that may pass.

    Raises:
        UserError: the server has no such document or cannot be reached.
    """

    def attempt() -> bytes:
        response, _ = _open(url, access or Access(), {})
        with response:
            return _read(response, None)

    return _persist(attempt, lambda: 0, url, patience or Patience())


# ----------------------------------------------------------------------------------------------------------- one file


def _problem(part: Path, expected: Expected) -> str | None:
    """Returns what is wrong with a file that arrived, None if nothing is."""
    found = part.stat().st_size
    if expected.size is not None and found != expected.size:
        return f"has {found:,} bytes, not {expected.size:,}"
    if expected.sha256 is not None:
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != expected.sha256:
            return f"has the SHA-256 {digest[:12]}…, not {expected.sha256[:12]}…"
    return None


def _fetch(
    url: str, part: Path, size: int | None, access: Access, progress: Progress, patience: Patience
) -> Sequence[Message]:
    """Brings a part to its full length; returns the headers of the last answers, none if nothing had to be asked."""

    def attempt() -> Sequence[Message]:
        if size is not None and _length(part) == size:
            return ()  # whole when something ended the last attempt; its hash is yet to be looked at
        return _transfer(url, part, access, progress)

    try:
        return _persist(attempt, lambda: _length(part), url, patience)
    except _Unfit:
        _forget(part)
    try:
        return _persist(attempt, lambda: _length(part), url, patience)
    except _Unfit as error:
        raise UserError(f"{url}: {error}, also when it was begun anew: {access.advice}") from None


def _persist(attempt: Callable[[], T], arrived: Callable[[], int], url: str, patience: Patience) -> T:
    """Repeats an attempt after failures that may pass.

    Args:
        attempt: raises :class:`_Passing` for these.
        arrived: tells how many bytes are there.
        url: what is asked for, for the error.
        patience: how often, and after what pauses.
    """
    failures = furthest = 0
    while True:
        try:
            return attempt()
        except _Passing as error:
            here = arrived()
            # beyond where it was ever: one that begins at the start again and again does not go on for ever
            failures = 1 if here > furthest else failures + 1
            furthest = max(furthest, here)
            if failures >= patience.attempts:
                hope = "what has arrived is kept, the same command goes on" if here else "try again later"
                raise UserError(f"{url}: {error}; {hope}") from None
        time.sleep(patience.pause * 2 ** (failures - 1))


def _transfer(url: str, part: Path, access: Access, progress: Progress) -> Sequence[Message]:
    """Asks once for what is missing and writes it; returns the headers of the answers.

    Raises:
        _Passing: the connection fails or ends early.
        _Unfit: what is there cannot be continued.
        UserError: a further attempt would fail too.
    """
    have = _length(part)
    response, answers = _open(url, access, _rest(part, have))
    with response:
        headers = answers[-1]
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        if resumed and _range_start(headers) != have:
            raise _Unfit("the server sent another range than was asked for")
        start = have if resumed else 0
        length = headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdigit() else None
        done = start
        with part.open("ab" if resumed else "wb") as file:
            if not resumed:  # after the earlier bytes are gone, which this tag is not for
                _note_tag(part, headers.get("ETag"))
            while block := _read(response, CHUNK):
                file.write(block)
                done += len(block)
                progress(done, total)
    if total is not None and done < total:
        raise _Passing(f"the connection ended after {done:,} of {total:,} bytes")
    return answers


def _rest(part: Path, have: int) -> dict[str, str]:
    """Returns the headers that ask for what a part lacks."""
    if not have:
        return {}
    tag = _tag_file(part)
    condition = {"If-Range": tag.read_text(encoding="utf-8")} if tag.is_file() else {}
    return {"Range": f"bytes={have}-", **condition}


def _range_start(headers: Message) -> int | None:
    """Returns the first byte of ``Content-Range: bytes 5-9/10``."""
    unit, _, rest = str(headers.get("Content-Range", "")).partition(" ")
    start = rest.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else None


def _length(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _tag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _note_tag(part: Path, tag: str | None) -> None:
    if tag is None or tag.startswith("W/"):  # a weak tag does not promise the same bytes
        _tag_file(part).unlink(missing_ok=True)
    else:
        write_text(_tag_file(part), tag)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_file(part).unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------------ connection


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects: keeps their headers, and what is for the first host away from others.

    Args:
        private: names of headers.
    """

    def __init__(self, private: Mapping[str, str]) -> None:
        self._private = [name.capitalize() for name in private]  # as urllib keeps them
        self.answers: list[Message] = []

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: http.client.HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """Makes the request for the new place."""
        self.answers.append(headers)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and not _same_host(req.full_url, newurl):
            for name in self._private:
                request.remove_header(name)
        return request


def _same_host(old: str, new: str) -> bool:
    """Tells whether a redirect stays with a host, on a connection that is no less secret."""
    before, after = urlsplit(old), urlsplit(new)
    return before.netloc.lower() == after.netloc.lower() and after.scheme in (before.scheme, "https")


def _open(url: str, access: Access, wanted: Mapping[str, str]) -> tuple[Any, Sequence[Message]]:
    """Sends a request.

    Args:
        url: where to.
        access: what goes with it.
        wanted: further headers, for every host.

    Returns:
        The response, and the headers of all answers on the way to it, its own last.
    """
    if not url.startswith(("https://", "http://")):
        raise UserError(f"{url}: not an address of a web server (https://...)")
    # not compressed: ranges count the bytes of the file
    headers = {**access.headers, "User-Agent": "protloom", "Accept-Encoding": "identity", **wanted}
    redirects = _Redirects(access.headers)
    try:
        request = urllib.request.Request(url, headers=headers)
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        _explain(error, url, access, ranged="Range" in wanted)
    except urllib.error.URLError as error:
        told = f"cannot be reached ({error.reason}): {access.advice}"
        if isinstance(error.reason, TimeoutError | ConnectionError):
            raise _Passing(told) from None
        raise UserError(f"{url}: {told}") from None
    except (http.client.InvalidURL, ValueError):
        # not the text of the error, which may be that of a header
        raise UserError(f"{url}: not an address of a web server, or a token that cannot be sent") from None
    except (http.client.HTTPException, OSError) as error:
        raise _Passing(f"cannot be reached ({error or type(error).__name__}): {access.advice}") from None
    return response, [*redirects.answers, response.headers]


def _explain(error: urllib.error.HTTPError, url: str, access: Access, *, ranged: bool) -> NoReturn:
    """Raises what an answer other than the file means."""
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and ranged:
        raise _Unfit("the server has no bytes beyond those that are there") from None  # the file, or a shorter one
    if error.code in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.REQUEST_TIMEOUT) or error.code >= 500:
        raise _Passing(f"the server answers {error.code} {error.reason}") from None
    told = access.refusals.get(error.code) or REFUSALS.get(error.code)
    raise UserError(f"{url}: {told or f'the server answers {error.code} {error.reason}'}") from None


def _read(response: Any, size: int | None) -> bytes:
    """Returns the next bytes of an answer, all where ``size`` is None."""
    try:
        block: bytes = response.read(size)
    except (http.client.HTTPException, OSError) as error:
        raise _Passing(f"the connection ended ({error or type(error).__name__})") from None
    return block
