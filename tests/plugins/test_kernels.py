"""Kernel backends against the reference in float64, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from protloom import ops
from protloom.contracts import Offsets
from protloom_plugins.kernels import native, reference

CPU = torch.device("cpu")
BACKENDS = [reference.ReferenceBackend(), native.TorchBackend()]
OWN = {backend.name: backend for backend in BACKENDS}
FP32 = {"rtol": 1e-5, "atol": 1e-5}
# bf16 keeps 8 bits: half a unit in the last place is 2e-3, and a few roundings follow one another
FORWARD = {torch.float32: FP32, torch.bfloat16: {"rtol": 1.6e-2, "atol": 3e-4}}
BACKWARD = {torch.float32: FP32, torch.bfloat16: {"rtol": 1.6e-2, "atol": 3e-3}}
# products of rounded intermediates cancel, so small sums carry the rounding of large terms
COMPOSED = {torch.float32: FP32, torch.bfloat16: {"rtol": 5e-2, "atol": 4e-2}}
DTYPES = [torch.float32, torch.bfloat16]
Function = Callable[..., Tensor]


def gradients(function: Function, inputs: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the output and the gradient of a weighted sum of it with respect to every floating input."""
    leaves = {name: x.detach().clone().requires_grad_(x.is_floating_point()) for name, x in inputs.items()}
    out = function(**leaves, **options)
    weights = torch.linspace(-1, 1, max(out.numel(), 1), dtype=torch.float64)[: out.numel()].view(out.shape)
    (out.double() * weights).sum().backward()
    return out, {name: x.grad for name, x in leaves.items() if x.grad is not None}


def close(got: Tensor, want: Tensor, tolerance: Mapping[str, float]) -> None:
    """Asserts agreement; the absolute tolerance is meant for numbers up to 1 and grows with larger ones."""
    largest = float(want.detach().abs().max()) if want.numel() else 0.0
    bound = tolerance["atol"] * max(1.0, largest)
    torch.testing.assert_close(got.double(), want, rtol=tolerance["rtol"], atol=bound)


def agree(name: str, backend: ops.Backend, inputs: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> None:
    """Compares a backend in ``dtype`` with the reference in float64 on the same (rounded) numbers."""
    rounded = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
    exact = {key: x.double() if x.is_floating_point() else x for key, x in rounded.items()}
    out, grads = gradients(backend.functions(CPU, dtype)[name], rounded, **options)
    want, want_grads = gradients(getattr(reference, name), exact, **options)
    assert want.dtype == torch.float64
    assert out.shape == want.shape
    composed = name in ("gated_mlp", "attention")
    close(out, want, (COMPOSED if composed else FORWARD)[dtype])
    assert grads.keys() == want_grads.keys()
    for key, grad in grads.items():
        # parameters sum over rows, in bf16 here
        summed = composed or (key in ("weight", "bias") and dtype == torch.bfloat16)
        close(grad, want_grads[key], (COMPOSED if summed else BACKWARD)[dtype])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(7)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 31, 320])
