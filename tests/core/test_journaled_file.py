"""A file that survives a kill at any moment: every state that it has on disk is looked at."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import pytest

from protloom import journaled_file
from protloom.errors import UserError
from protloom.journaled_file import JournaledFile, journal_of, recover


class Camera:
    """Copies a file and its journal after every change on disk, and in the middle of each."""

    def __init__(self, path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path, self.folder, self.taken, self.commits = path, folder, 0, 0
        self.commits_at: list[int] = []
        write, fsync, replace = journaled_file._write_all, journaled_file.os.fsync, Path.replace

        def halves(file: IO[bytes], data: memoryview) -> None:
            write(file, data[: len(data) // 2])
            self.shoot()
            write(file, data[len(data) // 2 :])
            self.shoot()

        def after(call: Any) -> Any:
            def both(*arguments: Any) -> Any:
                result = call(*arguments)
                self.shoot()
                return result

            return both

        monkeypatch.setattr(journaled_file, "_write_all", halves)
        monkeypatch.setattr(journaled_file.os, "fsync", after(fsync))
        monkeypatch.setattr(Path, "replace", after(replace))

    def shoot(self) -> None:
        target = self.folder / str(self.taken)
        target.mkdir()
        for file in (self.path, journal_of(self.path)):
            if file.exists():
                shutil.copyfile(file, target / file.name)
        self.commits_at.append(self.commits)
        self.taken += 1


@pytest.mark.parametrize("seed", range(4))
def test_bytes_are_those_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    path = tmp_path / "x"
    content = bytearray(rng.randbytes(20_000))
    path.write_bytes(content)
    (tmp_path / "states").mkdir()
    camera = Camera(path, tmp_path / "states", monkeypatch)
    file = JournaledFile(path)
    committed = [bytes(content)]
    for _ in range(6):
        for _ in range(rng.randrange(1, 8)):
            at, data = rng.randrange(len(content) + 1), rng.randbytes(rng.choice([1, 100, 5000, 12_000]))
            file.seek(at)
            assert file.write(data) == len(data)
            content[at : at + len(data)] = data
            start, size = rng.randrange(len(content)), rng.randrange(15_000)
            file.seek(start)
            assert file.read(size) == content[start : start + size]
        if rng.random() < 0.4:
            del content[rng.randrange(len(content) // 2, len(content)) :]
            file.truncate(len(content))
        assert file.seek(0, 2) == len(content)
        file.commit()
        committed.append(bytes(content))
        camera.commits += 1
        assert path.read_bytes() == content
    file.seek(5)
    file.write(b"never committed")
    file.close()
    assert path.read_bytes() == content
    assert camera.taken > 50
    for number in range(camera.taken):
        state = camera.folder / str(number) / "x"
        recover(state)
        found, done = state.read_bytes(), camera.commits_at[number]
        # what lies beyond the committed end is of no account
        assert any(found.startswith(text) for text in committed[done : done + 2]), number
        assert not journal_of(state).exists()


def test_hdf5_is_readable_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver=("v108", "v108"), track_order=True) as made:
        made.attrs["what"] = "a test"
    (tmp_path / "states").mkdir()
    camera = Camera(path, tmp_path / "states", monkeypatch)
    journal = JournaledFile(path)
    rng = np.random.default_rng(0)
    arrays = {f"{rng.integers(1 << 60):x}": rng.normal(size=(3, 5)) for _ in range(30)}
    sizes = [0]
    with h5py.File(journal, "r+", libver=("v108", "v108")) as file:
        for i, (name, array) in enumerate(arrays.items(), start=1):
            file.create_dataset(name, data=array).attrs["original_id"] = f"p{i}"
            if i % 6 == 0:
                file.flush()
                journal.commit()
                sizes.append(i)
                camera.commits += 1
    journal.commit()
    journal.close()
    assert camera.taken > 100
    for number in range(camera.taken):
        state = camera.folder / str(number) / "x.h5"
        recover(state)
        with h5py.File(state, "r") as found:
            done = camera.commits_at[number]
            assert len(found) in sizes[done : done + 2]
            assert list(found) == list(arrays)[: len(found)]
            for i, (name, dataset) in enumerate(found.items(), start=1):
                assert dataset.attrs["original_id"] == f"p{i}"
                np.testing.assert_array_equal(dataset[()], arrays[name])


def test_a_damaged_journal_is_not_applied(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    journal_of(path).write_bytes(journaled_file.MAGIC + bytes(60))
    recover(path)
    assert path.read_bytes() == b"content"
    assert not journal_of(path).exists()


def test_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    first = JournaledFile(path)
    with pytest.raises(UserError, match="another process"):
        JournaledFile(path)
    first.close()
    JournaledFile(path).close()
