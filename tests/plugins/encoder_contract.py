"""What every encoder over packed sequences promises, as tests that each architecture inherits; and their batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from protloom import ops
from protloom.cli import main
from protloom.contracts import Architecture, BuildContext, Offsets, Tokenizer
from protloom.errors import UserError
from protloom_plugins.kernels.native import TorchBackend
from protloom_plugins.kernels.reference import ReferenceBackend

OWN = {"reference": ReferenceBackend(), "torch": TorchBackend()}
KERNELS = {name: ops.select(name, OWN, {}, torch.device("cpu"), torch.float32) for name in OWN}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def packed(lengths: Sequence[int], tokenizer: Tokenizer, *, masks: float = 0.2) -> tuple[Tensor, Offsets]:
    """Random letters of sequences with ``lengths`` residues each, between prefix and suffix, some of them masked."""
    generator = torch.Generator().manual_seed(sum(lengths))
    letters = torch.tensor([number for number, symbol in enumerate(tokenizer.vocab) if len(symbol) == 1])
    parts = []
    for length in lengths:
        residues = letters[torch.randint(len(letters), (length,), generator=generator)]
        residues[torch.rand(length, generator=generator) < masks] = tokenizer.mask_id
        parts.append(torch.cat([torch.tensor(tokenizer.prefix), residues, torch.tensor(tokenizer.suffix)]))
    return torch.cat(parts), Offsets.of(len(part) for part in parts)


def sequences(tokens: Tensor, cu: Offsets) -> Iterator[tuple[slice, Tensor]]:
    """Yields where each sequence lies and its ids ``[1, L]``."""
    for start, end in zip(cu.bounds, cu.bounds[1:], strict=False):
        yield slice(start, end), tokens[start:end].unsqueeze(0)


def randomise(model: nn.Module) -> None:
    """Draws every parameter, norms and biases too, so that no two of them can be confused."""
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # matrices keep the size of what they multiply, as trained ones do
            scale = 0.75 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.2
            parameter.copy_(noise * scale + (1.0 if "norm.weight" in name else 0.0))


Run = Callable[[list[int]], tuple[list[Any], Any, Any]]
"""A reference: ids of one sequence to (states 0 to depth, logits, maps ``[blocks, heads, L, L]``), all in float64."""


def agrees(model: Any, reference: Run, lengths: Sequence[int], tokenizer: Tokenizer, **tolerance: float) -> None:
    """Asserts that a packed pass gives the states, logits and maps that a reference gives sequence by sequence."""
    tokens, cu = packed(lengths, tokenizer)
    with torch.inference_mode():
        ours = model.encode(tokens, cu, layers=range(model.depth + 1), attentions=True)
        logits = model.logits(ours.last)
    for (rows, ids), found in zip(sequences(tokens, cu), ours.attentions, strict=True):
        states, wanted, maps = reference(ids[0].tolist())
        assert len(states) == model.depth + 1
        for number, state in enumerate(states):
            torch.testing.assert_close(ours.layers[number][rows].double(), torch.tensor(state), **tolerance)
        torch.testing.assert_close(logits[rows].double(), torch.tensor(wanted), **tolerance)
        torch.testing.assert_close(found.double(), torch.tensor(maps), **EXACT)  # maps are fp32 by contract


def refused(adapter: Any, folder: Path, said: str) -> None:
    """Asserts that reading a folder fails with one line that says what is wrong, and in which file of it."""
    with pytest.raises(UserError, match=said) as caught:
        adapter.read(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


class EncoderContract:
    """Inherited by a test class that says how its architecture is built: 3 blocks, width 24, 3 heads."""

    name: ClassVar[str]
    factory: ClassVar[Any]
    config: ClassVar[Any]
    tokenizer: ClassVar[Tokenizer]

    def build(self, kernels: str = "torch", *, checkpointing: bool = False) -> Any:
        build = BuildContext(self.tokenizer, KERNELS[kernels], activation_checkpointing=checkpointing)
        return self.factory(self.config, build)

    @pytest.fixture
    def small(self) -> Any:
        model = self.build().eval()
        randomise(model)
        return model

    def test_is_an_architecture(self, small: Any) -> None:
        assert isinstance(small, Architecture)
        assert (small.width, small.depth, small.heads) == (24, 3, 3)
        assert {"encode", "attentions"} <= small.capabilities
        assert isinstance(small.blocks, nn.ModuleList)

    def test_a_packed_batch_equals_its_sequences_one_by_one(self, small: Any) -> None:
        tokens, cu = packed([*range(1, 71), 300], self.tokenizer)
        together = small.encode(tokens, cu).last
        for rows, ids in sequences(tokens, cu):
            alone = small.encode(ids[0], Offsets.of([ids.shape[1]])).last
            torch.testing.assert_close(alone, together[rows], rtol=1e-6, atol=2e-6)

    def test_the_order_of_a_batch_does_not_matter(self, small: Any) -> None:
        tokens, cu = packed([40, 3, 260, 1, 129], self.tokenizer)
        forward = small.encode(tokens, cu, layers=(0, 1))
        parts = tokens.split(cu.lengths)
        backward = small.encode(torch.cat(parts[::-1]), Offsets.of(cu.lengths[::-1]), layers=(0, 1))
        for one, other in ((forward.last, backward.last), *((forward.layers[i], backward.layers[i]) for i in (0, 1))):
            again = torch.cat(other.split(cu.lengths[::-1])[::-1])
            torch.testing.assert_close(one, again, rtol=1e-6, atol=2e-6)

    def test_zero_sequences(self, small: Any) -> None:
        small.train()
        none = torch.zeros(0, dtype=torch.int32)
        encoded = small.encode(none, Offsets.of([]), layers=(0, 2), attentions=True)
        assert encoded.last.shape == encoded.layers[2].shape == (0, 24)
        assert encoded.attentions == []
        logits = small.logits(encoded.last)
        assert logits.shape == (0, len(self.tokenizer.vocab))
        logits.sum().backward()
        for name, parameter in small.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert float(parameter.grad.abs().sum()) == 0, name

    def test_stop_at_gives_the_state_of_a_full_pass(self, small: Any) -> None:
        tokens, cu = packed([12, 5], self.tokenizer)
        full = small.encode(tokens, cu, layers=(0, 1, 2, 3))
        for stop in range(4):
            part = small.encode(tokens, cu, stop_at=stop, layers=(stop,), attentions=True)
            assert torch.equal(part.last, full.layers[stop])
            assert torch.equal(part.layers[stop], part.last)
            assert part.attentions is not None
            assert [maps.shape for maps in part.attentions] == [(stop, 3, 14, 14), (stop, 3, 7, 7)]
        assert torch.equal(full.last, full.layers[3])
        # the final norm belongs to the last state alone
        unnormed = small.final_norm
        small.final_norm = nn.Identity()
        assert not torch.equal(small.encode(tokens, cu).last, full.last)
        assert torch.equal(small.encode(tokens, cu, stop_at=2).last, full.layers[2])
        small.final_norm = unnormed

    @pytest.mark.parametrize("request_", [{"stop_at": 4}, {"layers": (4,)}, {"stop_at": 1, "layers": (2,)}])
    def test_states_that_do_not_exist_are_refused(self, small: Any, request_: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="0 … 3"):
            small.encode(*packed([4], self.tokenizer), **request_)

    def test_logits_at_asked_positions(self, small: Any) -> None:
        states = small.encode(*packed([12, 5], self.tokenizer)).last
        index = torch.tensor([3, 0, 17])
        torch.testing.assert_close(small.logits(states[index]), small.logits(states)[index], rtol=1e-6, atol=1e-6)

    def test_every_parameter_gets_a_gradient(self, small: Any) -> None:
        small.logits(small.encode(*packed([30, 41], self.tokenizer)).last).square().mean().backward()
        for name, parameter in small.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert bool(parameter.grad.isfinite().all()), name
                assert float(parameter.grad.abs().max()) > 0, name

    def test_activation_checkpointing_gives_equal_gradients(self) -> None:
        plain, recomputed = self.build().train(), self.build(checkpointing=True).train()
        recomputed.load_state_dict(plain.state_dict())
        calls: list[tuple[str, int]] = []
        for kind, model in (("plain", plain), ("recomputed", recomputed)):
            for number, block in enumerate(model.blocks):
                block.register_forward_pre_hook(lambda *_, call=(kind, number): calls.append(call))
        tokens, cu = packed([30, 41], self.tokenizer)
        for model in (plain, recomputed):
            model.logits(model.encode(tokens, cu).last).square().mean().backward()
        numbers = range(len(plain.blocks))
        # once forward, once again for the backward pass
        assert sorted(calls) == sorted([("plain", i) for i in numbers] + [("recomputed", i) for i in numbers] * 2)
        for (name, one), (_, two) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
            if one.requires_grad:
                assert one.grad is not None
                assert two.grad is not None
                assert torch.equal(one.grad, two.grad), name
        recomputed.eval()
        calls.clear()
        recomputed.encode(tokens, cu)
        assert calls == [("recomputed", i) for i in numbers]

    def test_bf16_autocast_stays_near_fp32(self) -> None:
        model = self.build().eval()
        tokens, cu = packed([40, 80], self.tokenizer)
        exact = model.logits(model.encode(tokens, cu).last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            encoded = model.encode(tokens, cu)
            logits = model.logits(encoded.last)
        assert encoded.last.dtype == torch.float32  # the residual stream keeps full precision
        torch.testing.assert_close(logits.float(), exact, rtol=0.05, atol=0.02)

    def test_compiles_into_one_graph(self, small: Any) -> None:
        tokens, cu = packed([9, 14], self.tokenizer)

        def run(ids: Tensor) -> Tensor:
            return small.logits(small.encode(ids, cu).last)

        compiled = torch.compile(run, backend="aot_eager", fullgraph=True)  # raises where the graph would break
        compiled(tokens).square().sum().backward()
        grads = [p.grad.clone() for p in small.parameters() if p.grad is not None]
        small.zero_grad()
        run(tokens).square().sum().backward()
        others = [p.grad for p in small.parameters() if p.grad is not None]
        assert len(grads) == len(others) > 0
        for one, two in zip(grads, others, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)

    def test_float64(self, small: Any) -> None:
        tokens, cu = packed([9, 200], self.tokenizer)
        wide = self.build("reference").double().eval()
        wide.load_state_dict(small.state_dict())
        assert wide.encode(tokens, cu).last.dtype == torch.float64
        torch.testing.assert_close(small.encode(tokens, cu).last.double(), wide.encode(tokens, cu).last, **EXACT)

    def test_a_network_from_the_meta_device_works(self) -> None:
        with torch.device("meta"):
            model = self.build()
        model = model.to_empty(device="cpu")
        torch.manual_seed(0)
        model.initialise()
        torch.manual_seed(0)
        normal = self.build()
        torch.manual_seed(0)
        normal.initialise()
        for name, value in normal.state_dict().items():
            assert value.shape == model.state_dict()[name].shape
            if "contact_head" not in name:
                assert torch.equal(value, model.state_dict()[name]), name
        model.load_state_dict(normal.state_dict())
        tokens, cu = packed([8], self.tokenizer)
        assert torch.equal(model.encode(tokens, cu).last, normal.encode(tokens, cu).last)

    @pytest.mark.slow
    @pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
    def test_two_processes_have_the_losses_of_one(self, tmp_path: Path, small_fasta: Path, parallel: str) -> None:
        alike = f"{self.name}:tiny", small_fasta, tmp_path, "trainer.activation_checkpointing=true"
        _, one = train(*alike, steps=6)
        _, two = train(*alike, f"trainer.parallel={parallel}", steps=6, processes=2)
        assert two == pytest.approx(one, abs=1e-4)
        assert len(two) > 1


def train(
    architecture: str, fasta: Path, folder: Path, *more: str, steps: int = 30, processes: int = 1
) -> tuple[Path, list[float]]:
    """Trains as a user does; returns the run's folder and its validation losses."""
    words = {
        "data.cache_dir": folder / "cache",
        "data.validation_fraction": 0.1,
        "optimizer.lr": 0.005,
        "trainer.steps": steps,
        "trainer.tokens_per_step": 900,
        "trainer.precision": "fp32",
        "trainer.validate_every": steps,
        "trainer.validation_tokens": 1000,
        "trainer.checkpoint_every": steps,
        "trainer.tensorboard": "false",
    }
    out = folder / f"run-{processes}"
    command = ["train", f"--data={fasta}", f"--arch={architecture}", f"--out={out}"]
    command += [*(f"{key}={value}" for key, value in words.items()), *more]
    if processes == 1:
        assert main(command) == 0
    else:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "protloom"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *launcher, *command], env=environment, check=True, capture_output=True)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return out, [r["validation/loss"] for r in records if "validation/loss" in r]


def skewed_fasta(folder: Path) -> Path:
    """Writes proteins of few letters: there is something to learn in a few steps."""
    rng = np.random.default_rng(4)
    letters = np.array(list("AADDDDGGGGKKLLLLLV"))
    file = folder / "skewed.fasta"
    file.write_text("".join(f">p{i}\n{''.join(rng.choice(letters, 60))}\n" for i in range(200)))
    return file
