"""Attention by exponentials on CPU: grouping, padding and shifts change nothing that can be seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from protloom.contracts import Offsets
from protloom_plugins.kernels import cpu, cpu_attention, reference

HEADS, SIZE = 3, 16


def inputs(lengths: list[int], *, factor: float = 1.0, seed: int = 0) -> tuple[list[Tensor], Offsets]:
    generator = torch.Generator().manual_seed(seed)
    cu = Offsets.of(lengths)
    tensors = [torch.randn(cu.total, HEADS, SIZE, generator=generator) for _ in range(3)]
    tensors[0] *= factor
    return [x.bfloat16() for x in tensors], cu


def with_gradients(function: object, tensors: list[Tensor], cu: Offsets, dtype: torch.dtype) -> list[Tensor]:
    leaves = [x.detach().clone().to(dtype).requires_grad_() for x in tensors]
    out = function(*leaves, cu, cu, scale=0.25)  # type: ignore[operator]
    out.backward(torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(dtype))
    return [out.detach(), *[leaf.grad for leaf in leaves if leaf.grad is not None]]


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want).norm() / want.norm())


@pytest.mark.parametrize("factor", [0.0, 1.0, 10.0, 60.0, 1000.0], ids=lambda f: f"scores times {f:g}")
def test_scores_of_any_size_are_as_exact_as_by_a_softmax(factor: float) -> None:
    tensors, cu = inputs([5, 40, 33, 70], factor=factor)
    got = with_gradients(cpu_attention.attention, tensors, cu, torch.bfloat16)
    want = with_gradients(reference.attention, tensors, cu, torch.float64)
    usual = with_gradients(cpu.attention, tensors, cu, torch.bfloat16)
    for mine, softmax, exact in zip(got, usual, want, strict=True):
        if float(exact.norm()) == 0:  # gradients of the keys where all queries are zeros
            assert float(mine.abs().max()) == 0
        else:
            # large scores, rounded to bf16, are far off whatever the form
            assert relative_error(mine, exact) < 1.4 * relative_error(softmax, exact)


@pytest.mark.parametrize("offset", [-1e4, -100.0, 100.0, 1e4])
def test_adding_a_constant_to_all_scores_changes_little(offset: float) -> None:
    tensors, cu = inputs([40, 64])
    bias = torch.full((HEADS, 127), offset)
    plain = cpu_attention.attention(*tensors, cu, cu, scale=0.25)
    moved = cpu_attention.attention(*tensors, cu, cu, scale=0.25, bias=bias)
    # bf16 keeps 8 bits: next to 100 scores are rounded to ½, next to 10,000 they are all alike
    alike = torch.zeros_like(tensors[0])
    flat = cpu_attention.attention(alike, *tensors[1:], cu, cu, scale=0.25)
    if abs(offset) > 1000:
        torch.testing.assert_close(moved, flat, rtol=0.02, atol=0.02)
    else:
        assert relative_error(moved, plain.double()) < 0.3
        assert relative_error(moved, flat.double()) > 0.3


def test_an_extreme_neighbour_changes_no_bit() -> None:
    (q, k, v), cu = inputs([40, 50, 45])
    alone = cpu_attention.attention(q[40:90], k[40:90], v[40:90], Offsets.of([50]), Offsets.of([50]), scale=0.25)
    q[:40] *= 500.0
    q[90:] *= -500.0
    together = cpu_attention.attention(q, k, v, cu, cu, scale=0.25)
    assert torch.equal(together[40:90], alone)


def test_groups_hold_each_sequence_once_and_bound_their_scores() -> None:
    lengths = [(5, 5), (0, 7), (200, 200), (6, 30), (31, 1), (7, 0), (512, 512), (500, 490)] + [(100, 100)] * 300
    found = cpu_attention.groups(lengths, heads=20)
    rows = sorted(span for group in found for span in group.rows)
    starts = [sum(q for q, _ in lengths[:i]) for i in range(len(lengths))]
    assert rows == sorted((start, q) for start, (q, k) in zip(starts, lengths, strict=True) if q and k)
    for group in found:
        assert all(group.queries - cpu_attention.STEP < n <= group.queries for _, n in group.rows)
        assert all(group.keys - cpu_attention.STEP < n <= group.keys for _, n in group.columns)
        scores = len(group.rows) * 20 * group.queries * group.keys
        assert len(group.rows) == 1 or scores <= cpu_attention.GROUPED_SCORES
    assert max(len(group.rows) for group in found) > 1


def test_not_finite_inputs_are_told_by_the_result() -> None:
    (q, k, v), cu = inputs([40, 50])
    q[3] = torch.nan
    out = cpu_attention.attention(q, k, v, cu, cu, scale=0.25)
    assert bool(out[3].isnan().all())
    assert bool(out[40:].isfinite().all())


def test_a_bias_that_is_too_short_is_refused() -> None:
    tensors, cu = inputs([40])
    with pytest.raises(ValueError, match="up to 30 tokens, not 40"):
        cpu_attention.attention(*tensors, cu, cu, scale=1.0, bias=torch.zeros(HEADS, 59))
