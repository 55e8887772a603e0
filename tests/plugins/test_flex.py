"""Packed attention with a bias by FlexAttention: its mask, its bias and its blocks on CPU, its gradients on CUDA.

Parity of the whole function, gradients included, is in ``test_kernel_parity.py`` and needs a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from protloom import kernels
from protloom.contracts import Offsets
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom_plugins.kernels import flex, native, reference

# on CPU it is called uncompiled, which is the point here
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "bias": {},
    "causal": {"causal": True},
    "window": {"window": 5},
    "causal window": {"causal": True, "window": 3},
}
LENGTHS = [1, 0, 37, 128, 2, 150, 1]
OTHERS = [4, 3, 0, 60, 140, 9, 1]


@pytest.mark.parametrize("others", [LENGTHS, OTHERS], ids=["self", "crossed"])
@pytest.mark.parametrize("case", CASES)
def test_the_formulas_are_those_of_packed_attention(case: str, others: list[int]) -> None:
    """FlexAttention as PyTorch interprets it, which on CPU can go forward."""
    generator = torch.Generator().manual_seed(3)
    cu_q, cu_k = Offsets.of(LENGTHS), Offsets.of(others)
    q = torch.randn(cu_q.total, 2, 16, generator=generator)
    k, v = torch.randn(2, cu_k.total, 2, 16, generator=generator)
    bias = torch.randn(2, 2 * 160 - 1, generator=generator)  # reaches further than needed
    options = {"causal": False, "window": None, **CASES[case]}
    with torch.no_grad():
        found = flex.packed(q, k, v, cu_q, cu_k, scale=0.5, bias=bias, run=flex_attention, **options)
    wanted = reference.attention(*(x.double() for x in (q, k, v)), cu_q, cu_k, scale=0.5, bias=bias.double(), **options)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "others"),
    [
        (LENGTHS, LENGTHS),
        (LENGTHS, OTHERS),
        ([128, 128, 1], [128, 128, 1]),
        ([500], [500]),
        ([3] * 100, [0] * 99 + [5]),
    ],
)
def test_no_block_is_left_out(lengths: list[int], others: list[int]) -> None:
    """Every pair that is seen lies in a block that is computed, and blocks of strangers are skipped."""
    bounds_q, bounds_k = Offsets.of(lengths).bounds, Offsets.of(others).bounds
    where = flex.layout(bounds_q, bounds_k, CPU)
    rows, columns = torch.arange(bounds_q[-1])[:, None], torch.arange(bounds_k[-1])[None, :]
    seen = flex.mask_of(where, False, None)(torch.tensor(0), torch.tensor(0), rows, columns)
    counts, indices = flex.blocks(bounds_q, bounds_k)
    assert all(sorted(row) == list(range(indices.shape[1])) for row in indices.tolist())
    for i, (count, row) in enumerate(zip(counts.tolist(), indices.tolist(), strict=True)):
        block = seen[i * flex.BLOCK : (i + 1) * flex.BLOCK]
        needed = {int(j) // flex.BLOCK for j in block.any(0).nonzero().flatten()}
        computed = set(row[:count])
        assert needed <= computed
        # between the first and the last block that is needed none is skipped, beyond them all are
        if needed:
            assert computed <= set(range(min(needed), max(needed) + 1))


def test_a_bias_that_is_too_short_is_refused() -> None:
    cu, x = Offsets.of([20]), torch.randn(20, 1, 16)
    with pytest.raises(ValueError, match="covers sequences up to 4 tokens, not 20"):
        flex.packed(x, x, x, cu, cu, scale=1.0, causal=False, window=None, bias=torch.zeros(1, 7), run=flex_attention)


def test_what_it_leaves_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(native, "attention", lambda *a, **o: called.append(o["bias"]))
    monkeypatch.setattr(flex, "packed", lambda *a, **o: called.append("flex"))
    monkeypatch.setattr(flex, "_compiled", lambda: None)
    cu, x, bias = Offsets.of([3]), torch.randn(3, 2, 16), torch.zeros(2, 5)
    flex.attention(x, x, x, cu, cu, scale=1.0)
    flex.attention(x[..., :12], x, x, cu, cu, scale=1.0, bias=bias)
    flex.attention(x, x, x, cu, cu, scale=1.0, bias=bias)
    assert called[0] is None
    assert called[1] is bias
    assert called[2] == "flex"


def test_it_is_told_that_it_needs_cuda() -> None:
    with pytest.raises(UserError, match=r"backend 'flex' cannot run on cpu: FlexAttention has no backward pass on cpu"):
        kernels.choose({"attention": "flex"}, Registry.discover(), CPU, torch.float32)