@pytest.mark.parametrize("rows", [0, 5])
class TestRowwise:
    def test_layer_norm(self, backend: ops.Backend, dtype: torch.dtype, width: int, rows: int) -> None:
        inputs = {"x": 3 * torch.randn(rows, width) + 1, "weight": torch.randn(width), "bias": torch.randn(width)}
        # one number has no variance: its gradient is rounding times ε^-½, so ε is not tiny there
        agree("layer_norm", backend, inputs, dtype, eps=1e-5 if width > 1 else 1e-1)

    def test_rms_norm(self, backend: ops.Backend, dtype: torch.dtype, width: int, rows: int) -> None:
        agree("rms_norm", backend, {"x": torch.randn(rows, width), "weight": torch.randn(width)}, dtype, eps=1e-6)

    def test_gelu(self, backend: ops.Backend, dtype: torch.dtype, width: int, rows: int) -> None:
        agree("gelu", backend, {"x": 4 * torch.randn(rows, width)}, dtype)

    @pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
    def test_gated_mlp(self, backend: ops.Backend, dtype: torch.dtype, width: int, rows: int, activation: str) -> None:
        inner = 2 * width + 1
        inputs = {
            "x": torch.randn(rows, width),
            "gate": torch.randn(inner, width) / math.sqrt(width),
            "up": torch.randn(inner, width) / math.sqrt(width),
            "down": torch.randn(width, inner) / math.sqrt(inner),
        }
        agree("gated_mlp", backend, inputs, dtype, activation=activation)

    def test_cross_entropy(self, backend: ops.Backend, dtype: torch.dtype, width: int, rows: int) -> None:
        inputs = {"logits": 5 * torch.randn(rows, width), "targets": torch.randint(0, width, (rows,))}
        out, _ = gradients(
            backend.functions(CPU, dtype)["cross_entropy"],
            {"logits": inputs["logits"].to(dtype), "targets": inputs["targets"]},
        )
        assert out.dtype == torch.float32
        agree("cross_entropy", backend, inputs, dtype)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("tokens", "heads", "size"), [(0, 2, 8), (7, 1, 2), (70, 5, 24)])
def test_rotary(backend: ops.Backend, dtype: torch.dtype, tokens: int, heads: int, size: int) -> None:
    angles = torch.rand(tokens, size // 2) * 100
    wide = angles.double()
    rounded = {"x": torch.randn(tokens, heads, size).to(dtype)}
    out, grads = gradients(lambda x: backend.functions(CPU, dtype)["rotary"](x, angles.cos(), angles.sin()), rounded)
    want, want_grads = gradients(lambda x: reference.rotary(x, wide.cos(), wide.sin()), {"x": rounded["x"].double()})
    close(out, want, FORWARD[dtype])
    close(grads["x"], want_grads["x"], BACKWARD[dtype])


def test_rotary_turns_pairs() -> None:
    x = torch.randn(9, 3, 6, dtype=torch.float64)
    angles = torch.rand(9, 3, dtype=torch.float64)
    turned = reference.rotary(x, angles.cos(), angles.sin())
    pairs = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * angles).unsqueeze(1)
    torch.testing.assert_close(turned, torch.cat((pairs.real, pairs.imag), dim=-1))


# ------------------------------------------------------------------------------------------------------ attention

LENGTHS = [1, 5, 33, 0, 200]  # the last one is above the length from which fp32 uses SDPA


