"""Features of proteins from a frozen ESM-2, here and by transformers: the same weights, the same mean vectors.

    python benchmarks/embedding.py [--data x.fasta.gz] [--sizes 8M 35M] [--rounds 3] [--out FILE]

Every variant embeds the same proteins once a round, in turn, from letters to one mean vector a protein, in float32.
Speed is residues a second; padding and special symbols are not counted. transformers runs as its examples do (fp32,
batches in the order of the file, padded to the longest), and at its best: weights in bf16, proteins sorted by length,
as many padded tokens a batch as ours has real ones. Before anything is timed, vectors in fp32 are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers

from protloom import config
from protloom.allocator import keep_freed_memory
from protloom.assembly import assemble
from protloom.data.store import open_corpus
from protloom.distributed import join
from protloom.embedding import Embedder
from protloom.inference import batch_tokens
from protloom.plugins import Registry

Vectors = Callable[[Sequence[str]], "np.ndarray[tuple[int, int], np.dtype[np.float32]]"]
SHIPPED = "transformers, fp32, batches as they come"
LONGEST = 1022  # residues


class Theirs:
    """transformers' ESM-2, padded.

    Args:
        folder: weights and vocabulary, written by us.
        dtype: of the weights.
        attention: ``sdpa`` or ``eager``.
        budget: padded tokens of a batch of proteins sorted by length; None: eight proteins, in the order given.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, attention: str, budget: int | None) -> None:
        self.tokenizer = transformers.EsmTokenizer(str(folder / "vocab.txt"))
        model = transformers.EsmModel.from_pretrained(
            folder, attn_implementation=attention, dtype=dtype, add_pooling_layer=False
        )
        self.model, self.budget = model.eval(), budget

    @torch.no_grad()
    def __call__(self, sequences: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Returns the mean over residues, ``[n, D]``."""
        rows = np.empty((len(sequences), self.model.config.hidden_size), dtype=np.float32)
        for batch in self._batches(sequences):
            inputs = self.tokenizer([sequences[i] for i in batch], return_tensors="pt", padding=True)
            states = self.model(**inputs).last_hidden_state
            for i, of in zip(batch, states, strict=True):
                rows[i] = of[1 : len(sequences[i]) + 1].float().mean(0).numpy()
        return rows

    def _batches(self, sequences: Sequence[str]) -> Iterator[list[int]]:
        if self.budget is None:
            yield from (list(range(i, min(i + 8, len(sequences)))) for i in range(0, len(sequences), 8))
            return
        batch: list[int] = []
        for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
            longest = len(sequences[batch[0]] if batch else sequences[i]) + 2
            if batch and (len(batch) + 1) * longest > self.budget:
                yield batch
                batch = []
            batch.append(i)
        yield batch


def sample(data: str, residues: int, registry: Registry) -> list[str]:
    """Returns proteins drawn from a corpus, in random order, about so many residues together."""
    store = open_corpus(data, registry=registry)
    found: list[str] = []
    for i in np.random.default_rng(0).permutation(len(store)).tolist():
        found.append(bytes(store.sequence(i)[:LONGEST]).decode())
        residues -= len(found[-1])
        if residues <= 0:
            break
    return found


def variants(size: str, sequences: Sequence[str], registry: Registry) -> dict[str, Vectors]:
    """Returns what is timed; all have the same random weights.

    Raises:
        ValueError: if vectors of both programs in fp32 are not the same.
    """
    base = {"architecture": f"esm2:{size}", "data": {"corpus": "demo:"}}
    run = assemble(config.load(None, [], registry, base=base), registry, join("none", "cpu"), initial=None)
    budget = batch_tokens(torch.device("cpu"))
    forms: dict[str, Vectors] = {
        f"protloom, {name}": Embedder(run.model, run.tokenizer, dtype=dtype).pooled
        for name, dtype in (("fp32", None), ("bf16", torch.bfloat16))
    }
    with tempfile.TemporaryDirectory() as folder:
        run.write_model(Path(folder), run.model.state_dict())
        forms[SHIPPED] = Theirs(Path(folder), torch.float32, "sdpa", None)
        forms["transformers, fp32, sorted"] = Theirs(Path(folder), torch.float32, "sdpa", budget)
        forms["transformers, bf16, sorted"] = Theirs(Path(folder), torch.bfloat16, "sdpa", budget)
        forms["transformers, bf16, sorted, eager"] = Theirs(Path(folder), torch.bfloat16, "eager", budget)
    ours, theirs = forms["protloom, fp32"](sequences[:16]), forms[SHIPPED](sequences[:16])
    if (apart := float(np.abs(ours - theirs).max())) > 1e-4:
        raise ValueError(f"not the same: vectors are up to {apart} apart")
    return forms


def measure(forms: Mapping[str, Vectors], sequences: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Returns residues a second of each form, round by round; one round before is not counted."""
    residues = sum(map(len, sequences))
    speeds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):
        for name, form in forms.items():
            start = time.perf_counter()
            form(sequences)
            if turn:
                speeds[name].append(residues / (time.perf_counter() - start))
    return speeds


def table(size: str, speeds: Mapping[str, Sequence[float]]) -> str:
    """Writes the Markdown table of one size; ratios are paired by round."""
    best = max((n for n in speeds if n.startswith("transformers")), key=lambda n: statistics.median(speeds[n]))
    lines = [
        f"### ESM-2 {size}\n",
        "| variant | residues/s | × as it comes | × transformers' best |",
        "|---|--:|--:|--:|",
    ]
    for name, values in speeds.items():
        ratios = [statistics.median(a / b for a, b in zip(values, speeds[o], strict=True)) for o in (SHIPPED, best)]
        lines.append(
            f"| {name}{' (its best)' if name == best else ''} | {statistics.median(values):,.0f} "
            f"({min(values):,.0f} to {max(values):,.0f}) | {ratios[0]:.2f} | {ratios[1]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures the sizes and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo:", help="corpus; the table of the results folder is of real UniRef90")
    parser.add_argument("--sizes", nargs="+", default=["8M", "35M"])
    parser.add_argument("--residues", type=int, default=10_000, help="embedded by each variant in each round (10000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.logging.set_verbosity_error()
    keep_freed_memory()  # for all variants alike; 'protloom embed' does so too
    registry = Registry.discover()
    sequences = sample(args.data, args.residues, registry)
    tables = [table(size, measure(variants(size, sequences, registry), sequences, args.rounds)) for size in args.sizes]
    text = (
        f"{len(sequences):,} proteins of {Path(args.data).name}, {sum(map(len, sequences)):,} residues, cut to "
        f"{LONGEST:,}; {args.threads} threads, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{platform.machine()}; medians (and range) of {args.rounds} rounds, ratios paired by round.\n\n"
        + "\n\n".join(tables)
    )
    print(text)
    if args.out is not None:
        name = Path(args.data).name
        made = (
            f"Made by `python benchmarks/embedding.py --data {name} --residues {args.residues} --rounds {args.rounds}`."
        )
        args.out.write_text(f"# Embedding beside transformers\n\n{text}\n\n{made}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
