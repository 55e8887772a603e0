"""Programs for the GPU in Triton: norms, gated activations, cross entropy over small vocabularies.

Each works on tiles of whole rows, so a row's sums stay in one program. Nothing uses atomics: what is summed over rows
is written once by every program and added up by PyTorch, so that two runs on one device give the same bits. Arithmetic
is fp32 whatever comes in. Importing this module needs Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

# without types but for constants: Triton reads annotations, and takes the types of the rest from the arguments


@triton.jit(do_not_specialize=["rows"])
def norm_forward(
    x,
    weight,
    bias,
    y,
    means,
    inverses,
    rows,
    width,
    eps,
    CENTRED: tl.constexpr,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes (x − mean) / √(mean square + ε) · weight + bias, and the mean and the inverse root of each row.

    ``CENTRED`` subtracts the mean (layer norm); ``SCALED`` and ``SHIFTED`` tell which parameters there are.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if CENTRED:
        mean = tl.sum(values, axis=1) / width
        tl.store(means + row, mean, mask=row < rows)
        values = tl.where(inside, values - mean[:, None], 0.0)
    inverse = 1.0 / tl.sqrt(tl.sum(values * values, axis=1) / width + eps)
    tl.store(inverses + row, inverse, mask=row < rows)
    out = values * inverse[:, None]
    if SCALED:
        out = out * tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    if SHIFTED:
        out = out + tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    tl.store(y + place, out.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "tiles"])
def norm_backward(
    grad,
    x,
    weight,
    means,
    inverses,
    x_grad,
    weight_parts,
    bias_parts,
    rows,
    width,
    tiles,
    CENTRED: tl.constexpr,
    SCALED: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Writes the gradient of ``x``, and of the parameters this program's part, ``[programs, D]``.

    A program works through ``tiles`` tiles that follow each other. With n the normalised row and g the gradient times
    the weight: ∂x = (g − mean(g) − n · mean(g·n)) / √(…), without mean(g) where no mean was subtracted.
    """
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    weight_sum = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    bias_sum = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    if SCALED:
        scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    for tile in range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        above = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverses + row, mask=row < rows, other=0.0)[:, None]
        if CENTRED:
            values = values - tl.load(means + row, mask=row < rows, other=0.0)[:, None]
        normed = tl.where(inside, values * inverse, 0.0)
        if SHIFTED:
            bias_sum += above
        if SCALED:
            weight_sum += above * normed
            above = above * scale
        below = above - normed * (tl.sum(above * normed, axis=1) / width)[:, None]
        if CENTRED:
            below = below - (tl.sum(above, axis=1) / width)[:, None]
        tl.store(x_grad + place, (below * inverse).to(x_grad.dtype.element_ty), mask=inside)
    if SCALED:
        tl.store(weight_parts + program * width + column, tl.sum(weight_sum, axis=0), mask=column < width)
    if SHIFTED:
        tl.store(bias_parts + program * width + column, tl.sum(bias_sum, axis=0), mask=column < width)


@triton.jit
def gated_forward(gate, up, out, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """Writes activation(gate) · up, element by element."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    a = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        a = a * tl.sigmoid(a)
    elif ACTIVATION == "gelu":
        a = 0.5 * a * (1.0 + tl.erf(a * 0.7071067811865476))
    else:
        # ½ (1 + tanh z) is the logistic function of 2z
        a = a * tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))
    tl.store(out + place, (a * b).to(out.dtype.element_ty), mask=inside)


@triton.jit
def gated_backward(grad, gate, up, gate_grad, up_grad, count, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """Writes the gradients of both factors; the activation is computed again, not kept."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    above = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        share = tl.sigmoid(a)
        slope = share * (1.0 + a * (1.0 - share))
    elif ACTIVATION == "gelu":
        share = 0.5 * (1.0 + tl.erf(a * 0.7071067811865476))
        slope = share + a * 0.3989422804014327 * tl.exp(-0.5 * a * a)
    else:
        share = tl.sigmoid(1.5957691216057308 * (a + 0.044715 * a * a * a))
        slope = share + a * share * (1.0 - share) * 1.5957691216057308 * (1.0 + 0.134145 * a * a)
    tl.store(gate_grad + place, (above * b * slope).to(gate_grad.dtype.element_ty), mask=inside)
    tl.store(up_grad + place, (above * a * share).to(up_grad.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def entropy_forward(logits, targets, losses, sums, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Writes log Σ exp and, less the logit of the target, the loss of each row; NaN where the target is no class."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    there = row < rows
    # a row beyond the last is computed as zeros and not written
    inside = (column < width)[None, :] & there[:, None]
    outside = tl.where(there, float("-inf"), 0.0)[:, None]
    place = row[:, None] * width + column[None, :]
    values = tl.where(inside, tl.load(logits + place, mask=inside, other=0.0).to(tl.float32), outside)
    top = tl.max(values, axis=1)
    total = top + tl.log(tl.sum(tl.exp(values - top[:, None]), axis=1))
    target = tl.load(targets + row, mask=there, other=0)
    found = tl.sum(tl.where(column[None, :] == target[:, None], values, 0.0), axis=1)
    known = (target >= 0) & (target < width)
    tl.store(sums + row, total, mask=there)
    tl.store(losses + row, tl.where(known, total - found, float("nan")), mask=there)


@triton.jit(do_not_specialize=["rows"])
def entropy_backward(grad, logits, targets, sums, logits_grad, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Writes (softmax − one at the target) · gradient of the row's loss."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    there = row < rows
    inside = there[:, None] & (column < width)[None, :]
    place = row[:, None] * width + column[None, :]
    values = tl.load(logits + place, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(sums + row, mask=there, other=0.0)
    target = tl.load(targets + row, mask=there, other=0)
    above = tl.load(grad + row, mask=there, other=0.0).to(tl.float32)
    share = tl.exp(values - total[:, None])
    share = tl.where(column[None, :] == target[:, None], share - 1.0, share)
    tl.store(logits_grad + place, (share * above[:, None]).to(logits_grad.dtype.element_ty), mask=inside)