def attend(
    function: Function, lengths_q: list[int], lengths_k: list[int], dtype: torch.dtype, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs attention on seeded inputs, rounded to bf16 so that every precision sees the same numbers."""
    generator = torch.Generator().manual_seed(3)
    cu_q, cu_k = Offsets.of(lengths_q), Offsets.of(lengths_k)
    heads, size = 3, 16
    inputs = {
        name: torch.randn(cu.total, heads, size, generator=generator).bfloat16().to(dtype)
        for name, cu in (("q", cu_q), ("k", cu_k), ("v", cu_k))
    }
    if options.pop("bias", False):
        reach = max([*lengths_q, *lengths_k, 1])
        inputs["bias"] = torch.randn(heads, 2 * reach + 5, generator=generator).bfloat16().to(dtype)
    return gradients(lambda **x: function(cu_q=cu_q, cu_k=cu_k, **x, **options), inputs)


CASES = {
    "plain": {"scale": 0.25},
    "unscaled": {"scale": 1.0},
    "causal": {"scale": 0.25, "causal": True},
    "window": {"scale": 0.25, "window": 4},
    "causal window": {"scale": 0.25, "window": 3, "causal": True},
    "bias": {"scale": 0.5, "bias": True},
    "bias window": {"scale": 0.5, "bias": True, "window": 7},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths_k", [LENGTHS, [3, 8, 1, 4, 250]], ids=["self", "cross"])
@pytest.mark.parametrize("function", [native.attention, native._padded_attention], ids=["packed", "padded"])
def test_attention(function: Function, dtype: torch.dtype, case: str, lengths_k: list[int]) -> None:
    out, grads = attend(function, LENGTHS, lengths_k, dtype, **CASES[case])
    want, want_grads = attend(reference.attention, LENGTHS, lengths_k, torch.float64, **CASES[case])
    close(out, want, COMPOSED[dtype])
    assert grads.keys() == want_grads.keys()
    for name, grad in grads.items():
        close(grad, want_grads[name], COMPOSED[dtype])


@pytest.mark.parametrize("case", CASES)
def test_attention_reference_is_the_dense_formula(case: str) -> None:
    """One dense softmax over all tokens, with everything else masked, written without any of the backends."""
    options = dict(CASES[case])
    lengths = [2, 9, 4]
    cu = Offsets.of(lengths)
    q, k, v = torch.randn(3, cu.total, 2, 4, dtype=torch.float64)
    bias = torch.randn(2, 2 * 9 - 1, dtype=torch.float64) if options.pop("bias", False) else None
    got = reference.attention(q, k, v, cu, cu, bias=bias, **options)
    for head in range(2):
        scores = torch.full((cu.total, cu.total), -math.inf, dtype=torch.float64)
        for start, end in zip(cu.bounds, cu.bounds[1:], strict=False):
            for i in range(start, end):
                for j in range(start, end):
                    if (options.get("causal") and j > i) or abs(i - j) > options.get("window", 99):
                        continue
                    scores[i, j] = options["scale"] * (q[i, head] @ k[j, head])
                    scores[i, j] += 0 if bias is None else bias[head, 9 - 1 + j - i]
        torch.testing.assert_close(got[:, head], scores.softmax(-1) @ v[:, head])


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("lengths_k", [[], [4]], ids=["no keys", "keys of nobody"])
def test_attention_without_sequences_has_zero_gradients(backend: ops.Backend, lengths_k: list[int]) -> None:
    lengths_q = [0] * len(lengths_k)
    function = backend.functions(CPU, torch.float32)["attention"]
    out, grads = attend(function, lengths_q, lengths_k, torch.float32, scale=1.0, bias=True)
    assert out.shape == (0, 3, 16)
    assert set(grads) == {"q", "k", "v", "bias"}
    assert all(float(grad.abs().sum()) == 0 for grad in grads.values())


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_a_query_that_sees_no_key_gets_zeros(backend: ops.Backend) -> None:
    function = backend.functions(CPU, torch.float32)["attention"]
    out, grads = attend(function, [10, 3], [2, 0], torch.float32, scale=1.0, window=2)
    assert float(out[:4].detach().abs().min()) > 0
    assert float(out[4:].detach().abs().max()) == 0
    assert all(bool(grad.isfinite().all()) for grad in grads.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_attention_does_not_depend_on_the_batch(dtype: torch.dtype, case: str) -> None:
    options = dict(CASES[case])
    cu = Offsets.of([40, 7, 230])
    q, k, v = torch.randn(3, cu.total, 2, 8).to(dtype)
    bias = torch.randn(2, 2 * 230 - 1).to(dtype) if options.pop("bias", False) else None
    together = native.attention(q, k, v, cu, cu, bias=bias, **options)
    for start, end in zip(cu.bounds, cu.bounds[1:], strict=False):
        one, rows = Offsets.of([end - start]), slice(start, end)
        alone = native.attention(q[rows], k[rows], v[rows], one, one, bias=bias, **options)
        assert torch.equal(alone, together[rows])


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_non_contiguous_inputs(backend: ops.Backend) -> None:
    table = backend.functions(CPU, torch.float32)
    cu = Offsets.of([4, 6])
    qkv = torch.randn(10, 3, 2, 8)
    q, k, v = qkv.unbind(1)
    assert not q.is_contiguous()
    expected = table["attention"](q.contiguous(), k.contiguous(), v.contiguous(), cu, cu, scale=0.3)
    torch.testing.assert_close(table["attention"](q, k, v, cu, cu, scale=0.3), expected)
    x = torch.randn(6, 5).T
    weight, bias = torch.randn(6), torch.randn(6)
    for name, arguments in (("layer_norm", (weight, bias)), ("rms_norm", (weight,))):
        torch.testing.assert_close(
            table[name](x, *arguments, eps=1e-5), table[name](x.contiguous(), *arguments, eps=1e-5)
        )
    turned = table["rotary"](q, torch.ones(10, 4), torch.zeros(10, 4))
    torch.testing.assert_close(turned, q)


def test_bias_shorter_than_the_sequences_is_refused() -> None:
    cu = Offsets.of([5])
    x = torch.randn(5, 1, 4)
    for function in (native.attention, reference.attention):
        with pytest.raises(ValueError, match="covers sequences up to 4"):
            function(x, x, x, cu, cu, scale=1.0, bias=torch.zeros(1, 7))


def test_cross_entropy_ignores_no_target() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(IndexError):
        native.cross_entropy(logits, torch.tensor([1, -100]))


# --------------------------------------------------------------------------------------- flash attention on CUDA


def refusal(**changes: Any) -> str | None:
    cu = Offsets.of([3, 5])
    arguments = {"cu_q": cu, "cu_k": cu, "scale": 1.0, "causal": False, "window": None, "bias": None, **changes}
    size = arguments.pop("size", 16)
    dtype = arguments.pop("dtype", torch.bfloat16)

    class OnDevice:  # what the rule reads of a tensor, without a device
        device = torch.device("cuda", 0)
        shape = (8, 2, size)

    OnDevice.dtype = dtype
    return native.varlen_refusal(OnDevice(), **arguments)  # type: ignore[arg-type]


def test_varlen_is_used_only_where_it_is_legal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(native, "varlen_options", lambda: frozenset({"scale", "window_size"}))
    assert refusal() is None
    assert refusal(causal=True, window=4) is None
    assert "half precision" in (refusal(dtype=torch.float32) or "")
    assert "head sizes" in (refusal(size=12) or "")
    assert "no bias" in (refusal(bias=torch.zeros(1, 9)) or "")
    assert "unequal lengths" in (refusal(causal=True, cu_k=Offsets.of([4, 5])) or "")
    monkeypatch.setattr(native, "varlen_options", lambda: frozenset({"is_causal"}))
    assert refusal(scale=0.25, causal=True) is None  # 1/√16 is what a fixed scale means
    assert "fixed scale" in (refusal(scale=1.0) or "")
    assert "no window" in (refusal(scale=0.25, window=4) or "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert "8.0" in (refusal() or "")


def test_varlen_options_are_those_of_this_pytorch() -> None:
    assert {"query", "max_q"} <= native.varlen_options()


# ------------------------------------------------------------------------------------------- clipping and AdamW


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("limit", [0.5, 1e6])
def test_clip_grad_norm(backend: ops.Backend, limit: float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,))]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn_like(parameter)
    before = [p.grad.clone() for p in parameters[:2] if p.grad is not None]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in before))
    got = backend.functions(CPU, torch.float32)["clip_grad_norm"](iter(parameters), limit)
    assert got.ndim == 0
    assert float(got) == pytest.approx(norm, rel=1e-6)
    for parameter, old in zip(parameters, before, strict=False):
        torch.testing.assert_close(parameter.grad, old * min(1.0, limit / (norm + 1e-6)))
    assert parameters[2].grad is None


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_clip_grad_norm_of_nothing(backend: ops.Backend) -> None:
    assert float(backend.functions(CPU, torch.float32)["clip_grad_norm"]([], 1.0)) == 0


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_clip_grad_norm_of_sharded_gradients(backend: ops.Backend) -> None:
    """DTensors on a one-process mesh: the norm must come back whole, as a plain tensor."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain = torch.randn(6, 2)
        parameter = torch.nn.Parameter(distribute_tensor(torch.zeros(6, 2), mesh, [Shard(0)]))
        parameter.grad = distribute_tensor(plain.clone(), mesh, [Shard(0)])
        got = backend.functions(CPU, torch.float32)["clip_grad_norm"]([parameter], 0.5)
        assert type(got) is Tensor
        torch.testing.assert_close(got, plain.norm())
        torch.testing.assert_close(parameter.grad.full_tensor(), plain * 0.5 / (plain.norm() + 1e-6))
    finally:
        dist.destroy_process_group()


def adamw_steps(make: Callable[..., torch.optim.Optimizer], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in ((4, 3), (5,))]
    groups = [
        {"params": parameters[:1], "names": ["a"], "lr_scale": 0.5, "weight_decay_scale": 1.0},
        {"params": parameters[1:], "names": ["b"], "lr_scale": 1.0, "weight_decay_scale": 0.0},
    ]
    optimizer = make(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    for group in optimizer.param_groups:
        assert {"names", "lr_scale", "weight_decay_scale"} <= group.keys()
    for _ in range(20):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()
    return [p.detach() for p in parameters]


def test_adamw_is_the_published_rule() -> None:
    """20 steps by hand in float64: θ ← θ − lr·λ·θ − lr·m̂ / (√v̂ + ε)."""
    generator = torch.Generator().manual_seed(1)
    values = [torch.randn(s, generator=generator).double() for s in ((4, 3), (5,))]
    moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x in values]
    for t in range(1, 21):
        for i, (rate, decay) in enumerate(((0.005, 0.1), (0.01, 0.0))):
            gradient = torch.randn(values[i].shape, generator=generator).double()
            m = 0.9 * moments[i][0] + 0.1 * gradient
            v = 0.98 * moments[i][1] + 0.02 * gradient**2
            moments[i] = (m, v)
            step = (m / (1 - 0.9**t)) / ((v / (1 - 0.98**t)).sqrt() + 1e-8)
            values[i] = values[i] - rate * decay * values[i] - rate * step
    for got in (adamw_steps(b.functions(CPU, torch.float32)["adamw"], torch.float64) for b in BACKENDS):
        for mine, theirs in zip(got, values, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_adamw_is_fused_here_and_its_state_fits_the_reference() -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    groups = [{"params": [parameter], "names": ["p"], "lr_scale": 1.0, "weight_decay_scale": 1.0}]
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    fused = native.adamw(groups, **options)
    assert fused.param_groups[0]["fused"] is True
    parameter.grad = torch.ones(3)
    fused.step()
    plain = reference.adamw(groups, **options)
    plain.load_state_dict(fused.state_dict())
    assert plain.state[parameter].keys() == fused.state[parameter].keys()


# ------------------------------------------------------------------------------------------------------- choosing


def test_auto_takes_torch_and_a_name_takes_the_reference() -> None:
    assert set(ops.select("auto", OWN, {}, CPU, torch.float32).chosen.values()) == {"torch"}
    named = ops.select({"rms_norm": "reference"}, OWN, {}, CPU, torch.float32)
    assert named.chosen["rms_norm"] == "reference"
    assert named.chosen["attention"] == "torch"
    assert set(BACKENDS[0].functions(CPU, torch.float32)) == set(ops.NAMES)
    assert set(BACKENDS[1].functions(CPU, torch.float32)) == set(ops.NAMES)


def test_works_under_autocast() -> None:
    x, weight = torch.randn(4, 8), torch.randn(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = F.linear(x, torch.randn(8, 8))
        assert half.dtype == torch.bfloat16
        cu = Offsets.of([1, 3])
        out = native.attention(*(half.view(4, 2, 4) for _ in range(3)), cu, cu, scale=0.5)
        assert out.dtype == torch.bfloat16
        for norm in (native.rms_norm(half, weight, eps=1e-6), native.layer_norm(half, weight, weight, eps=1e-6)):
            assert bool(norm.isfinite().all())


@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_norms_of_fp32_states_stay_exact_under_autocast(name: str) -> None:
    """The residual stream is fp32 there, and so are its statistics, forward and backward."""
    arguments = [torch.randn(64)] * (1 if name == "rms_norm" else 2)
    function = getattr(native, name)
    found = []
    for enabled in (False, True):
        x = (3 * torch.randn(5, 64, generator=torch.Generator().manual_seed(0))).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = function(x, *arguments, eps=1e-6)
            out.square().sum().backward()
        found.append((out, x.grad))
    for plain, under in zip(*found, strict=True):
        assert torch.equal(plain, under)
