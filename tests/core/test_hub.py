"""Downloads from a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from protloom import hub
from protloom.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """A repository ``org/tiny`` and what happened to it.

    Attributes:
        files: its content.
        cut_after: bytes after which the connection of a file ends, once each.
        wrong_hash: files whose stated SHA-256 is wrong.
        fail: status codes to answer with before the right one.
        requests: (path, Range, Authorization) of every request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    wrong_hash: set[str] = field(default_factory=set)
    fail: list[int] = field(default_factory=list)
    ranges: bool = True
    redirect: str | None = None
    token: str | None = None
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    address: str = ""

    def asked(self, name: str) -> list[str | None]:
        """Returns the Range header of each request for a file."""
        return [wanted for path, wanted, _ in self.requests if path.endswith(f"/{name}")]


class Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Keeps the test's output clean."""

    def do_GET(self) -> None:
        hub_ = self.hub
        hub_.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if hub_.fail:
            return self.answer(hub_.fail.pop(0), b"no")
        if hub_.token is not None and self.headers.get("Authorization") != f"Bearer {hub_.token}":
            return self.answer(401, b"who are you")
        if self.path == "/api/models/org/tiny/revision/main":
            siblings = [{"rfilename": name} for name in hub_.files]
            return self.answer(200, json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        prefix = f"/org/tiny/resolve/{COMMIT}/"
        name = self.path.removeprefix(prefix)
        if not self.path.startswith(prefix) or name not in hub_.files:
            return self.answer(404, b"nothing here")
        if hub_.redirect is not None:
            self.send_response(302)
            self.send_header("Location", f"{hub_.redirect}{self.path}")
            self.send_header("X-Linked-Etag", self.tag(name))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self.give(name)

    def tag(self, name: str) -> str:
        content = b"something else" if name in self.hub.wrong_hash else self.hub.files[name]
        return f'"{hashlib.sha256(content).hexdigest()}"'

    def give(self, name: str) -> None:
        content, start = self.hub.files[name], 0
        wanted = self.headers.get("Range")
        if wanted is not None and self.hub.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return self.answer(416, b"")
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Linked-Etag", self.tag(name))
        self.send_header("X-Linked-Size", str(len(content)))
        self.end_headers()
        cut = self.hub.cut_after.pop(name, None)
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(state: FakeHub) -> Iterator[FakeHub]:
    handler = type("Bound", (Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
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


WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    yield from serve(
        FakeHub({"config.json": b'{"model_type": "esm"}', "model.safetensors": WEIGHTS, "README.md": b"not needed"})
    )


@pytest.fixture
def storage() -> Iterator[FakeHub]:
    """A second server, where the hub keeps its large files."""
    yield from serve(FakeHub({"config.json": b'{"model_type": "esm"}', "model.safetensors": WEIGHTS}))


@pytest.fixture
def settings(fake: FakeHub, tmp_path: Path) -> hub.Settings:
    return hub.Settings(endpoint=fake.address, token=None, offline=False, cache=tmp_path / "cache", pause=0.0)


def test_downloads_what_is_needed_and_nothing_twice(fake: FakeHub, settings: hub.Settings) -> None:
    seen: list[tuple[str, int, int | None]] = []
    folder = hub.download("org/tiny", settings=settings, progress=lambda *at: seen.append(at))
    assert {p.name for p in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert seen[-1] == ("model.safetensors", len(WEIGHTS), len(WEIGHTS))
    before = len(fake.requests)
    assert hub.download("org/tiny", settings=settings) == folder
    assert len(fake.requests) == before + 1  # the list alone


def test_several_processes_download_once(fake: FakeHub, settings: hub.Settings) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: hub.download("org/tiny", settings=settings), range(4)))
    assert len(set(folders)) == 1
    assert (folders[0] / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.asked("model.safetensors") == [None]


def test_safetensors_are_preferred_to_pickles(fake: FakeHub, settings: hub.Settings) -> None:
    fake.files["pytorch_model.bin"] = b"pickled"
    folder = hub.download("org/tiny", settings=settings)
    assert not (folder / "pytorch_model.bin").exists()
    del fake.files["model.safetensors"]
    (folder / "model.safetensors").unlink()
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "pytorch_model.bin").read_bytes() == b"pickled"


def test_shards(fake: FakeHub, settings: hub.Settings) -> None:
    fake.files = {f"model-0000{i}-of-00002.safetensors": bytes([i]) for i in (1, 2)}
    fake.files |= {"model.safetensors.index.json": b"{}", "config.json": b"{}", "model-evil.safetensors": b"x"}
    folder = hub.download("org/tiny", settings=settings)
    assert {p.name for p in folder.iterdir()} == fake.files.keys() - {"model-evil.safetensors"}


def test_a_cut_connection_is_resumed(fake: FakeHub, settings: hub.Settings) -> None:
    fake.cut_after["model.safetensors"] = 300_000
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.asked("model.safetensors") == [None, "bytes=300000-"]
    assert not list(folder.glob("*.part*"))


def test_a_download_that_was_stopped_goes_on_later(
    fake: FakeHub, settings: hub.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "ATTEMPTS", 1)
    fake.cut_after["model.safetensors"] = 300_000
    with pytest.raises(UserError, match=r"300,000 of 1,024,000 bytes.*what has arrived is kept"):
        hub.download("org/tiny", settings=settings)
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.asked("model.safetensors")[-1] == "bytes=300000-"


def test_a_server_without_ranges_starts_again(fake: FakeHub, settings: hub.Settings) -> None:
    fake.ranges = False
    fake.cut_after["model.safetensors"] = 300_000
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_part_longer_than_the_file_is_dropped(fake: FakeHub, settings: hub.Settings) -> None:
    folder = settings.cache / "org--tiny" / COMMIT
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").write_bytes(WEIGHTS + b"more")
    assert hub.download("org/tiny", settings=settings) == folder
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("have", [b"", b"x" * 1000])
def test_a_wrong_hash_is_refused_and_removed(fake: FakeHub, settings: hub.Settings, have: bytes) -> None:
    folder = settings.cache / "org--tiny" / COMMIT
    folder.mkdir(parents=True)
    if have:  # an earlier part with other bytes: the whole then has the wrong hash
        (folder / "model.safetensors.part").write_bytes(have)
    else:
        fake.wrong_hash.add("model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors does not have the SHA-256"):
        hub.download("org/tiny", settings=settings)
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "model.safetensors.part").exists()


def test_a_busy_server_is_asked_again(fake: FakeHub, settings: hub.Settings) -> None:
    fake.fail = [503, 429]
    assert hub.download("org/tiny", settings=settings).is_dir()
    fake.fail = [503] * 20
    with pytest.raises(UserError, match="503"):
        hub.download("org/tiny", settings=settings)


def test_unknown_repository(settings: hub.Settings) -> None:
    with pytest.raises(UserError, match=r"not found \(404\).*org/name") as caught:
        hub.download("org/none", settings=settings)
    assert "\n" not in str(caught.value)


def test_repository_without_weights(fake: FakeHub, settings: hub.Settings) -> None:
    del fake.files["model.safetensors"]
    with pytest.raises(UserError, match="holds no weights"):
        hub.download("org/tiny", settings=settings)


def test_no_network(settings: hub.Settings, tmp_path: Path) -> None:
    nobody = hub.Settings("http://127.0.0.1:9", None, False, tmp_path, 0.0)
    with pytest.raises(UserError, match=r"cannot be reached .*HF_ENDPOINT"):
        hub.download("org/tiny", settings=nobody)


def test_something_that_is_no_hub(fake: FakeHub, settings: hub.Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_get", lambda *_: b"<html>hello</html>")
    with pytest.raises(UserError, match="not the answer of a Hugging Face hub"):
        hub.download("org/tiny", settings=settings)


def test_offline_uses_what_is_there(fake: FakeHub, settings: hub.Settings) -> None:
    away = hub.Settings(settings.endpoint, None, True, settings.cache, 0.0)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub.download("org/tiny", settings=away)
    assert fake.requests == []
    folder = hub.download("org/tiny", settings=settings)
    before = len(fake.requests)
    assert hub.download("org/tiny", settings=away) == folder
    assert len(fake.requests) == before


def test_token_goes_to_the_hub_but_not_to_its_storage(fake: FakeHub, storage: FakeHub, settings: hub.Settings) -> None:
    fake.token = "secret"
    with pytest.raises(UserError, match=r"access denied \(401\).*HF_TOKEN"):
        hub.download("org/tiny", settings=settings)
    fake.redirect = storage.address
    known = hub.Settings(settings.endpoint, "secret", False, settings.cache, 0.0)
    folder = hub.download("org/tiny", settings=known)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(storage.requests) == 2
    assert {authorization for *_, authorization in storage.requests} == {None}


def test_a_hash_stated_before_the_redirect_is_checked(
    fake: FakeHub, storage: FakeHub, settings: hub.Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.redirect = storage.address
    fake.wrong_hash.add("model.safetensors")
    # the storage server says nothing of its own
    monkeypatch.setattr(Handler, "give", lambda self, name: self.answer(200, self.hub.files[name]))
    with pytest.raises(UserError, match="SHA-256"):
        hub.download("org/tiny", settings=settings)


def test_settings_of_the_environment(tmp_path: Path) -> None:
    plain = hub.Settings.of({"XDG_CACHE_HOME": str(tmp_path)})
    assert (plain.endpoint, plain.token, plain.offline) == ("https://huggingface.co", None, False)
    assert plain.cache == tmp_path / "protloom" / "hub"
    stated = hub.Settings.of(
        {"HF_ENDPOINT": "https://mirror/", "HF_TOKEN": "t", "HF_HUB_OFFLINE": "1", "PROTLOOM_HUB_CACHE": str(tmp_path)}
    )
    assert stated == hub.Settings("https://mirror", "t", True, tmp_path)
