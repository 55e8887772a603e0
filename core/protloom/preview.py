"""What an objective makes of a sequence: input, corrupted input and target, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.contracts import BuildContext, Packed, Prepared, SequenceBatch
from protloom.errors import UserError
from protloom.rng import CounterRNG

if TYPE_CHECKING:
    from protloom.contracts import Tokenizer
    from protloom.plugins import Registry

EMPTY, HERE = "·", "^"


@dataclass(frozen=True)
class Rows:
    """Aligned rows of symbols: a name and one cell a position."""

    rows: tuple[tuple[str, tuple[str, ...]], ...]

    def text(self, width: int = 100) -> str:
        """Returns the rows, cut into blocks of at most ``width`` characters."""
        label = max(len(name) for name, _ in self.rows) + 2
        cells = [list(row) for _, row in self.rows]
        n = max(len(row) for row in cells)
        columns = [max((len(row[i]) for row in cells if i < len(row)), default=0) for i in range(n)]
        blocks: list[str] = []
        start = 0
        while start < n:
            stop, used = start, label
            while stop < n and (stop == start or used + columns[stop] + 1 <= width):
                used += columns[stop] + 1
                stop += 1
            for (name, _), row in zip(self.rows, cells, strict=True):
                line = " ".join(f"{row[i]:<{columns[i]}}" for i in range(start, min(stop, len(row))))
                blocks.append(f"{name:<{label}}{line}".rstrip())
            blocks.append("")
            start = stop
        return "\n".join(blocks).rstrip()


def preview(
    sequences: Sequence[str],
    registry: Registry,
    *,
    objective: str,
    options: Sequence[str],
    architecture: str | None,
    seed: int,
    epoch: int,
) -> list[Rows]:
    """Corrupts sequences as training would.

    Args:
        sequences: residues in one-letter code.
        registry: the installed components.
        objective: name of the objective.
        options: its options, each as ``key=value``.
        architecture: ``NAME[:SIZE]`` whose tokenizer is used; None: one made for the objective, or for
            one that asks the same of a network, or the first that serves it.
        seed: the run's seed.
        epoch: how often the sequences were seen before.

    Raises:
        UserError: if an option is wrong, or no architecture serves the objective.
    """
    names = [architecture] if architecture is not None else _candidates(registry, objective)
    problems: dict[str, str] = {}
    for name in names:
        try:
            tokenizer, module = _build(name, objective, options, registry)
        except UserError as error:
            problems[name] = str(error)
            continue
        for number, text in enumerate(sequences, start=1):
            if len(text) < module.least_residues:
                raise UserError(
                    f"sequence {number} has {len(text)} residue(s), {objective} needs {module.least_residues}: "
                    "training leaves such sequences out"
                )
        return [_rows(module, tokenizer, text, i, seed, epoch) for i, text in enumerate(sequences)]
    reasons = list(dict.fromkeys(problems.values()))
    if len(reasons) == 1:
        raise UserError(reasons[0])
    listed = "; ".join(f"{name}: {reason}" for name, reason in problems.items()) or "none is installed"
    raise UserError(f"preview: no architecture serves objective {objective!r} ({listed})")


def _candidates(registry: Registry, objective: str) -> list[str]:
    """Returns the smallest size of every architecture: those made for the objective or for one like it first."""
    wanted = _needs(registry, objective)

    def order(component: Any) -> tuple[bool, bool, bool, str]:
        default = component.spec.defaults.get("objective")
        usual = default if isinstance(default, str) or default is None else default.get("name")
        alike = usual is not None and _needs(registry, usual) == wanted
        return usual != objective, not alike, not component.builtin, component.name

    known = sorted(registry.components("architecture"), key=order)
    sizes: list[Any] = [getattr(c.spec, "sizes", {}) for c in known]
    return [f"{c.full_name}:{next(iter(s))}" if s else c.full_name for c, s in zip(known, sizes, strict=True)]


def _needs(registry: Registry, objective: str) -> frozenset[str] | None:
    """Returns what an objective asks of a network, None for one that cannot be loaded."""
    try:
        needs: frozenset[str] = getattr(registry.resolve("objective", objective).load_factory(), "needs", frozenset())
    except UserError:
        return None
    return frozenset(needs)


def _build(architecture: str, name: str, options: Sequence[str], registry: Registry) -> tuple[Tokenizer, Any]:
    """Builds tokenizer and objective; raises UserError if the architecture cannot serve it."""
    import torch

    from protloom import config, kernels

    overrides = [f"objective.{option}" for option in options]
    base = {"architecture": architecture, "objective": {"name": name}}
    resolved = config.load(None, overrides, registry, base=base)
    tokenizer = resolved.tokenizer.component.build(resolved.tokenizer.config)
    ops = kernels.choose("auto", registry, torch.device("cpu"), torch.float32)
    model = resolved.architecture.component.build(resolved.architecture.config, BuildContext(tokenizer, ops))
    chosen = resolved.objectives[0].chosen
    lacking = sorted(getattr(chosen.component.load_factory(), "needs", frozenset()) - model.capabilities)
    if lacking:
        raise UserError(f"objective {name!r} needs {', '.join(lacking)}, which {architecture} cannot do")
    return tokenizer, chosen.component.build(chosen.config, BuildContext(tokenizer, ops, model))


def _rows(objective: Any, tokenizer: Tokenizer, text: str, index: int, seed: int, epoch: int) -> Rows:
    tokens = tokenizer.encode(text)
    before, after = len(tokenizer.prefix), len(tokenizer.suffix)
    residue = np.ones(len(tokens), dtype=np.bool_)
    residue[:before] = False
    residue[len(tokens) - after :] = False
    batch = SequenceBatch(
        packed=Packed(tokens, np.array([0, len(tokens)], dtype=np.int32)),
        residue=residue,
        epoch=np.array([epoch], dtype=np.int64),
        index=np.array([index], dtype=np.int64),
        corpus=np.zeros(1, dtype=np.int32),
        group=np.zeros(1, dtype=np.int32),
    )
    prepared: Prepared = objective.prepare(batch, CounterRNG(seed, "objective", "preview"))
    rows = [("sequence", _symbols(tokenizer, tokens)), ("input", _symbols(tokenizer, prepared.inputs.tokens))]
    if prepared.decoder is not None:
        rows.append(("decoder input", _symbols(tokenizer, prepared.decoder.tokens)))
    targets = prepared.arrays.get("targets")
    where = prepared.arrays.get("index")
    if targets is not None and where is not None and prepared.decoder is None:
        row = [EMPTY] * len(prepared.inputs.tokens)
        for position, target in zip(where.tolist(), targets.tolist(), strict=True):
            row[position] = tokenizer.vocab[target]
        rows.append(("target", tuple(row)))
    elif targets is not None:
        rows.append(("target", _symbols(tokenizer, targets)))
    elif where is not None:
        # no symbols are asked for: the objective predicts something of its own at these places
        scored = set(where.tolist())
        rows.append(
            (objective.scored_as, tuple(HERE if i in scored else EMPTY for i in range(len(prepared.inputs.tokens))))
        )
    return Rows(tuple(rows))


def _symbols(tokenizer: Tokenizer, ids: np.ndarray[Any, Any]) -> tuple[str, ...]:
    return tuple(tokenizer.vocab[i] for i in ids.tolist())
