"""Downloads models from a Hugging Face hub with the standard library alone.

The protocol is that of the public hub: ``GET {endpoint}/api/models/{id}/revision/{revision}`` lists the files of a
repository and names its commit, ``GET {endpoint}/{id}/resolve/{commit}/{file}`` gives a file. For large files the
server states their SHA-256 as the entity tag, which is checked. Files are kept by commit, so a second use asks for
nothing that is there already, and a download that was cut goes on where it stopped.

Environment: ``HF_ENDPOINT`` (a mirror), ``HF_TOKEN`` (private and gated models), ``HF_HUB_OFFLINE=1`` (use only what
was downloaded before), ``PROTLOOM_HUB_CACHE`` (where files are kept, if not with the other caches).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from protloom.caches import cache_folder
from protloom.errors import UserError
from protloom.files import locked, write_text

T = TypeVar("T")

ENDPOINT = "https://huggingface.co"
TIMEOUT = 30.0
ATTEMPTS = 5
CHUNK = 1 << 20
SHA256 = re.compile(r"[0-9a-f]{64}")
WANTED = ("protloom.json", "config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = (
    # in order of preference: the first kind that the repository has is taken, the others are left
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
)


class Progress(Protocol):
    """Told how far a download is."""

    def __call__(self, file: str, done: int, total: int | None) -> None:
        """Receives the bytes of ``file`` that are there, of ``total`` (None if the server does not say)."""


@dataclass(frozen=True)
class Settings:
    """Where to and how to download.

    Attributes:
        endpoint: address of the hub.
        token: sent to the endpoint's host alone, None for public models.
        offline: use only what was downloaded before.
        cache: folder of downloaded models.
        pause: seconds before the first retry; doubled each time.
    """

    endpoint: str
    token: str | None
    offline: bool
    cache: Path
    pause: float = 1.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Reads the settings from environment variables."""
        cache = environment.get("PROTLOOM_HUB_CACHE")
        return cls(
            endpoint=(environment.get("HF_ENDPOINT") or ENDPOINT).rstrip("/"),
            token=environment.get("HF_TOKEN") or None,
            offline=environment.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on"),
            cache=Path(cache).expanduser() if cache else cache_folder("hub", environment),
        )


