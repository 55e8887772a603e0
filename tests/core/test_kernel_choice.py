"""Which backend a function gets, and what is told and written about it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import options_in

from protloom import kernels, ops
from protloom.checkpoint import latest
from protloom.cli import main
from protloom.errors import UserError
from protloom.ops import Timing

CPU = torch.device("cpu")


class Fake:
    """A backend that offers some functions and may have been measured."""

    def __init__(
        self, name: str, priority: int, names: tuple[str, ...], *, reason: str | None = None, **costs: float
    ) -> None:
        self.name, self.priority = name, priority
        self._names, self._reason, self._costs = names, reason, costs

    def unavailable(self, device: torch.device) -> str | None:
        return self._reason

    def functions(self, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        return dict.fromkeys(self._names, print)

    def measured(self, function: str, device: torch.device, dtype: torch.dtype) -> Timing | None:
        cost = self._costs.get(function)
        return None if cost is None else Timing(cost, f"{cost} s")


class Plain:
    """A backend as it was written before measurements: without the optional method."""

    name, priority = "plain", 10

    def unavailable(self, device: torch.device) -> str | None:
        return None

    def functions(self, device: torch.device, dtype: torch.dtype) -> Mapping[str, Callable[..., Any]]:
        return dict.fromkeys(ops.NAMES, print)


def select(*backends: Any, choice: Any = "auto", others: Mapping[str, Any] | None = None) -> ops.Ops:
    return ops.select(choice, {b.name: b for b in backends}, others or {}, CPU, torch.float32)


BASE = Fake("base", 10, ops.NAMES, rms_norm=1.0, gelu=1.0)


def test_without_a_measurement_the_first_by_priority() -> None:
    found = select(BASE, Fake("quick", -1, ("rms_norm",)), Fake("broken", 99, ops.NAMES, reason="no such device"))
    assert set(found.chosen.values()) == {"base"}
    assert found.choices["gelu"].why == "by a measurement: 1.0 s"
    assert found.choices["rotary"].why == "first by priority"
    assert found.choices["rms_norm"].others == {
        "quick": "after base by priority, and not measured on this kind of device",
        "broken": "no such device",
    }
    assert found.choices["gelu"].others["quick"] == "has no form of its own"


@pytest.mark.parametrize(
    ("cost", "taken"), [(0.5, "quick"), (0.96, "quick"), (0.98, "base"), (1.0, "base"), (2.0, "base")]
)
def test_a_measurement_decides_beyond_noise(cost: float, taken: str) -> None:
    found = select(BASE, Fake("quick", -1, ("rms_norm", "rotary"), rms_norm=cost, rotary=0.1))
    choice = found.choices["rms_norm"]
    assert choice.backend == taken
    assert choice.why.startswith("by a measurement")
    assert choice.others == {
        "base" if taken == "quick" else "quick": f"by a measurement: {1.0 if taken == 'quick' else cost} s"
    }
    # measured without the one that is first: with nothing to compare it, it changes nothing
    assert found.chosen["rotary"] == "base"


def test_the_fastest_of_several_that_can_run() -> None:
    quick, quicker = Fake("quick", -1, ("gelu",), gelu=0.6), Fake("quicker", -2, ("gelu",), gelu=0.4)
    assert select(BASE, quick, quicker).chosen["gelu"] == "quicker"
    absent = Fake("quicker", -2, ("gelu",), gelu=0.4, reason="not built")
    assert select(BASE, quick, absent).chosen["gelu"] == "quick"
    assert select(Plain(), quick).chosen["gelu"] == "plain"


def test_the_word_of_the_run_is_above_all() -> None:
    quick = Fake("quick", -1, ("gelu",), gelu=0.1)
    found = select(BASE, quick, choice={"gelu": "base"})
    assert found.choices["gelu"] == ops.Choice("base", "the run names it", {"quick": "the run names another"})
    found = select(BASE, Fake("slow", -1, ("gelu",), gelu=9.0), choice="slow")
    assert found.chosen["gelu"] == "slow"
    assert found.choices["rotary"] == ops.Choice("base", "first by priority", {"slow": "has no form of its own"})
    assert select(BASE, quick, choice={"gelu": "auto"}).chosen["gelu"] == "quick"


def test_auto_leaves_a_third_party_that_is_named_for_something_else() -> None:
    theirs = Fake("theirs", 99, ("gelu", "rotary"), gelu=0.01)
    found = select(BASE, choice={"rotary": "theirs"}, others={"theirs": theirs})
    assert found.chosen["rotary"] == "theirs"
    assert found.choices["gelu"].others == {"theirs": "auto takes only what protloom ships"}


def test_an_old_third_party_that_offers_everything_of_its_time() -> None:
    before = tuple(name for name in ops.NAMES if name != "lamb")
    found = select(BASE, choice="theirs", others={"theirs": Fake("theirs", 1, before)})
    assert found.chosen["lamb"] == "base"
    assert found.chosen["adamw"] == "theirs"


def test_what_no_backend_offers() -> None:
    some = Fake("some", 1, ("gelu",))
    with pytest.raises(UserError, match=r"does not offer 'layer_norm' on cpu; no backend does"):
        select(some)
    with pytest.raises(UserError, match=r"'some' does not offer 'rotary' on cpu; base offers it"):
        select(BASE, some, choice={"rotary": "some"})


def test_what_is_told() -> None:
    everything = select(BASE, Fake("broken", 0, (), reason="no such device"), choice="base")
    assert kernels.told(everything) == ["base for everything: the run names it", "not broken: no such device"]
    mixed = kernels.told(select(Plain(), Fake("quick", -1, ("gelu",)), choice={"gelu": "quick"}))
    rest = ", ".join(name for name in ops.NAMES if name != "gelu")
    assert mixed == [
        f"plain for {rest}: first by priority",
        "quick for gelu: the run names it",
        f"not quick for {rest}: has no form of its own",
        "not plain for gelu: the run names another",
    ]


def test_the_run_folder_and_every_checkpoint_say_what_was_chosen(
    tmp_path: Path, small_fasta: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = options_in(tmp_path, small_fasta)
    assert main(["train", *made(kernels={"gelu": "reference"}, trainer__steps=2)]) == 0
    said = capsys.readouterr().out
    assert "\nkernels  torch for layer_norm" in said
    assert "\n         reference for gelu: the run names it\n" in said
    assert "\n         not apex" in said
    record = json.loads((tmp_path / "run" / "kernels.json").read_text())
    assert record.keys() == set(ops.NAMES)
    assert record["gelu"]["backend"] == "reference"
    assert record["gelu"]["not"]["torch"] == "the run names another"
    assert record["rotary"]["backend"] == "torch"
    assert {"apex", "triton", "flex", "reference"} == record["rotary"]["not"].keys()
    saved = latest(tmp_path / "run")
    assert saved is not None
    assert json.loads((saved / "kernels.json").read_text()) == record
    # another sitting may choose otherwise; what the earlier one used stays beside its weights
    assert main(["resume", str(tmp_path / "run"), "kernels=reference", "trainer.steps=4"]) == 0
    assert json.loads((tmp_path / "run" / "kernels.json").read_text())["rotary"]["backend"] == "reference"
    assert json.loads((saved / "kernels.json").read_text()) == record
