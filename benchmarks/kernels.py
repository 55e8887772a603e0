"""Every kernel backend side by side on this machine, forward and backward: what ``kernels: auto`` goes by.

    python benchmarks/kernels.py [--out benchmarks/results/kernels.md] [--record]

Backends take turns, all of them once a round; the figures are medians of rounds, of wall-clock time with the device
waited for, so that the time to launch counts where that is what a step waits for. Before a row is timed its backends
are compared: results or gradients that differ by more than the precision allows end the benchmark. Functions get what
networks give them: under bf16 norms see the fp32 residual stream, the rest what autocast makes of it.

``--record`` writes the figures of this GPU into the file from which ``auto`` reads which backend is faster.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protloom import ops
from protloom.contracts import Offsets
from protloom.plugins import Registry
from protloom_plugins.kernels import measured

COMPILED = "torch compiled"
"""Beside the backends: the functions of ``torch`` by torch.compile, as ``trainer.compile`` has them inside a block."""
COMPILABLE = ("layer_norm", "rms_norm", "gelu", "gated_mlp", "rotary", "cross_entropy")
Run = Callable[[], list[Tensor]]
"""One call with its backward pass; returns the result and the gradients."""
Bind = Callable[[Callable[..., Any]], Run]


@dataclass(frozen=True)
class Case:
    """A function at one size.

    Attributes:
        function: its name.
        size: in words.
        bind: gives a backend's function its inputs.
        composed: roundings follow one another, so results may differ by more.
    """

    function: str
    size: str
    bind: Bind
    composed: bool = False


@dataclass(frozen=True)
class Row:
    """Milliseconds of each backend for a case."""

    function: str
    size: str
    milliseconds: Mapping[str, float]


# ------------------------------------------------------------------------------------------------------------- inputs


class Inputs:
    """Draws what functions get, for one width and precision, always the same."""

    def __init__(self, width: int, tokens: int, half: bool, device: torch.device) -> None:
        self.width, self.tokens, self.device = width, tokens, device
        self.narrow = torch.bfloat16 if half else torch.float32
        self.half = half
        self._generator = torch.Generator().manual_seed(width)
        # heads as in ESM-2, which has 20 whatever its width
        self.heads = 20 if width % 160 == 0 else max(1, width // 64)

    def draw(self, *shape: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
        """Returns normal numbers on the device that want a gradient."""
        drawn = scale * torch.randn(shape, generator=self._generator)
        return drawn.to(self.device, dtype).requires_grad_()

    def lengths(self) -> list[int]:
        """Returns lengths like those of proteins, of about so many tokens together."""
        found: list[int] = []
        while sum(found) < self.tokens:
            drawn = math.exp(5.5 + 0.6 * float(torch.randn((), generator=self._generator)))
            found.append(min(512, max(30, int(drawn)), self.tokens - sum(found)))
        return found

    def differentiated(self, call: Callable[..., Tensor], *inputs: Tensor) -> Run:
        """Returns a run of a function of some inputs, all of which get a gradient."""
        above: list[Tensor] = []

        def run() -> list[Tensor]:
            with self.autocast():
                out = call(*inputs)
            if not above:
                above.append(torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view(out.shape))
            return [out, *torch.autograd.grad(out, inputs, above[0])]

        return run

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns autocast as the trainer sets it."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half)


def cases(width: int, tokens: int, half: bool, device: torch.device) -> Iterator[Case]:
    """Yields every function at a width."""
    given = Inputs(width, tokens, half, device)
    size = f"{tokens} × {width}"
    x, weight, bias = given.draw(tokens, width), given.draw(width), given.draw(width)
    yield Case("layer_norm", size, lambda f: given.differentiated(lambda *a: f(*a, eps=1e-5), x, weight, bias))
    yield Case("rms_norm", size, lambda f: given.differentiated(lambda *a: f(*a, eps=1e-6), x, weight))
    inner = given.draw(tokens, 4 * width, dtype=given.narrow)
    yield Case("gelu", f"{tokens} × {4 * width}", lambda f: given.differentiated(f, inner))
    wide = 8 * width // 3
    gate, up, down = (given.draw(*s, scale=s[1] ** -0.5) for s in ((wide, width), (wide, width), (width, wide)))
    for name in ("silu", "gelu_tanh"):
        yield Case(
            "gated_mlp",
            f"{size} × {wide}, {name}",
            lambda f, n=name: given.differentiated(lambda *a: f(*a, activation=n), x, gate, up, down),
            composed=True,
        )
    yield from _attention_cases(given)
    for classes in (33, 256):
        rows = max(1, int(0.15 * tokens))
        logits = given.draw(rows, classes, dtype=given.narrow, scale=3.0)
        targets = (torch.arange(rows) % classes).to(device)
        yield Case(
            "cross_entropy",
            f"{rows} × {classes}",
            lambda f, z=logits, t=targets: given.differentiated(lambda y: f(y, t), z),
        )
    yield from _optimizer_cases(given)


def _attention_cases(given: Inputs) -> Iterator[Case]:
    cu = Offsets.of(given.lengths(), given.device)
    shape = (cu.total, given.heads, given.width // given.heads)
    size = f"{cu.total} × {shape[1]} × {shape[2]}"
    q, k, v = (given.draw(*shape, dtype=given.narrow) for _ in range(3))
    if shape[2] % 2 == 0:
        angles = torch.rand(cu.total, shape[2] // 2, generator=torch.Generator().manual_seed(1)).to(given.device)
        cos, sin = angles.cos(), angles.sin()
        yield Case("rotary", size, lambda f: given.differentiated(lambda x: f(x, cos, sin), q))
    yield Case(
        "attention",
        f"{size}, {cu.n} sequences",
        lambda f: given.differentiated(lambda *a: f(*a, cu, cu, scale=shape[2] ** -0.5), q, k, v),
        composed=True,
    )
    bias = given.draw(shape[1], 2 * cu.longest - 1)
    yield Case(
        "attention",
        f"{size}, {cu.n} sequences, bias",
        lambda f: given.differentiated(lambda q, k, v, b: f(q, k, v, cu, cu, scale=0.125, bias=b), q, k, v, bias),
        composed=True,
    )


def _optimizer_cases(given: Inputs, layers: int = 6) -> Iterator[Case]:
    width = given.width
    shapes = [
        s for _ in range(layers) for s in (*[(width, width)] * 4, (4 * width, width), (width, 4 * width), (width,))
    ]
    starts = [given.draw(*s, scale=0.02).detach() for s in shapes]
    gradients = [given.draw(*s, scale=0.01).detach() for s in shapes]
    size = f"{len(shapes)} tensors, {sum(s.numel() for s in starts) / 1e6:.1f} M"

    def parameters() -> list[Tensor]:
        found: list[Tensor] = [torch.nn.Parameter(start.clone()) for start in starts]
        for parameter, gradient in zip(found, gradients, strict=True):
            parameter.grad = gradient.clone()
        return found

    def clip(function: Callable[..., Any]) -> Run:
        own = parameters()
        return lambda: [function(own, 1e9)]

    def steps(function: Callable[..., Any], **more: Any) -> Run:
        own = parameters()
        group = {"params": own, "names": list(map(str, range(len(own)))), "lr_scale": 1.0, "weight_decay_scale": 1.0}
        optimizer = function([group], lr=1e-4, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01, **more)

        def run() -> list[Tensor]:
            optimizer.step()
            return own

        return run

    yield Case("clip_grad_norm", size, clip)
    yield Case("adamw", size, steps)
    yield Case("lamb", size, lambda f: steps(f, max_grad_norm=None))


# ---------------------------------------------------------------------------------------------------------- measuring


def check(case: Case, runs: Mapping[str, Run], half: bool) -> None:
    """Ends the benchmark if backends do not compute the same."""
    rtol = (6e-2 if case.composed else 2e-2) if half else 1e-4
    found = {name: [x.detach().double() for x in run()] for name, run in runs.items()}
    first, *others = found
    for other in others:
        for one, two in zip(found[first], found[other], strict=True):
            atol = rtol * max(1.0, float(one.abs().max()))
            message = f"{case.function} ({case.size}): {other} and {first} differ"
            torch.testing.assert_close(two, one, rtol=rtol, atol=atol, msg=lambda m, t=message: f"{t}: {m}")


def medians(runs: Mapping[str, Run], rounds: int, sample: float, device: torch.device) -> dict[str, float]:
    """Returns milliseconds of each run: medians of rounds in which they take turns.

    Args:
        runs: by name.
        rounds: how many count.
        sample: seconds that the first run shall take in one round; the others do as many calls.
        device: what is waited for.
    """

    def seconds(run: Run, calls: int) -> float:
        _wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        return (time.perf_counter() - start) / calls

    for run in runs.values():
        seconds(run, 2)  # compiles, chooses algorithms, fills caches
    calls = min(1000, max(1, round(sample / max(1e-6, seconds(next(iter(runs.values())), 1)))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds):
        order = list(runs)
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            times[name].append(1e3 * seconds(runs[name], calls))
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def backends(device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Returns the functions of every built-in backend that runs here, by name, and why the others do not."""
    offered, reasons = {}, {}
    for component in Registry.discover().components("kernel"):
        if component.builtin:
            model = component.load_config()
            backend: ops.Backend = component.load_factory()(None if model is None else model())
            reason = backend.unavailable(device)
            if reason is None:
                offered[component.name] = backend.functions(device, dtype)
            else:
                reasons[component.name] = reason
    order = sorted(offered, key=lambda name: name != measured.BASIS)
    return {name: offered[name] for name in order}, reasons