def download(
    repository: str,
    *,
    revision: str = "main",
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Path:
    """Downloads the config, vocabulary and weights of a repository.

    Args:
        repository: ``org/name``.
        revision: branch, tag or commit.
        settings: by default those of the environment.
        progress: told how far it is; by default a line on stderr if that is a terminal.

    Returns:
        The folder that holds the files.

    Raises:
        UserError: if there is no such repository, access is denied, there is no network or a file arrives damaged.
    """
    settings = settings or Settings.of(os.environ)
    base = settings.cache / repository.replace("/", "--")
    pointer = base / f"{urllib.parse.quote(revision, safe='')}.revision"
    if settings.offline:
        return _cached(base, pointer, repository, revision)
    commit, files = _list(repository, revision, settings)
    folder = base / commit
    folder.mkdir(parents=True, exist_ok=True)
    with locked(base / ".lock"):  # the processes of one run all want the same files
        for name in _choose(files, repository):
            if not (folder / name).is_file():
                quoted = urllib.parse.quote(name)
                url = f"{settings.endpoint}/{repository}/resolve/{urllib.parse.quote(commit)}/{quoted}"
                _fetch(url, folder / name, settings, progress or _terminal_progress)
        # written last: only a complete folder is used offline
        write_text(pointer, commit)
    return folder


def _cached(base: Path, pointer: Path, repository: str, revision: str) -> Path:
    if pointer.is_file():
        folder = base / pointer.read_text(encoding="utf-8").strip()
        if folder.is_dir():
            return folder
    raise UserError(
        f"{repository} (revision {revision}) was not downloaded before and HF_HUB_OFFLINE is set: unset it, or name a"
        " folder with the files"
    )


def _choose(files: Iterable[str], repository: str) -> list[str]:
    """Returns which files of a repository are needed."""
    known = list(files)
    for pattern in WEIGHTS:
        weights = sorted(name for name in known if pattern.fullmatch(name))
        if weights:
            return [*(name for name in WANTED if name in known), *weights]
    raise UserError(f"{repository}: the repository holds no weights (model.safetensors or pytorch_model.bin)")


def _list(repository: str, revision: str, settings: Settings) -> tuple[str, list[str]]:
    """Asks for the commit that a revision means and its files."""
    quoted = urllib.parse.quote(revision, safe="")
    url = f"{settings.endpoint}/api/models/{repository}/revision/{quoted}"
    body = _retry(lambda: _get(url, settings), url, settings)
    try:
        answer: Any = json.loads(body)
        commit, names = answer["sha"], [entry["rfilename"] for entry in answer["siblings"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url}: not the answer of a Hugging Face hub; check HF_ENDPOINT") from None
    if not re.fullmatch(r"\w[\w.-]*", str(commit)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{url}: not the answer of a Hugging Face hub; check HF_ENDPOINT")
    return commit, names


def _get(url: str, settings: Settings) -> bytes:
    with _open(url, settings, {}) as response:
        content: bytes = response.read()
        return content


# ------------------------------------------------------------------------------------------------------- one file


def _fetch(url: str, target: Path, settings: Settings, progress: Progress) -> None:
    """Downloads a file beside its place, going on with an earlier part, checks it and renames it."""
    part = target.with_name(f"{target.name}.part")
    headers = _retry(lambda: _transfer(url, part, settings, progress), url, settings)
    _check(headers, part, target.name)
    part.replace(target)


def _transfer(url: str, part: Path, settings: Settings, progress: Progress) -> Message:
    """Writes what is missing of ``part``; returns the headers that describe the whole file.

    Raises:
        OSError: if the connection fails or ends early, which a further attempt may mend.
    """
    tag_file = part.with_name(f"{part.name}.etag")
    have = part.stat().st_size if part.exists() else 0
    wanted = {"Range": f"bytes={have}-"} if have else {}
    try:
        response = _open(url, settings, wanted)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        part.unlink()  # longer than the file that the server has: start again
        raise ConnectionError("the file on the server has changed") from None
    with response:
        headers: Message = response.headers
        tag = _tag(headers)
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT and have > 0
        if resumed and tag is not None and tag_file.is_file() and tag_file.read_text(encoding="utf-8") != tag:
            part.unlink()
            raise ConnectionError("the file on the server has changed")
        start = have if resumed else 0
        length = headers.get("Content-Length")
        total = None if length is None else start + int(length)
        if tag is not None:
            write_text(tag_file, tag)
        done = start
        with part.open("ab" if resumed else "wb") as out:
            while block := response.read(CHUNK):
                out.write(block)
                done += len(block)
                progress(part.name.removesuffix(".part"), done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")
    tag_file.unlink(missing_ok=True)
    return headers


def _tag(headers: Message) -> str | None:
    tag = headers.get("X-Linked-Etag") or headers.get("ETag")
    return None if tag is None else tag.removeprefix("W/").strip('"')


def _check(headers: Message, part: Path, name: str) -> None:
    """Compares size and, where the server states it, SHA-256; removes a file that is wrong."""
    size, tag = headers.get("X-Linked-Size"), _tag(headers)
    found = part.stat().st_size
    problem = None
    if size is not None and int(size) != found:
        problem = f"has {found:,} bytes, the server says {int(size):,}"
    elif tag is not None and SHA256.fullmatch(tag):
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != tag:
                problem = "does not have the SHA-256 that the server states"
    if problem is not None:
        part.unlink()
        raise UserError(f"{name} {problem}: the download was damaged and has been removed; try again")


# ------------------------------------------------------------------------------------------------------ connection


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the storage servers: keeps what the hub said of the file, and the token away from others."""

    def __init__(self) -> None:
        self.stated: dict[str, str] = {}

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Makes the request for the new place."""
        for key in ("X-Linked-Etag", "X-Linked-Size"):
            if key in headers:
                self.stated[key] = headers[key]
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


def _open(url: str, settings: Settings, headers: Mapping[str, str]) -> Any:
    # no compression: Range and Content-Length then count the bytes of the file
    request = urllib.request.Request(url, headers={**headers, "User-Agent": "protloom", "Accept-Encoding": "identity"})
    if settings.token:
        request.add_header("Authorization", f"Bearer {settings.token}")
    redirects = _Redirects()
    response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    for key, value in redirects.stated.items():
        if key not in response.headers:
            response.headers[key] = value
    return response


def _retry(action: Callable[[], T], url: str, settings: Settings) -> T:
    """Runs an action again after failures that may pass; every other one becomes a UserError."""
    pause = settings.pause
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except urllib.error.HTTPError as error:
            passing = error.code == http.HTTPStatus.TOO_MANY_REQUESTS or error.code >= 500
            if not passing or attempt == ATTEMPTS:
                _explain_status(error, url)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == ATTEMPTS or _hopeless(error):
                reason = getattr(error, "reason", None) or error
                raise UserError(
                    f"{url}: cannot be reached ({reason}): check the network (HF_ENDPOINT names a mirror), or name a"
                    " folder with the files; what has arrived is kept"
                ) from None
        time.sleep(pause)
        pause *= 2
    raise AssertionError("unreachable")


def _hopeless(error: Exception) -> bool:
    """Tells failures that no second attempt mends: an unknown host, a refused connection, a bad certificate."""
    reason = getattr(error, "reason", error)
    return isinstance(error, urllib.error.URLError) and not isinstance(reason, TimeoutError | ConnectionResetError)


def _explain_status(error: urllib.error.HTTPError, url: str) -> NoReturn:
    if error.code in (401, 403):
        raise UserError(
            f"{url}: access denied ({error.code}): no such public model, or it asks for a token: set HF_TOKEN"
        ) from None
    if error.code == 404:
        raise UserError(f"{url}: not found (404): check the id (org/name) and the revision") from None
    raise UserError(f"{url}: the server answers {error.code} {error.reason}: try again later") from None


def _terminal_progress(file: str, done: int, total: int | None) -> None:
    if sys.stderr.isatty():
        share = f" of {total / 1e6:,.1f}" if total else ""
        end = "\n" if total is not None and done >= total else ""
        print(f"\r{file}: {done / 1e6:,.1f}{share} MB", end=end, file=sys.stderr, flush=True)
