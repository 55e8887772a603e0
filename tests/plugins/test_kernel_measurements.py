"""Measurements of kernel backends: the benchmark in its smallest form, the file, and what ``auto`` makes of it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_apex
import pytest
import torch
import yaml

from protloom import kernels, ops
from protloom.plugins import Registry
from protloom_plugins.kernels import measured
from protloom_plugins.kernels.apex import ApexBackend

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def benchmark_script(repository: Path) -> Iterator[ModuleType]:
    """``benchmarks/kernels.py`` as a module."""
    spec = importlib.util.spec_from_file_location("benchmark_kernels", repository / "benchmarks" / "kernels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty file of measurements that ``auto`` reads, and a CPU that has a name like a GPU."""
    path = tmp_path / "measurements.yaml"
    path.write_text("# about the file\ndevices: {}\n")
    monkeypatch.setattr(measured, "FILE", path)
    monkeypatch.setattr(measured, "kind", lambda device: "Test GPU")
    return path


TINY = ["--widths", "32", "--tokens", "60", "--rounds", "1", "--sample", "0"]


def test_the_benchmark_measures_every_function_and_writes_a_table(benchmark_script: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "table.md"
    benchmark_script.main([*TINY, "--no-compile", "--out", str(out)])
    text = out.read_text()
    assert "## fp32" in text
    assert "## bf16" in text
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]) for line in text.splitlines() if line.startswith("| ")}
    assert {function for function, _ in rows} == {"function", *ops.NAMES}
    assert any("bias" in size for _, size in rows)
    if not torch.cuda.is_available():
        assert "Not here: apex: apex runs on cuda, not on cpu." in text


def test_the_benchmark_refuses(
    benchmark_script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit):
        benchmark_script.main([*TINY, "--functions", "gelu,rope"])
    assert "no function 'rope'" in capsys.readouterr().err
    monkeypatch.setattr(measured, "kind", lambda device: None)
    with pytest.raises(SystemExit):
        benchmark_script.main([*TINY, "--record"])
    assert "measurements are kept of GPUs" in capsys.readouterr().err


def test_backends_that_differ_end_the_benchmark(benchmark_script: ModuleType) -> None:
    case = benchmark_script.Case("gelu", "2", lambda f: f)
    runs = {"torch": lambda: [torch.ones(2)], "other": lambda: [torch.tensor([1.0, 1.1])]}
    with pytest.raises(AssertionError, match=r"gelu \(2\): other and torch differ"):
        benchmark_script.check(case, runs, half=False)


def test_what_is_recorded_is_read_by_auto(
    benchmark_script: ModuleType, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_apex.install(monkeypatch)
    monkeypatch.setattr(ApexBackend, "devices", ("cpu", "cuda"))
    monkeypatch.setattr(
        benchmark_script, "medians", lambda runs, *_: {name: 1.0 if name == "apex" else 2.0 for name in runs}
    )
    functions = ["--functions", "rms_norm,adamw", "--precisions", "fp32", "--no-compile"]
    benchmark_script.main([*TINY, *functions, "--record", str(file)])
    assert file.read_text().startswith("# about the file\n")
    kept = yaml.safe_load(file.read_text())["devices"]["Test GPU"]
    assert kept["software"]["torch"] == torch.__version__
    assert kept["milliseconds"].keys() == {"rms_norm", "adamw"}
    (times,) = kept["milliseconds"]["rms_norm"]["fp32"].values()
    assert times["apex"] == 1.0
    if torch.cuda.is_available():
        return  # the stand-in cannot compute where auto would now take it
    found = kernels.choose("auto", Registry.discover(), CPU, torch.float32)
    assert {function for function, name in found.chosen.items() if name == "apex"} == {"rms_norm", "adamw"}
    assert found.choices["rms_norm"].why == (
        f"by a measurement: 0.50 of torch's time (1 size; Test GPU, torch {torch.__version__})"
    )
    assert found.choices["rms_norm"].others["torch"].startswith("by a measurement: 1.00 of torch's time")
    assert found.choices["layer_norm"].others["apex"].startswith("after torch by priority, and not measured")
    # of another precision and of another device nothing is known
    assert set(kernels.choose("auto", Registry.discover(), CPU, torch.bfloat16).chosen.values()) == {"torch"}
    monkeypatch.setattr(measured, "kind", lambda device: "Other GPU")
    assert set(kernels.choose("auto", Registry.discover(), CPU, torch.float32).chosen.values()) == {"torch"}


def test_recording_again_replaces_this_device_alone(file: Path) -> None:
    sizes: Any = {"gelu": {"bf16": {"8 × 8": {"torch": 1.0, "other": 2.0}}}}
    measured.record("Test GPU", {"torch": "1"}, {"rms_norm": sizes["gelu"]}, file)
    measured.record("Second GPU", {"torch": "1"}, sizes, file)
    measured.record("Test GPU", {"torch": "2"}, sizes, file)
    devices = yaml.safe_load(file.read_text())["devices"]
    assert devices["Second GPU"] == {"software": {"torch": "1"}, "milliseconds": sizes}
    assert devices["Test GPU"] == {"software": {"torch": "2"}, "milliseconds": sizes}
    assert measured.timing("other", "rms_norm", CPU, torch.bfloat16) is None


def test_one_size_where_it_is_slower_is_enough_to_leave_it(file: Path) -> None:
    sizes = {"small": {"torch": 1.0, "other": 0.2}, "large": {"torch": 1.0, "other": 1.1}}
    measured.record("Test GPU", {"torch": "1"}, {"gelu": {"bf16": sizes}}, file)
    found = measured.timing("other", "gelu", CPU, torch.bfloat16)
    assert found is not None
    assert found.cost == pytest.approx(1.1)
    assert found.said == "0.47 of torch's time (2 sizes, 0.20 to 1.10; Test GPU, torch 1)"
    sizes["large"]["other"] = 1.02
    measured.record("Test GPU", {"torch": "1"}, {"gelu": {"bf16": sizes}}, file)
    found = measured.timing("other", "gelu", CPU, torch.bfloat16)
    assert found is not None
    assert found.cost == pytest.approx((0.2 * 1.02) ** 0.5)


def test_the_file_that_is_shipped_can_be_read() -> None:
    """Which GPUs it holds depends on which were at hand; what it holds must be whole."""
    for name, device in yaml.safe_load(measured.FILE.read_text(encoding="utf-8"))["devices"].items():
        assert device["software"]["torch"], name
        for function, precisions in device["milliseconds"].items():
            assert function in ops.NAMES
            for sizes in precisions.values():
                assert all(measured.BASIS in times and min(times.values()) > 0 for times in sizes.values())


def test_of_a_cpu_nothing_is_kept() -> None:
    assert measured.kind(CPU) is None
    assert measured.timing("torch", "gelu", CPU, torch.float32) is None
