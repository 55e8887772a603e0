"""Downloads from a server on this machine: whatever goes wrong, nothing that arrived is lost, nothing good harmed."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from file_server import FileServer, serve

from protloom import download as downloads
from protloom.download import Access, Patience, download, read
from protloom.errors import UserError

CONTENT = bytes(range(256)) * 4000  # a megabyte
SHA256 = hashlib.sha256(CONTENT).hexdigest()
AT_ONCE = Patience(attempts=3, pause=0.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(FileServer({"/f": CONTENT})) as state:
        yield state


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "f"
    found = download(
        f"{server.address}/f",
        target,
        sha256=SHA256,
        size=len(CONTENT),
        progress=lambda done, total: told.append((done, total)),
    )
    assert found == target
    assert target.read_bytes() == CONTENT
    assert names(tmp_path) == ["f"]
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert download(f"{server.address}/f", target) == target
    assert len(server.requests) == 1  # what is there is not asked for


def test_a_cut_connection_is_taken_up_at_once(server: FileServer, tmp_path: Path) -> None:
    server.cuts["/f"] = [300_000, 100_000]
    download(f"{server.address}/f", tmp_path / "f", sha256=SHA256, patience=AT_ONCE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked() == [None, "bytes=300000-", "bytes=400000-"]
    assert {request.if_range is not None for request in server.requests if request.range} == {True}
    assert names(tmp_path) == ["f"]


@pytest.mark.parametrize("tags", [True, False])
def test_a_later_command_goes_on(tags: bool, server: FileServer, tmp_path: Path) -> None:
    server.tags = tags
    server.cuts["/f"] = [200_000]
    with pytest.raises(UserError, match="what has arrived is kept, the same command goes on"):
        download(f"{server.address}/f", tmp_path / "f", patience=Patience(attempts=1))
    assert names(tmp_path) == ["f.part", *(["f.part.etag"] if tags else [])]
    download(f"{server.address}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked() == [None, "bytes=200000-"]
    assert names(tmp_path) == ["f"]


def test_an_interrupted_command_goes_on(server: FileServer, tmp_path: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        if done > 400_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(f"{server.address}/f", tmp_path / "f", progress=interrupt)
    kept = (tmp_path / "f.part").stat().st_size
    assert 400_000 < kept < len(CONTENT)
    download(f"{server.address}/f", tmp_path / "f", sha256=SHA256)
    assert server.asked() == [None, f"bytes={kept}-"]


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Makes the system refuse longer files, as a full disk does."""
    resource = pytest.importorskip("resource", reason="no limit of a file's size there")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(server: FileServer, tmp_path: Path) -> None:
    with (
        no_file_over(downloads.CHUNK + 1000),
        pytest.raises(UserError, match=r"cannot write .*/f: .*what has arrived is kept"),
    ):
        download(f"{server.address}/f", tmp_path / "f", sha256=SHA256)
    kept = (tmp_path / "f.part").stat().st_size
    assert kept >= downloads.CHUNK
    assert (tmp_path / "f.part").read_bytes() == CONTENT[:kept]
    download(f"{server.address}/f", tmp_path / "f", sha256=SHA256)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked() == [None, f"bytes={kept}-"]