def measure(
    names: Sequence[str],
    widths: Sequence[int],
    tokens: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    rounds: int,
    sample: float,
    compiled: bool,
) -> list[Row]:
    """Compares and times every backend's form of functions in one precision."""
    offered, _ = backends(device, dtype)
    half = dtype == torch.bfloat16
    rows = []
    for width in widths:
        for case in cases(width, tokens, half, device):
            if case.function not in names:
                continue
            functions = {n: fs[case.function] for n, fs in offered.items() if case.function in fs}
            if compiled and case.function in COMPILABLE and measured.BASIS in functions:
                torch.compiler.reset()  # else later widths get kernels for any width, and in the end none
                functions[COMPILED] = torch.compile(functions[measured.BASIS])
            runs = {name: case.bind(function) for name, function in functions.items()}
            check(case, runs, half)
            rows.append(Row(case.function, case.size, medians(runs, rounds, sample, device)))
            shown = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].milliseconds.items())
            print(f"{measured.precision(dtype)} {case.function} ({case.size}): {shown} ms", flush=True)
    return rows


# ------------------------------------------------------------------------------------------------------------ writing


def software() -> dict[str, str]:
    """Returns versions of what computes."""
    found = {"torch": str(torch.__version__)}  # a subclass of str, which YAML would not write
    for name in ("triton", "apex"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def nested(rows: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Returns what is recorded: function -> precision -> size -> backend -> milliseconds, three digits of each."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for precision, some in rows.items():
        for row in some:
            times = {name: float(f"{ms:.3g}") for name, ms in row.milliseconds.items() if name != COMPILED}
            found.setdefault(row.function, {}).setdefault(precision, {})[row.size] = times
    return found


def document(rows: Mapping[str, Sequence[Row]], reasons: Mapping[str, str], device: torch.device, rounds: int) -> str:
    """Returns the tables as Markdown."""
    name = measured.kind(device) or f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
    versions = ", ".join(f"{package} {version}" for package, version in software().items())
    lines = [
        "# Kernel backends side by side",
        "",
        f"Milliseconds, forward + backward (optimizers: a step), medians of {rounds} interleaved rounds. {name}; "
        f"{versions}. Made by `benchmarks/kernels.py`. Bold: less than PyTorch's by more than "
        f"{ops.NOISE:.0%}, which is what `kernels: auto` asks for.",
    ]
    lines += ["", *(f"Not here: {backend}: {reason}." for backend, reason in reasons.items())]
    for precision, some in rows.items():
        columns = list(dict.fromkeys(column for row in some for column in row.milliseconds))
        lines += ["", f"## {precision}", ""]
        lines += [f"| function | size | {' | '.join(columns)} |", f"|---|---|{'--:|' * len(columns)}"]
        for row in some:
            cells = [_cell(row.milliseconds, column) for column in columns]
            lines.append(f"| {row.function} | {row.size} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(times: Mapping[str, float], column: str) -> str:
    if column not in times:
        return "–"
    better = times[column] < (1 - ops.NOISE) * times.get(measured.BASIS, 0.0)
    return f"**{times[column]:.3g}**" if better else f"{times[column]:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares, measures and writes."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", default=",".join(ops.NAMES), help="names, separated by commas")
    parser.add_argument("--widths", default="320,480,640,1280,1536" if cuda else "320", help="of hidden states")
    parser.add_argument("--tokens", type=int, default=16384 if cuda else 1024)
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--rounds", type=int, default=9 if cuda else 5)
    parser.add_argument("--sample", type=float, default=0.02, help="seconds of PyTorch's form in a round")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=cuda, help="torch.compile beside it"
    )
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--record", type=Path, nargs="?", const=measured.FILE, help="file that auto reads")
    args = parser.parse_args(arguments)
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    kind = measured.kind(device)
    if args.record is not None and kind is None:
        parser.error("measurements are kept of GPUs, and here is none: on a CPU auto takes torch")
    names = args.functions.split(",")
    unknown = set(names) - set(ops.NAMES)
    if unknown:
        parser.error(f"there is no function {sorted(unknown)[0]!r}; there are {', '.join(ops.NAMES)}")
    rows = {
        precision: measure(
            names,
            [int(width) for width in args.widths.split(",")],
            args.tokens,
            {"fp32": torch.float32, "bf16": torch.bfloat16}[precision],
            device,
            rounds=args.rounds,
            sample=args.sample,
            compiled=args.compile,
        )
        for precision in args.precisions.split(",")
    }
    if args.out is not None:
        args.out.write_text(document(rows, backends(device, torch.float32)[1], device, args.rounds), encoding="utf-8")
    if args.record is not None and kind is not None:
        measured.record(kind, software(), nested(rows), args.record)


if __name__ == "__main__":
    main()
