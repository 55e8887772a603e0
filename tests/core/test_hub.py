"""Downloads from a local server that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from file_server import FileServer, serve

from protloom import hub
from protloom.download import Patience
from protloom.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = f"/org/tiny/resolve/{COMMIT}/"
WEIGHTS = bytes(range(256)) * 4000
CONFIG = b'{"model_type": "esm"}'


@dataclass
class FakeHub(FileServer):
    """A repository ``org/tiny``; the names of its files are those in the repository.

    Attributes:
        wrong_hash: files whose stated SHA-256 is wrong.
        listing: the answer to who asks for the files, None for the right one.
    """

    wrong_hash: set[str] = field(default_factory=set)
    listing: bytes | None = None

    def name(self, path: str) -> str:
        return path.removeprefix(FILES)

    def document(self, path: str) -> bytes | None:
        if path != "/api/models/org/tiny/revision/main":
            return None
        siblings = [{"rfilename": name} for name in self.files]
        return self.listing or json.dumps({"sha": COMMIT, "siblings": siblings}).encode()

    def stated(self, name: str) -> Mapping[str, str]:
        content = b"something else" if name in self.wrong_hash else self.files[name]
        return {
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Linked-Size": str(len(self.files[name])),
        }

    def keep_files_at(self, storage: FileServer) -> None:
        """Lets another server have the content, as the hub does."""
        storage.files = {FILES + name: content for name, content in self.files.items()}
        self.moved = {name: f"{storage.address}{FILES}{name}" for name in self.files}


@pytest.fixture
def fake() -> Iterator[FakeHub]:
    with serve(FakeHub({"config.json": CONFIG, "model.safetensors": WEIGHTS, "README.md": b"not needed"})) as state:
        yield state


@pytest.fixture
def storage() -> Iterator[FileServer]:
    """A second server, where the hub keeps its large files; it says nothing of them that the hub would."""
    with serve(FileServer()) as state:
        yield state


@pytest.fixture
def settings(fake: FakeHub, tmp_path: Path) -> hub.Settings:
    patience = Patience(pause=0.0)
    return hub.Settings(endpoint=fake.address, token=None, offline=False, cache=tmp_path / "cache", patience=patience)


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
    fake.cuts["model.safetensors"] = [300_000]
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.asked("model.safetensors") == [None, "bytes=300000-"]
    assert not list(folder.glob("*.part*"))


@pytest.mark.parametrize("elsewhere", [False, True])
def test_seven_cut_connections_are_resumed(
    elsewhere: bool, fake: FakeHub, storage: FileServer, settings: hub.Settings
) -> None:
    if elsewhere:
        fake.keep_files_at(storage)
    giver, name = (storage, f"{FILES}model.safetensors") if elsewhere else (fake, "model.safetensors")
    giver.cuts[name] = [50_000] * 7  # more than the attempts in a row that may bring nothing
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert giver.asked(name) == [None, *(f"bytes={n * 50_000}-" for n in range(1, 8))]
    # each under the condition that the file is still the one that its giver began to send
    given = [request.if_range for request in giver.requests if request.range is not None]
    assert given == [f'"{hashlib.sha256(WEIGHTS).hexdigest()[:8]}"'] * 7
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_file_that_changed_meanwhile_is_sent_whole(fake: FakeHub, settings: hub.Settings) -> None:
    fake.cuts["model.safetensors"] = [300_000]
    with pytest.raises(UserError, match="what has arrived is kept"):
        hub.download("org/tiny", settings=replace(settings, patience=Patience(attempts=1)))
    fake.files["model.safetensors"] = WEIGHTS[::-1]
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS[::-1]
    assert fake.asked("model.safetensors") == [None, "bytes=300000-"]


def test_a_range_with_another_start_is_not_taken(fake: FakeHub, settings: hub.Settings) -> None:
    fake.cuts["model.safetensors"] = [300_000]
    fake.shift = 256  # the content repeats itself so often: the bytes of the rest would look right
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.asked("model.safetensors") == [None, "bytes=300000-", None]


def test_a_download_that_was_stopped_goes_on_later(fake: FakeHub, settings: hub.Settings) -> None:
    fake.cuts["model.safetensors"] = [300_000]
    with pytest.raises(UserError, match=r"300,000 of 1,024,000 bytes.*what has arrived is kept"):
        hub.download("org/tiny", settings=replace(settings, patience=Patience(attempts=1)))
    folder = hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.asked("model.safetensors")[-1] == "bytes=300000-"


def test_a_server_without_ranges_starts_again(fake: FakeHub, settings: hub.Settings) -> None:
    fake.ranges = False
    fake.cuts["model.safetensors"] = [300_000]
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
    if have:
        (folder / "model.safetensors.part").write_bytes(have)
    fake.wrong_hash.add("model.safetensors")
    with pytest.raises(UserError, match=r"/model\.safetensors: what arrived has the SHA-256 .{12}…, not .{12}…"):
        hub.download("org/tiny", settings=settings)
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_part_with_other_bytes_is_begun_anew(fake: FakeHub, settings: hub.Settings) -> None:
    folder = settings.cache / "org--tiny" / COMMIT
    folder.mkdir(parents=True)
    (folder / "model.safetensors.part").write_bytes(b"x" * 1000)  # the whole then has the wrong hash
    hub.download("org/tiny", settings=settings)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fake.asked("model.safetensors") == ["bytes=1000-", None]


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


def test_no_network(settings: hub.Settings) -> None:
    nobody = replace(settings, endpoint="http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot be reached .*HF_ENDPOINT"):
        hub.download("org/tiny", settings=nobody)


@pytest.mark.parametrize("listing", [b"<html>hello</html>", b'{"sha": "../..", "siblings": []}'])
def test_something_that_is_no_hub(listing: bytes, fake: FakeHub, settings: hub.Settings) -> None:
    fake.listing = listing
    with pytest.raises(UserError, match="not the answer of a Hugging Face hub"):
        hub.download("org/tiny", settings=settings)


def test_offline_uses_what_is_there(fake: FakeHub, settings: hub.Settings) -> None:
    away = replace(settings, offline=True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub.download("org/tiny", settings=away)
    assert fake.requests == []
    folder = hub.download("org/tiny", settings=settings)
    before = len(fake.requests)
    assert hub.download("org/tiny", settings=away) == folder
    assert len(fake.requests) == before


def test_token_goes_to_the_hub_but_not_to_its_storage(
    fake: FakeHub, storage: FileServer, settings: hub.Settings
) -> None:
    fake.token = "secret"
    with pytest.raises(UserError, match=r"access denied \(401\).*HF_TOKEN"):
        hub.download("org/tiny", settings=settings)
    fake.keep_files_at(storage)
    known = replace(settings, token="secret")
    folder = hub.download("org/tiny", settings=known)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert len(storage.requests) == 2
    assert {request.authorization for request in storage.requests} == {None}
    assert "secret" not in repr(known)


def test_a_hash_stated_before_the_redirect_is_checked(
    fake: FakeHub, storage: FileServer, settings: hub.Settings
) -> None:
    fake.keep_files_at(storage)
    fake.wrong_hash.add("model.safetensors")
    with pytest.raises(UserError, match="SHA-256"):
        hub.download("org/tiny", settings=settings)


def test_a_size_stated_before_the_redirect_is_checked(
    fake: FakeHub, storage: FileServer, settings: hub.Settings
) -> None:
    fake.keep_files_at(storage)
    storage.files[f"{FILES}model.safetensors"] = WEIGHTS[:-1]
    with pytest.raises(UserError, match="has 1,023,999 bytes, not 1,024,000"):
        hub.download("org/tiny", settings=settings)


def test_settings_of_the_environment(tmp_path: Path) -> None:
    plain = hub.Settings.of({"XDG_CACHE_HOME": str(tmp_path)})
    assert (plain.endpoint, plain.token, plain.offline) == ("https://huggingface.co", None, False)
    assert plain.cache == tmp_path / "protloom" / "hub"
    moved = {"XDG_CACHE_HOME": "/elsewhere", "PROTLOOM_CACHE": str(tmp_path)}
    assert hub.Settings.of(moved).cache == tmp_path / "hub"
    stated = hub.Settings.of(
        {
            "HF_ENDPOINT": "https://mirror/",
            "HF_TOKEN": "t\n",
            "HF_HUB_OFFLINE": "1",
            "PROTLOOM_HUB_CACHE": str(tmp_path),
            "PROTLOOM_CACHE": "/elsewhere",
        }
    )
    assert stated == hub.Settings("https://mirror", "t", True, tmp_path)