def test_a_server_without_ranges(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts["/f"] = [300_000]
    download(f"{server.address}/f", tmp_path / "f", sha256=SHA256, patience=AT_ONCE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked() == [None, "bytes=300000-"]


def test_a_server_without_lengths(server: FileServer, tmp_path: Path) -> None:
    server.lengths = False
    server.cuts["/f"] = [300_000]
    # nobody can tell that the connection ended early, but for the size that is known
    with pytest.raises(UserError, match="has 300,000 bytes, not 1,024,000"):
        download(f"{server.address}/f", tmp_path / "f", size=len(CONTENT))
    assert names(tmp_path) == []
    download(f"{server.address}/f", tmp_path / "f", size=len(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_file_that_changed_meanwhile(server: FileServer, tmp_path: Path) -> None:
    server.cuts["/f"] = [300_000]
    with pytest.raises(UserError):
        download(f"{server.address}/f", tmp_path / "f", patience=Patience(attempts=1))
    changed = CONTENT[::-1]
    server.files["/f"] = changed
    download(f"{server.address}/f", tmp_path / "f")  # If-Range: the server sends the new one whole
    assert (tmp_path / "f").read_bytes() == changed
    assert len(server.requests) == 2


@pytest.mark.parametrize("part", [b"of another file", CONTENT + b"more", b"\0" * len(CONTENT)])
def test_a_part_of_another_file_is_started_again(part: bytes, server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(part)
    download(f"{server.address}/f", tmp_path / "f", sha256=SHA256, size=len(CONTENT), patience=AT_ONCE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert names(tmp_path) == ["f"]


def test_a_range_with_another_start_is_begun_anew(server: FileServer, tmp_path: Path) -> None:
    server.shift = 256  # the content repeats itself so often: the bytes of the rest would look right
    server.cuts["/f"] = [300_000]
    download(f"{server.address}/f", tmp_path / "f", patience=AT_ONCE)  # neither hash nor size are known
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked() == [None, "bytes=300000-", None]
    # whoever does it again is refused, not asked for ever
    server.cuts["/f"] = [300_000, 0, 200_000]
    with pytest.raises(UserError, match="/f: the server sent another range than was asked for, also when it was begun"):
        download(f"{server.address}/f", tmp_path / "g", patience=AT_ONCE)
    assert server.asked()[3:] == [None, "bytes=300000-", None, "bytes=200000-"]
    assert not (tmp_path / "g").exists()


def test_a_server_that_begins_anew_and_is_cut_is_given_up(server: FileServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts["/f"] = [300_000, 100_000, 300_000, 100_000]
    with pytest.raises(UserError, match="the connection ended after 300,000 of 1,024,000 bytes"):
        download(f"{server.address}/f", tmp_path / "f", patience=AT_ONCE)
    assert len(server.requests) == 3


def test_what_is_for_one_host_is_not_given_to_another(server: FileServer, tmp_path: Path) -> None:
    access = Access({"authorization": "Bearer secret"})
    server.token = "secret"
    with serve(FileServer()) as other:
        other.moved["/f"] = f"{server.address}/g"
        server.files["/g"] = CONTENT
        server.moved["/f"] = "/h"  # on the same host: it gets it again
        server.moved["/h"] = f"{other.address}/f"
        with pytest.raises(UserError, match=r"access is denied \(401\)"):
            download(f"{server.address}/f", tmp_path / "f", access=access, patience=AT_ONCE)
        # not even by way of the other one
        given = [(request.path, request.authorization) for request in server.requests]
        assert given == [("/f", "Bearer secret"), ("/h", "Bearer secret"), ("/g", None)]
        assert [request.authorization for request in other.requests] == [None]
        # what every host needs to know is passed on
        other.moved.clear()
        other.files["/f"] = CONTENT
        other.cuts["/f"] = [300_000]
        download(f"{server.address}/f", tmp_path / "f", sha256=SHA256, access=access, patience=AT_ONCE)
        assert other.asked() == [None, None, "bytes=300000-"]
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert "secret" not in repr(access)


def test_a_token_that_cannot_be_sent_is_not_printed(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a token that cannot be sent") as caught:
        download(f"{server.address}/f", tmp_path / "f", access=Access({"Authorization": "Bearer sec\nret"}))
    assert "ret" not in str(caught.value)
    assert server.requests == []


def test_a_redirect_on_one_host_may_make_the_connection_secret_but_not_open() -> None:
    for old, new, same in (
        ("http://a/f", "https://A/g", True),
        ("https://a/f", "https://a/g", True),
        ("https://a/f", "http://a/g", False),
        ("https://a/f", "https://a:444/g", False),
        ("https://a/f", "https://b/f", False),
    ):
        assert downloads._same_host(old, new) is same, (old, new)


def test_a_short_document(server: FileServer) -> None:
    server.fail = [503]
    server.cuts["/f"] = [1000]
    assert read(f"{server.address}/f", patience=AT_ONCE) == CONTENT
    assert server.asked() == [None, None, None]  # nothing of it is kept
    with pytest.raises(UserError, match=r"/g: there is no such file"):
        read(f"{server.address}/g", patience=AT_ONCE)
    server.fail = [503] * 3
    with pytest.raises(UserError, match=r"/f: the server answers 503 .*; try again later"):
        read(f"{server.address}/f", patience=AT_ONCE)


def test_a_whole_part_is_not_asked_for_again(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(CONTENT)
    download(f"{server.address}/f", tmp_path / "f", sha256=SHA256, size=len(CONTENT))
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.requests == []


def test_a_wrong_hash(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"/f: what arrived has the SHA-256 {SHA256[:12]}…, not 000000000000…"):
        download(f"{server.address}/f", tmp_path / "f", sha256="0" * 64)
    assert names(tmp_path) == []
    assert len(server.requests) == 1
    (tmp_path / "f").write_bytes(b"good")
    download(f"{server.address}/f", tmp_path / "f", sha256="0" * 64)
    assert (tmp_path / "f").read_bytes() == b"good"


@pytest.mark.parametrize(
    ("status", "message"), [(404, "there is no such file"), (403, "access is denied"), (418, "the server answers 418")]
)
def test_what_no_further_attempt_mends(status: int, message: str, server: FileServer, tmp_path: Path) -> None:
    server.fail = [status]
    with pytest.raises(UserError, match=message):
        download(f"{server.address}/f", tmp_path / "f", patience=AT_ONCE)
    assert len(server.requests) == 1
    assert names(tmp_path) == []


def test_failures_that_pass(server: FileServer, tmp_path: Path) -> None:
    server.fail = [500, 429]
    download(f"{server.address}/f", tmp_path / "f", patience=AT_ONCE)
    assert (tmp_path / "f").read_bytes() == CONTENT
    server.fail = [503, 503, 503]
    with pytest.raises(UserError, match="the server answers 503"):
        download(f"{server.address}/f", tmp_path / "g", patience=AT_ONCE)
    # attempts in a row that bring nothing: one that brings some begins a new row
    server.cuts["/f"] = [1000] * 7
    download(f"{server.address}/f", tmp_path / "h", sha256=SHA256, patience=AT_ONCE)


def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/f"
    with pytest.raises(UserError, match="cannot be reached"):
        download(address, tmp_path / "f", patience=AT_ONCE)
    for wrong in ("file:///etc/passwd", "ftp://host/f", "f", "http://[/f"):
        with pytest.raises(UserError, match="not an address of a web server"):
            download(wrong, tmp_path / "f", patience=AT_ONCE)


def test_a_place_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        download(f"{server.address}/f", tmp_path / "nowhere" / "f")
