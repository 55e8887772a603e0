"""How near the 3-mers of generated proteins are to those of real ones that were held out.

``python evaluate.py proteins.fasta --out runs/evaluation`` splits a corpus, trains on one part (``protloom train``),
writes as many proteins as are held out (``protloom generate``), and compares four sets with a reference:

- *real*: held-out sequences, which are not the reference;
- *generated*: written by the trained network;
- *shuffled*: the real set, the residues of each sequence in random order;
- *unigram*: residues drawn one by one with their frequencies in the training part.

The Jensen-Shannon divergence (Lin 1991) of two samples depends on their sizes: the fewer 3-mers are counted, the more
two samples of one source differ. So all four sets have the same lengths, one by one, and all are compared with one
reference; what the *real* set reaches is what can be reached. Intervals are a bootstrap over sequences, in which sets
are resampled by the same draws: they are about these sequences, not about training again.

What is done stays done: the same command goes on after a stop. Delete the folder to begin anew.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protloom.contracts import Record
from protloom.data.fasta import read_fasta, write_fasta
from protloom.data.records import Source
from protloom.errors import UserError
from protloom.plugins import Registry
from protloom.rng import CounterRNG, Permutation, uniform

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
K = 3
KINDS = len(RESIDUES) ** K
PARTS = ("train", "reference", "real")
SETS = ("real", "generated", "shuffled", "unigram")
LEAST = 30
"""Residues of the shortest sequence that is used."""

Counts = NDArray[np.float64]


def codes(sequences: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the number of every 3-mer, ``[M]``, and of the sequence that it stands in."""
    number = np.full(256, -1, dtype=np.int64)
    number[np.frombuffer(RESIDUES.encode(), dtype=np.uint8)] = np.arange(len(RESIDUES))
    found, owner = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for i, sequence in enumerate(sequences):
        ids = number[np.frombuffer(sequence.encode(), dtype=np.uint8)]
        if (ids < 0).any():
            raise ValueError(f"sequence {i} has other letters than the 20 standard residues")
        if len(ids) >= K:
            windows = np.lib.stride_tricks.sliding_window_view(ids, K)
            found.append(windows @ len(RESIDUES) ** np.arange(K)[::-1])
            owner.append(np.full(len(windows), i))
    return np.concatenate(found), np.concatenate(owner)


def divergence(one: Counts, other: Counts) -> float:
    """Returns the Jensen-Shannon divergence of two compositions, ``[KINDS]`` counts each, in bits: 0 to 1."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2

    def relative(x: Counts) -> float:
        there = x > 0
        return float((x[there] * np.log2(x[there] / middle[there])).sum())

    return max(0.0, (relative(p) + relative(q)) / 2)


class Composition:
    """The 3-mers of a set of sequences, to be counted with sequences weighted."""

    def __init__(self, sequences: Sequence[str]) -> None:
        self.n = len(sequences)
        self._codes, self._owner = codes(sequences)

    def counts(self, times: NDArray[np.int64] | None = None) -> Counts:
        """Returns ``[KINDS]`` counts; ``times`` ``[n]``: how often each sequence is taken."""
        weights = None if times is None else times[self._owner].astype(np.float64)
        return np.bincount(self._codes, weights=weights, minlength=KINDS).astype(np.float64)


def compare(
    reference: Sequence[str], sets: Mapping[str, Sequence[str]], *, replicates: int = 200, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compares sets of equal lengths with a reference.

    Args:
        reference: sequences.
        sets: name -> sequences; number i has the same length in all of them.
        replicates: of the bootstrap.
        seed: of its draws.

    Returns:
        For each set ``divergence`` in bits and ``distance``, its square root; and with a set called ``unigram``
        ``nearer``, by how many bits the set is nearer than that, with ``low`` and ``high``, a 95 % interval.
    """
    lengths = {name: [len(sequence) for sequence in sequences] for name, sequences in sets.items()}
    if any(found != next(iter(lengths.values())) for found in lengths.values()):
        raise ValueError("the sets differ in their lengths: what is counted must be as much in each")
    home, parts = Composition(reference), {name: Composition(sequences) for name, sequences in sets.items()}
    there = home.counts()
    found = {name: {"divergence": divergence(there, part.counts())} for name, part in parts.items()}
    draw = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(replicates):
        around = home.counts(_resampled(home.n, draw))
        times = _resampled(len(next(iter(lengths.values()))), draw)
        for name, part in parts.items():
            drawn[name].append(divergence(around, part.counts(times)))
    for name, values in found.items():
        values["distance"] = values["divergence"] ** 0.5
        if "unigram" in found:
            values["nearer"] = found["unigram"]["divergence"] - values["divergence"]
            gaps = np.array(drawn["unigram"]) - np.array(drawn[name])
            values["low"], values["high"] = (float(x) for x in np.quantile(gaps, [0.025, 0.975]))
    return found


def _resampled(n: int, draw: np.random.Generator) -> NDArray[np.int64]:
    """Returns how often each of ``n`` sequences is in a bootstrap sample."""
    return np.bincount(draw.integers(n, size=n), minlength=n)


def unigram(lengths: Sequence[int], training: Iterable[str], rng: CounterRNG) -> list[str]:
    """Returns sequences of these lengths, residues drawn one by one with the frequencies of the training part."""
    counts = np.zeros(256)
    for sequence in training:
        counts += np.bincount(np.frombuffer(sequence.encode(), dtype=np.uint8), minlength=256)
    letters = np.frombuffer(RESIDUES.encode(), dtype=np.uint8)
    rising = counts[letters].cumsum() / counts[letters].sum()
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    chosen = np.searchsorted(rising, uniform(rng.positions(rng.at(np.arange(len(lengths))), bounds)), side="right")
    return [letters[chosen[a:b]].tobytes().decode() for a, b in pairwise(bounds)]


