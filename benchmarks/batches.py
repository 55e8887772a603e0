"""Tokenised, masked and packed batches a second on one core, beside transformers' tokenizer and collator.

    python benchmarks/batches.py [--corpus FILE_OR_STORE] [--rounds 15] [--out benchmarks/results/batches.md]

Both sides get the same sequences, step by step, in turn; a round is one time each, the figures are medians of rounds.
Without ``--corpus`` the sequences are random, with lengths like those of UniRef50 (log-normal, mean about 290).
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protloom.contracts import BuildContext, Record
from protloom.data.batches import BatchMaker
from protloom.data.build import build_store
from protloom.data.layout import Store, is_store
from protloom.data.sampler import Sampler
from protloom.rng import CounterRNG
from protloom_plugins.objectives.mlm import MaskedLM
from protloom_plugins.objectives.mlm_config import MaskedLMConfig
from protloom_plugins.tokenizers.esm import VOCAB, EsmTokenizer, EsmTokenizerConfig

LONGEST = 1022
TOKENS = 16_384


def random_records(n: int) -> Iterator[Record]:
    """Random residues with lengths like a real corpus'."""
    generator = np.random.default_rng(0)
    alphabet = np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", dtype=np.uint8)
    for number, length in enumerate(np.clip(generator.lognormal(5.5, 0.6, n), 30, 3000).astype(int)):
        yield Record(f"s{number}", bytes(generator.choice(alphabet, length)))


class Ours:
    """Store → sampler → packed batch → masked input."""

    def __init__(self, store: Store, options: dict[str, Any]) -> None:
        tokenizer = EsmTokenizer(EsmTokenizerConfig())
        self.sampler = Sampler(
            [store],
            [1.0],
            tokens_per_step=TOKENS,
            specials=2,
            max_length=LONGEST,
            min_length=1,
            validation_fraction=0.02,
            seed=0,
        )
        self.maker = BatchMaker([store], tokenizer, max_length=LONGEST, seed=0)
        ops: Any = type("NoKernels", (), {"cross_entropy": None})()
        self.objective = MaskedLM(MaskedLMConfig.model_validate(options), BuildContext(tokenizer=tokenizer, ops=ops))
        self.rng = CounterRNG(0, "mlm")

    def timed(self, step: int) -> tuple[np.ndarray, int]:
        """Returns seconds of (sampling, packing, masking) and the tokens of a step."""
        a = time.perf_counter()
        members = self.sampler.step(step)
        b = time.perf_counter()
        batch = self.maker.make(members, step)
        c = time.perf_counter()
        self.objective.prepare(batch, self.rng)
        d = time.perf_counter()
        return np.array([b - a, c - b, d - c]), len(batch.packed.tokens)


def transformers_side(store: Store, sampler: Sampler, folder: Path) -> Callable[[int], tuple[float, int]]:
    """Returns a function that times tokenising and collating the texts of a step."""
    from transformers import DataCollatorForLanguageModeling
    from transformers import EsmTokenizer as Theirs

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(VOCAB))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = Theirs(vocab_file=str(vocabulary))
    collate = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)

    def timed(step: int) -> tuple[float, int]:
        index = sampler.step(step).index.tolist()
        texts = [bytes(store.sequence(i)[:LONGEST]).decode() for i in index]
        a = time.perf_counter()
        batch = collate([tokenizer(text) for text in texts])
        seconds = time.perf_counter() - a
        return seconds, int(batch["attention_mask"].sum())

    return timed


def rounds(store: Store, count: int, folder: Path) -> dict[str, list[float]]:
    """Interleaves both sides; returns tokens a second of every round by name."""
    sides = {
        "rate 0.15": Ours(store, {}),
        "four rates": Ours(store, {"mask_rates": [0.15, 0.2, 0.3, 0.5]}),
        "spans": Ours(store, {"span": {}}),
    }
    theirs = transformers_side(store, sides["rate 0.15"].sampler, folder)
    found: dict[str, list[float]] = {}
    steps = 30
    for number in range(count + 1):
        first = number * steps
        line: dict[str, float] = {}
        for name, ours in sides.items():
            parts, tokens = zip(*(ours.timed(step) for step in range(first, first + steps)), strict=True)
            seconds = np.sum(parts, axis=0)
            line[name] = sum(tokens) / seconds[1:].sum()
            line[f"{name}, with sampling"] = sum(tokens) / seconds.sum()
            for part, of_part in zip(("sampling", "packing", "masking"), seconds, strict=True):
                line[f"{name}: {part}"] = sum(tokens) / of_part
        seconds_theirs, tokens_theirs = theirs(first)
        line["transformers"] = tokens_theirs / seconds_theirs
        line["ratio"] = line["rate 0.15"] / line["transformers"]
        if number:  # the first round warms caches up
            for name, value in line.items():
                found.setdefault(name, []).append(value)
    return found


def report(found: dict[str, list[float]], corpus: str) -> str:
    """Returns the results as Markdown."""
    import transformers

    def row(label: str, name: str) -> str:
        values = found[name]
        low, high = np.quantile(values, [0.25, 0.75])
        return f"| {label} | {statistics.median(values) / 1e6:,.2f} | {low / 1e6:,.2f}–{high / 1e6:,.2f} |"

    lines = [
        "# Batches on one core",
        "",
        f"{TOKENS:,} tokens a batch, {corpus}; medians of {len(found['ratio'])} interleaved rounds, with quartiles. "
        f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, "
        f"transformers {transformers.__version__}. Made by `benchmarks/batches.py`.",
        "",
        "| store → batch → masked input | M tokens/s | quartiles |",
        "|---|--:|--:|",
        row("**protloom, `mlm` at 15 %**", "rate 0.15"),
        row("the same, with the sampler", "rate 0.15, with sampling"),
        row("one of four rates a sequence", "four rates"),
        row("spans", "spans"),
        row("transformers: `EsmTokenizer` + `DataCollatorForLanguageModeling`", "transformers"),
        "",
        f"Ratio of the first row to the last, round by round: **{statistics.median(found['ratio']):,.0f}×**.",
        "",
        "| part, at 15 % | M tokens/s | quartiles |",
        "|---|--:|--:|",
        *(row(part, f"rate 0.15: {part}") for part in ("sampling", "packing", "masking")),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the comparison and writes its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", help="a FASTA file or a store folder; default: random sequences")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "batches.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.corpus and is_store(Path(arguments.corpus)):
            store = Store.open(arguments.corpus)
        else:
            store = build_store(arguments.corpus or random_records(20_000), folder / "store")
        corpus = Path(arguments.corpus).name if arguments.corpus else "20,000 random sequences"
        corpus += f" (mean length {len(store.residues) / len(store):.0f})"
        text = report(rounds(store, arguments.rounds, folder), corpus)
    print(text)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)


if __name__ == "__main__":
    main()
