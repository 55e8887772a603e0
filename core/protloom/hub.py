"""Downloads models from a Hugging Face hub with the standard library alone.

The protocol is that of the public hub: ``GET {endpoint}/api/models/{id}/revision/{revision}`` lists the files of a
repository and names its commit, ``GET {endpoint}/{id}/resolve/{commit}/{file}`` gives a file. For large files the
server states their SHA-256 as the entity tag, which is checked. Files are kept by commit, so a second use asks for
nothing that is there already, and a download that was cut goes on where it stopped (:mod:`protloom.download`).

Environment: ``HF_ENDPOINT`` (a mirror), ``HF_TOKEN`` (private and gated models), ``HF_HUB_OFFLINE=1`` (use only what
was downloaded before), ``PROTLOOM_HUB_CACHE`` (where files are kept, if not with the other caches).
"""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, Protocol

from protloom.caches import cache_folder
from protloom.download import Access, Expected, Patience, read
from protloom.download import download as download_file
from protloom.errors import UserError
from protloom.files import locked, write_text

ENDPOINT = "https://huggingface.co"
SHA256 = re.compile(r"[0-9a-f]{64}")
WANTED = ("protloom.json", "config.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = (
    # in order of preference: the first kind that the repository has is taken, the others are left
    re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin(\.index\.json)?"),
)
ADVICE = "check the network (HF_ENDPOINT names a mirror), or name a folder with the files"
_DENIED = "access denied ({}): no such public model, or it asks for a token: set HF_TOKEN"
REFUSALS = {
    401: _DENIED.format(401),
    403: _DENIED.format(403),
    404: "not found (404): check the id (org/name) and the revision",
}


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
        patience: with failures that may pass.
    """

    endpoint: str
    token: str | None = field(repr=False)
    offline: bool
    cache: Path
    patience: Patience = field(default_factory=Patience)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Settings:
        """Reads the settings from environment variables."""
        cache = environment.get("PROTLOOM_HUB_CACHE")
        return cls(
            endpoint=(environment.get("HF_ENDPOINT") or ENDPOINT).rstrip("/"),
            token=environment.get("HF_TOKEN", "").strip() or None,
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
    body = read(url, access=_access(settings), patience=settings.patience)
    try:
        answer: Any = json.loads(body)
        commit, names = answer["sha"], [entry["rfilename"] for entry in answer["siblings"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{url}: not the answer of a Hugging Face hub; check HF_ENDPOINT") from None
    if not re.fullmatch(r"\w[\w.-]*", str(commit)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{url}: not the answer of a Hugging Face hub; check HF_ENDPOINT")
    return commit, names


# ------------------------------------------------------------------------------------------------------- one file


def _fetch(url: str, target: Path, settings: Settings, progress: Progress) -> None:
    """Downloads a file and checks it against what the hub says of it."""
    download_file(
        url,
        target,
        stated=_stated,
        access=_access(settings),
        progress=lambda done, total: progress(target.name, done, total),
        patience=settings.patience,
    )


def _access(settings: Settings) -> Access:
    """Returns how the hub is asked; its storage servers, to which it redirects, are not shown the token."""
    return Access({"Authorization": f"Bearer {settings.token}"} if settings.token else {}, REFUSALS, ADVICE)


def _stated(answers: Sequence[Message]) -> Expected:
    """Returns what the hub says of a file, also where it redirects to a storage server that says nothing."""
    size = _last(answers, "X-Linked-Size")
    tag = _last(answers, "X-Linked-Etag") or _last(answers[-1:], "ETag") or ""
    sha256 = tag.removeprefix("W/").strip('"')
    return Expected(sha256 if SHA256.fullmatch(sha256) else None, int(size) if size and size.isdigit() else None)


def _last(answers: Sequence[Message], name: str) -> str | None:
    return next((answer[name] for answer in reversed(answers) if name in answer), None)


def _terminal_progress(file: str, done: int, total: int | None) -> None:
    if sys.stderr.isatty():
        share = f" of {total / 1e6:,.1f}" if total else ""
        end = "\n" if total is not None and done >= total else ""
        print(f"\r{file}: {done / 1e6:,.1f}{share} MB", end=end, file=sys.stderr, flush=True)
