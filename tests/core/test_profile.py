"""``train --profile``: the trace, the page, and that profiling changes nothing else."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_run import Options, losses, options_in
from torch.autograd import DeviceType

from protloom import profiling
from protloom.cli import main
from protloom.phases import PARTS, PREFIX
from protloom.profiling import OTHER, PYTHON


@pytest.fixture
def options(small_fasta: Path, tmp_path: Path) -> Options:
    return options_in(tmp_path, small_fasta)


def rows(page: str) -> dict[str, list[str]]:
    """Returns the cells of every row of the page's tables by the first one."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in cells}


def test_a_profiled_run_is_the_same_run(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options("plain")]) == 0
    capsys.readouterr()
    assert main(["train", "--profile", *options("profiled")]) == 0
    folder = tmp_path / "profiled" / "profile"
    assert f"profile  {folder / 'profile.md'}" in capsys.readouterr().out
    assert losses(tmp_path / "profiled") == losses(tmp_path / "plain")
    assert not (tmp_path / "plain" / "profile").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["profile.md", "trace.json.gz"]

    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    ranges = [event["name"] for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    # 6 steps: three to warm up, three profiled; a batch is waited for and then moved
    assert {part: ranges.count(PREFIX + part) for part in PARTS} == {
        "data": 6,
        "forward": 3,
        "backward": 3,
        "optimizer": 3,
    }
    page = (folder / "profile.md").read_text()
    assert page.startswith("# Profile of 3 steps\n")
    table = rows(page)
    parts = [float(table[part][1]) for part in (*PARTS, OTHER)]
    assert sum(parts) == pytest.approx(100, abs=0.3)
    assert float(table["forward"][1]) > 0
    shares = [float(cells[2]) for cells in table.values() if len(cells) == 8 and re.fullmatch(r"[\d.]+", cells[2])]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    assert all(
        sum(map(float, cells[3:])) == pytest.approx(float(cells[2]), abs=0.3) for cells in list(table.values())[8:]
    )


@pytest.mark.parametrize(
    ("steps", "first", "count"), [(1, 0, 1), (2, 1, 1), (4, 3, 1), (5, 3, 2), (7, 3, 4), (10**9, 3, 4)]
)
def test_which_steps_are_profiled(steps: int, first: int, count: int) -> None:
    assert profiling.window(steps) == (first, count)
    assert first + count <= steps


def profiled(folder: Path, steps: int) -> profiling.Profiled:
    return profiling.Profiled(folder / "profile", "a loop", steps, torch.device("cpu"))


def test_a_loop_that_is_left_early_is_profiled_so_far(tmp_path: Path) -> None:
    phases = profiled(tmp_path, 100)
    for number in phases.waiting("data", range(100)):
        with phases("forward"):
            torch.ones(8, 8).square()
        if number == 5:
            break  # in the third profiled step: two are whole
    assert phases.written == tmp_path / "profile" / "profile.md"
    page = phases.written.read_text()
    assert page.startswith("# Profile of 2 steps\n")
    assert "\n\na loop\n\n" in page


def test_a_loop_that_ends_before_a_profiled_step_writes_nothing(tmp_path: Path) -> None:
    phases = profiled(tmp_path, 100)
    assert list(phases.waiting("data", range(3))) == [0, 1, 2]
    assert phases.written is None
    assert not (tmp_path / "profile").exists()


def test_a_budget_that_ends_first_is_told(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--profile", *options(trainer__steps=900, trainer__max_tokens=700)]) == 0
    assert "profile  none: the run ended before" in capsys.readouterr().out
    assert not (tmp_path / "run" / "profile").exists()


def event(name: str, begin: float, end: float, own: float, device: float = 0.0, on: Any = DeviceType.CPU) -> Any:
    """Returns an event in microseconds as PyTorch's profiler has them."""
    times = SimpleNamespace(start=begin, end=end)
    return SimpleNamespace(
        name=name, time_range=times, self_cpu_time_total=own, self_device_time_total=device, device_type=on
    )


EVENTS = [
    event("step/forward", 0, 1e6, 2e5),
    event("mm", 1e5, 9e5, 8e5, device=5e6),
    event("step/backward", 1e6, 3e6, 0),
    event("mm", 1.5e6, 3e6, 1.5e6, device=1e6),
    event("add", 1e6, 1.5e6, 5e5, device=4e6),
    event("log", 3.5e6, 3.6e6, 1e5),
    event("a kernel", 1e5, 6e6, 0, device=9e9, on=DeviceType.CUDA),
]


def test_time_is_summed_by_part_and_by_operation() -> None:
    found = profiling.summarise(EVENTS, steps=2, seconds=4.0, device="cpu")
    assert found.parts == {"data": 0.0, "forward": 1.0, "backward": 2.0, "optimizer": 0.0, OTHER: 1.0}
    assert sum(found.parts.values()) == found.seconds
    assert [(one.name, one.calls) for one in found.operations] == [("mm", 2), ("add", 1), (PYTHON, 2), ("log", 1)]
    assert [one.seconds for one in found.operations] == pytest.approx([2.3, 0.5, 0.2, 0.1])
    assert found.operations[0].parts == pytest.approx({"forward": 0.8, "backward": 1.5})
    assert found.operations[3].parts == pytest.approx({OTHER: 0.1})


def test_on_cuda_operations_are_times_of_kernels() -> None:
    found = profiling.summarise(EVENTS, steps=2, seconds=4.0, device="cuda")
    assert {one.name: one.seconds for one in found.operations} == pytest.approx({"mm": 6.0, "add": 4.0})
    assert found.parts["forward"] == 1.0  # of the host
    assert "operations are times of kernels" in profiling.page(found, "")
    assert rows(profiling.page(found, ""))["mm"][:3] == ["1", "3,000.00", "60.0"]


def test_operations_beyond_the_costliest_are_one_row() -> None:
    many = [event(f"op{i:02d}", i, i, 1e6 + i) for i in range(profiling.SHOWN + 3)]
    found = profiling.summarise(many, steps=1, seconds=60.0, device="cpu")
    table = rows(profiling.page(found, ""))
    assert table["(3 others)"][0] == "3"
    assert "op00" not in table
    assert f"op{profiling.SHOWN + 2}" in table