def shuffled(sequences: Sequence[str], rng: CounterRNG) -> list[str]:
    """Returns each sequence with its residues in random order."""
    return [
        "".join(sequence[i] for i in np.argsort(rng.at(number, np.arange(len(sequence)))))
        for number, sequence in enumerate(sequences)
    ]


def split(sources: Sequence[str], n: int, max_length: int, rng: CounterRNG) -> dict[str, list[str]]:
    """Returns the parts of a corpus: ``n`` sequences each for ``reference`` and ``real``, the rest to train on.

    Raises:
        UserError: there are too few sequences of the 20 standard residues, 30 to ``max_length`` long.
    """
    registry = Registry.discover()
    usable = dict.fromkeys(
        entry.sequence
        for source in sources
        for entry in Source(source, registry).entries()
        if LEAST <= len(entry.sequence) <= max_length and not set(entry.sequence) - set(RESIDUES)
    )
    if len(usable) < 3 * n:
        raise UserError(
            f"{len(usable):,} sequences can be used ({LEAST} to {max_length} standard residues, each once); {2 * n:,}"
            f" are held out and at least {n:,} are to be left to train on: give more, or a smaller --n"
        )
    ordered = list(usable)
    mixed = [ordered[i] for i in Permutation(len(ordered), rng)(np.arange(len(ordered)))]
    return {"reference": mixed[:n], "real": mixed[n : 2 * n], "train": mixed[2 * n :]}


def read(path: Path) -> list[str]:
    """Returns the sequences of a FASTA file."""
    return [record.residues.decode() for record in read_fasta(path)]


def write(sequences: Sequence[str], path: Path) -> None:
    """Writes sequences, numbered."""
    write_fasta((Record(f"{path.stem}-{i}", s.encode()) for i, s in enumerate(sequences, start=1)), path)


def protloom(*words: object) -> None:
    """Runs a command of protloom; ends this one where it fails."""
    command = [str(word) for word in words]
    print(f"$ protloom {' '.join(command)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "protloom", *command], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def evaluate(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Does what is not done yet, and returns the comparison."""
    folder, rng = args.out, CounterRNG(args.seed, "evaluation")
    files = {part: folder / f"{part}.fasta" for part in (*PARTS, *SETS)}
    if not all(files[part].is_file() for part in PARTS):
        parts = split(args.corpus, args.n, args.max_length, rng.stream("split"))
        for part, sequences in parts.items():
            files[part].unlink(missing_ok=True)
            write(sequences, files[part])
    run = folder / "run"
    if not (run / "config.yaml").is_file():
        training = ["trainer.steps=1000000000", f"trainer.max_seconds={args.seconds}", "trainer.tokens_per_step=4096"]
        training += ["optimizer.lr=0.002", "schedule.warmup_steps=50", "trainer.tensorboard=false"]
        options = ["objective=masked-diffusion", f"seed={args.seed}", f"data.max_length={args.max_length}"]
        options += [f"data.cache_dir={folder / 'cache'}", *training, *args.options]
        protloom("train", "--data", files["train"], "--arch", args.arch, "--out", run, *options)
    elif not files["generated"].is_file():
        protloom("resume", run)
    if not files["generated"].is_file():
        words = ["--seed", args.seed, f"steps={args.steps}", "--tokens-per-batch", args.tokens_per_batch]
        protloom("generate", run, "--like", files["real"], *words, "-o", files["generated"])
    sets = {"real": read(files["real"]), "generated": read(files["generated"])}
    sets["shuffled"] = shuffled(sets["real"], rng.stream("shuffled"))
    lengths = [len(sequence) for sequence in sets["real"]]
    sets["unigram"] = unigram(lengths, read(files["train"]), rng.stream("unigram"))
    return compare(read(files["reference"]), sets, seed=args.seed)


def table(found: Mapping[str, Mapping[str, float]], n: int, residues: int) -> str:
    """Returns the comparison as Markdown."""
    lines = [
        f"{n:,} sequences and {residues:,} residues in each set; 3-mers against those of {n:,} held-out sequences",
        "",
        "| set | Jensen-Shannon distance | divergence, bits | nearer than unigram by, bits [95 %] |",
        "|---|---:|---:|---:|",
    ]
    for name in sorted(found, key=lambda name: found[name]["divergence"]):
        values = found[name]
        gap = f"{values['nearer']:+.5f} [{values['low']:+.5f}, {values['high']:+.5f}]" if name != "unigram" else ""
        lines.append(f"| {name} | {values['distance']:.4f} | {values['divergence']:.5f} | {gap} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Reads the command line; prints the table and writes it into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", help="FASTA files, or whatever protloom reads")
    parser.add_argument("--out", type=Path, required=True, help="folder for everything")
    parser.add_argument("--arch", default="esm2:mini", help="the network (esm2:mini)")
    parser.add_argument("--seconds", type=float, default=600, help="of training (600)")
    parser.add_argument("--n", type=int, default=2000, help="sequences of each set (2000)")
    parser.add_argument("--max-length", type=int, default=512, help="residues of the longest sequence (512)")
    parser.add_argument("--steps", type=int, default=64, help="passes of the network for a batch (64)")
    parser.add_argument("--tokens-per-batch", type=int, default=8192)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--options", nargs="*", default=[], metavar="key=value", help="more options of the training run"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        found = evaluate(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    real = read(args.out / "real.fasta")
    result = table(found, len(real), sum(map(len, real)))
    (args.out / "result.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (args.out / "result.md").write_text(result + "\n", encoding="utf-8")
    print(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
