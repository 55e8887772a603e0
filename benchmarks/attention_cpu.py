"""What the ``torch`` kernel backend chooses on CPU, beside the forms that it did not choose.

    python benchmarks/attention_cpu.py [--rounds 9] [--threads 1] [--out benchmarks/results/attention_cpu.md]

Every variant of a row runs once a round, in turn, forward and backward; the figures are medians of rounds in
milliseconds of processor time, which other programs on the machine disturb least. Before a row is timed its variants
are compared: outputs that differ by more than the precision allows end the benchmark.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from protloom.contracts import Offsets
from protloom_plugins.kernels import native, reference

SHAPES = (
    # heads, head size: ESM-2 8M, 35M, 150M, 650M; a small T5
    (20, 16),
    (20, 24),
    (20, 32),
    (20, 64),
    (8, 32),
)
LENGTHS: Mapping[str, Sequence[int]] = {
    "32 × 16": [32] * 16,
    "128 × 8": [128] * 8,
    "192 × 5": [192] * 5,
    "256 × 4": [256] * 4,
    "512 × 2": [512] * 2,
    "mixed": [300, 77, 510, 130],
}
Variant = Callable[[], Tensor]


def plain(q: Tensor, k: Tensor, v: Tensor, cu: Offsets, scale: float) -> Tensor:
    """Three plain operations a sequence."""
    parts = (x.transpose(0, 1).contiguous().split(cu.lengths, dim=1) for x in (q, k, v))
    outputs = []
    for left, right, values in zip(*parts, strict=True):
        scores = torch.baddbmm(left.new_empty(1, 1, 1), left, right.transpose(1, 2), beta=0, alpha=scale)
        outputs.append(torch.bmm(scores.softmax(-1), values))
    return torch.cat(outputs, dim=1).transpose(0, 1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, cu: Offsets, scale: float) -> Tensor:
    """Scaled dot product attention, sequence by sequence."""
    parts = (x.transpose(0, 1).contiguous().split(cu.lengths, dim=1) for x in (q, k, v))
    outputs = [
        F.scaled_dot_product_attention(*(x.unsqueeze(0) for x in one), scale=scale)[0]
        for one in zip(*parts, strict=True)
    ]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def grouped(q: Tensor, k: Tensor, v: Tensor, cu: Offsets, scale: float) -> Tensor:
    """Three plain operations over all sequences of one length; only for batches that have a single length."""
    n, length = cu.n, cu.longest
    left, right, values = (
        x.view(n, length, *x.shape[1:]).transpose(1, 2).flatten(0, 1)
        for x in (q, k, v)  # [n·H, L, d]
    )
    scores = torch.baddbmm(left.new_empty(1, 1, 1), left, right.transpose(1, 2), beta=0, alpha=scale)
    out = torch.bmm(scores.softmax(-1), values)
    return out.unflatten(0, (n, -1)).transpose(1, 2).flatten(0, 1)


def rotary_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotation as it is usually written."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def medians(make: Callable[[], Mapping[str, Variant]], rounds: int) -> dict[str, float]:
    """Returns milliseconds of forward and backward of each variant, all of them once a round.

    Args:
        make: returns the variants of a round.
        rounds: that count; one before fills caches.
    """
    times: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, variant in make().items():
            start = time.process_time()
            out = variant()
            out.backward(torch.ones_like(out))
            if turn:
                times.setdefault(name, []).append(1e3 * (time.process_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def check(variants: Mapping[str, Variant], dtype: torch.dtype) -> None:
    """Ends the benchmark if variants do not compute the same."""
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    first, *others = (variant().float() for variant in variants.values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=tolerance, atol=tolerance)


def attention_variants(lengths: Sequence[int], heads: int, size: int, dtype: torch.dtype) -> dict[str, Variant]:
    """Returns the forms of attention on random inputs with these lengths."""
    cu, scale = Offsets.of(lengths), size**-0.5
    inputs = [torch.randn(cu.total, heads, size).to(dtype).requires_grad_() for _ in range(3)]
    variants: dict[str, Variant] = {
        "plain": lambda: plain(*inputs, cu, scale),
        "sdpa": lambda: sdpa(*inputs, cu, scale),
        "chosen": lambda: native.attention(*inputs, cu, cu, scale=scale),
    }
    if len(set(lengths)) == 1:
        variants["grouped"] = lambda: grouped(*inputs, cu, scale)
    return variants


def attention_rows(dtype: torch.dtype, rounds: int) -> list[str]:
    """Returns the lines of the attention table for one type."""
    rows = []
    for heads, size in SHAPES:
        for name, lengths in LENGTHS.items():
            variants = attention_variants(lengths, heads, size, dtype)
            check(variants, dtype)
            rows.append(_attention_row(dtype, heads, size, name, medians(lambda v=variants: v, rounds)))
        rng = np.random.default_rng(heads * size)

        def proteins(rng: np.random.Generator = rng, heads: int = heads, size: int = size) -> dict[str, Variant]:
            lengths = np.clip(rng.lognormal(np.log(255), 0.5, 7), 30, 512).astype(int).tolist()
            return attention_variants(lengths, heads, size, dtype)

        rows.append(_attention_row(dtype, heads, size, "proteins", medians(proteins, 2 * rounds)))
    return rows


def _attention_row(dtype: torch.dtype, heads: int, size: int, name: str, took: Mapping[str, float]) -> str:
    best = min(took[key] for key in ("plain", "sdpa"))
    together = f"{took['grouped']:.1f}" if "grouped" in took else "–"
    cells = f"{took['plain']:.1f} | {took['sdpa']:.1f} | {together} | {took['chosen']:.1f}"
    row = f"| {str(dtype)[6:]} | {heads} × {size} | {name} | {cells} | {took['chosen'] / best:.2f} |"
    print(row, flush=True)
    return row


def rowwise_rows(dtype: torch.dtype, rounds: int) -> list[str]:
    """Returns the lines of the table of rotary positions and norms for one type."""
    rows = []
    tokens, width = 2048, 320
    for heads, size in SHAPES[:4]:
        qkv = torch.randn(tokens, 3, heads, size).to(dtype).requires_grad_()
        angles = torch.rand(tokens, size // 2)
        cos, sin = angles.cos(), angles.sin()
        variants: dict[str, Variant] = {
            # attention reads [H, T, d]: whoever did not write it so pays for the copy
            "formula": lambda x=qkv, c=cos, s=sin: (
                rotary_formula(x[:, :2].flatten(1, 2), c, s).transpose(0, 1).contiguous()
            ),
            "chosen": lambda x=qkv, c=cos, s=sin: (
                native.rotary(x[:, :2].flatten(1, 2), c, s).transpose(0, 1).contiguous()
            ),
        }
        check(variants, dtype)
        took = medians(lambda v=variants: v, rounds)
        rows.append(_row(dtype, f"rotary, {2 * heads} × {size}", took["formula"], took["chosen"]))
    x = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight = torch.randn(width, requires_grad=True)
    bias = torch.zeros(width, requires_grad=True)
    norms: dict[str, dict[str, Variant]] = {
        f"rms_norm, {width}": {
            "formula": lambda: F.rms_norm(x, (width,), weight.to(dtype), 1e-6),
            "chosen": lambda: native.rms_norm(x, weight, eps=1e-6),
        },
        f"layer_norm, {width}": {
            "formula": lambda: reference.layer_norm(x, weight, bias, eps=1e-5),
            "chosen": lambda: native.layer_norm(x, weight, bias, eps=1e-5),
        },
    }
    for name, variants in norms.items():
        check(variants, dtype)
        took = medians(lambda v=variants: v, rounds)
        rows.append(_row(dtype, name, took["formula"], took["chosen"]))
    return rows


def _row(dtype: torch.dtype, name: str, other: float, chosen: float) -> str:
    row = f"| {str(dtype)[6:]} | {name} | {other:.1f} | {chosen:.1f} | {other / chosen:.1f}× |"
    print(row, flush=True)
    return row


def main() -> None:
    """Compares, measures and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtypes = (torch.float32, torch.bfloat16)
    attention = [row for dtype in dtypes for row in attention_rows(dtype, args.rounds)]
    rowwise = [row for dtype in dtypes for row in rowwise_rows(dtype, args.rounds)]
    text = "\n".join(
        [
            "# Attention, rotary positions and norms on CPU",
            "",
            "Milliseconds of processor time, forward + backward, medians of "
            f"{args.rounds} interleaved rounds, {args.threads} thread(s). "
            f"{platform.machine()}, torch {torch.__version__}. Made by `benchmarks/attention_cpu.py`.",
            "",
            "`plain`: matmul, softmax, matmul, a sequence at a time. `grouped`: the same over all sequences at once, "
            "which needs one length. `chosen`: what the backend takes: in fp32 SDPA from "
            f"{native.cpu.SDPA_FROM} keys on, else plain; in bf16 exponentials with lengths rounded to "
            f"{native.cpu_attention.STEP}. Rows with stated lengths meet the same shapes in every round; `proteins` "
            "are 7 lengths like those of proteins (log-normal, 30 to 512), new in every round, as training meets them. "
            "`chosen / best`: against the better of plain and SDPA.",
            "",
            "| type | heads × size | lengths | plain | sdpa | grouped | chosen | chosen / best |",
            "|---|---|---|--:|--:|--:|--:|--:|",
            *attention,
            "",
            "2,048 tokens; rotary from the projection to what attention reads. `other`: the usual formula (rotary, "
            "layer_norm) or PyTorch's own function (rms_norm).",
            "",
            "| type | function | other | chosen | ratio |",
            "|---|---|--:|--:|--:|",
            *rowwise,
            "",
        ]
    )
    if args.out is not None:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
