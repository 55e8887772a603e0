"""Overlap by alignment, where MMseqs2 is installed: finds relatives that share no k-mer.

A tested sequence and one of a corpus overlap where the alignment covers at least a share of the tested sequence and at
least a share of its aligned residues are identical (``--min-seq-id``, ``-c`` with ``--cov-mode 2``: of the query).
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from protloom.data.overlap import Audit, Overlap, Pairs
from protloom.errors import UserError

PROGRAM = "mmseqs"
MOST_HITS = 1_000_000
"""Hits kept of each tested sequence; MMseqs2's own 300 would hide most of a large family from the list to drop."""


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        identity: least share of identical residues in an alignment.
        coverage: least share of the tested sequence that it covers.
        threads: None: MMseqs2 takes every core.
    """

    identity: float = 0.3
    coverage: float = 0.8
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("identity", self.identity), ("coverage", self.coverage)):
            if not 0 < value <= 1:
                raise UserError(f"--{name} {value:g}: must lie above 0 and be at most 1")


def find() -> str:
    """Returns the path of MMseqs2; raises UserError if it is not on the PATH."""
    path = shutil.which(PROGRAM)
    if path is None:
        raise UserError(
            f"--mmseqs: there is no program {PROGRAM!r} on the PATH: install MMseqs2, or leave --mmseqs out to compare "
            "by k-mers"
        )
    return path


def overlaps(corpus: Iterable[tuple[str, str]], audit: Audit, search: Search) -> Iterator[Overlap]:
    """Yields the sequences of a corpus that overlap with a tested one, in the corpus's order.

    The share of an :class:`Overlap` is then the identity of the alignment. The ids of the corpus are held in memory,
    its sequences lie in a temporary folder meanwhile.

    Args:
        corpus: (id, residues in upper case) one after the other.
        audit: of the test sets; complete once this is exhausted.
        search: thresholds.

    Raises:
        UserError: MMseqs2 is not there, fails, or writes something else than was asked for.
    """
    program = find()
    with tempfile.TemporaryDirectory(prefix="protloom-mmseqs-") as name:
        folder = Path(name)
        try:
            names, equal = _write(folder, corpus, audit)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror or error}; TMPDIR names another place") from None
        command = [program, "easy-search", "tested.fasta", "corpus.fasta", "hits.tsv", "work"]
        command += ["--min-seq-id", f"{search.identity:g}", "-c", f"{search.coverage:g}", "--cov-mode", "2"]
        command += ["--max-seqs", str(MOST_HITS), "--format-output", "query,target,fident", "-v", "1"]
        command += [] if search.threads is None else ["--threads", str(search.threads)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise UserError(f"{program} failed with code {done.returncode}: {said}")
        pairs = _read(folder / "hits.tsv", equal, len(audit.distinct), len(names))
    yield from audit.add(names, pairs)


def _write(folder: Path, corpus: Iterable[tuple[str, str]], audit: Audit) -> tuple[list[str], dict[int, int]]:
    """Writes both FASTA files, named by numbers; returns the corpus's ids and which of it equal a tested sequence."""
    number = {sequence: i for i, sequence in enumerate(audit.distinct)}
    with (folder / "tested.fasta").open("w", encoding="ascii") as file:
        file.writelines(f">{i}\n{sequence}\n" for sequence, i in number.items())
    names: list[str] = []
    equal: dict[int, int] = {}
    with (folder / "corpus.fasta").open("w", encoding="ascii") as file:
        for name, sequence in corpus:
            if sequence in number:
                equal[len(names)] = number[sequence]
            file.write(f">{len(names)}\n{sequence}\n")
            names.append(name)
    return names, equal


def _read(hits: Path, equal: dict[int, int], tested: int, corpus: int) -> Pairs:
    """Reads the hits and adds the equal pairs, which MMseqs2 may leave out where they are short or of few letters."""
    share = dict.fromkeys(equal.items(), 1.0)
    try:
        for line in hits.read_text(encoding="ascii").splitlines():
            query, target, identity = line.split("\t")
            pair = int(target), int(query)
            if not (0 <= pair[0] < corpus and 0 <= pair[1] < tested):
                raise ValueError(line)
            share[pair] = max(share.get(pair, 0.0), float(identity))
    except (OSError, ValueError) as error:
        raise UserError(f"{PROGRAM} wrote no table of (query, target, identity): {error}") from None
    found = np.array(sorted(share), dtype=np.int64).reshape(-1, 2)
    return Pairs(
        found[:, 0],
        found[:, 1],
        np.array([share[int(a), int(b)] for a, b in found]),
        np.array([equal.get(int(a)) == int(b) for a, b in found], dtype=np.bool_),
    )
