"""Secondary structure: NetSurfP-2.0's training chains with NEW364, and the CSV files of CASP12, CB513 and TS115."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protloom.errors import UserError
from protloom_tasks.datasets.files import Source, read_csv
from protloom_tasks.datasets.proteins import Labelled

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

STATES = "HEC"
"""Helix, strand, coil: classes 0, 1 and 2."""

FOLDER = "secondary_structure"
_CSV = ("input", "dssp3", "disorder")

NETSURFP = Source(
    f"{FOLDER}/netsurfp_q3_train_valid_new364.csv.gz",
    "github.com/J-SNACKKB/FLIP, splits/secondary_structure/splits.zip at 62cace8",
    "AFL-3.0; raw data CC BY 4.0",
    ("id", "split", "sequence", "ss3", "resolved_mask"),
)
TESTS = {
    "casp12": Source(
        f"{FOLDER}/CASP12.csv",
        "github.com/Rostlab/pbc, supervised/secondary_structure/dataset_compilation at 5015be7",
        "AFL-3.0; raw data CC BY 4.0",
        _CSV,
    ),
    "cb513": Source(
        f"{FOLDER}/CB513.csv.gz",
        "github.com/shahid-43/protein_secondary_structure_prediction, data/CB513.csv at f86c6fa",
        "none stated",
        _CSV,
    ),
    "ts115": Source(
        f"{FOLDER}/TS115.csv.gz",
        "github.com/NKathiravan/Protein-Secondary-Structure-Prediction, dataset/TS115.csv at d9036a3",
        "none stated",
        _CSV,
    ),
}
"""Test sets in files of their own; ``new364`` is the test split of the training file."""


def read_netsurfp(path: Path) -> dict[str, list[Labelled]]:
    """Reads the chains of NetSurfP-2.0 and NEW364: ``train``, ``valid`` and ``test``.

    Raises:
        UserError: if a row is not consistent.
    """
    splits: dict[str, list[Labelled]] = {"train": [], "valid": [], "test": []}
    for number, row in enumerate(read_csv(path, NETSURFP), start=1):
        resolved = [character == "1" for character in row["resolved_mask"]]
        labels = _labels(path, number, row["sequence"], row["ss3"], resolved)
        if row["split"] not in splits:
            raise UserError(f"{path}, row {number}: split {row['split']!r} is none of {', '.join(splits)}")
        splits[row["split"]].append(Labelled(row["id"], row["sequence"], labels, row["sequence"]))
    return splits


def read_test(path: Path, name: str) -> list[Labelled]:
    """Reads one of :data:`TESTS`: the columns input, dssp3 and disorder (1.0 = resolved, so scored).

    CB513 holds several rows of some chains; rows of one sequence are one group.

    Raises:
        UserError: if a row is not consistent.
    """
    proteins = []
    for number, row in enumerate(read_csv(path, TESTS[name]), start=1):
        words = row["disorder"].replace(",", " ").split()
        try:
            resolved = [float(word) == 1.0 for word in words]
        except ValueError as error:
            raise UserError(f"{path}, row {number}: mask value is not a number ({error})") from None
        labels = _labels(path, number, row["input"], row["dssp3"], resolved)
        proteins.append(Labelled(f"{name}-{number}", row["input"], labels, row["input"]))
    return proteins


def _labels(path: Path, number: int, sequence: str, states: str, resolved: list[bool]) -> NDArray[np.int64]:
    """Returns the classes ``[L]``, −1 where not resolved."""
    if not len(sequence) == len(states) == len(resolved):
        sizes = f"{len(sequence)} residues, {len(states)} states, {len(resolved)} mask values"
        raise UserError(f"{path}, row {number}: {sizes}; they must be as many")
    strange = set(states) - set(STATES)
    if strange:
        raise UserError(f"{path}, row {number}: state {sorted(strange)[0]!r} is none of {STATES}")
    labels = np.array([STATES.index(state) for state in states], dtype=np.int64)
    labels[~np.array(resolved, dtype=np.bool_)] = -1
    return labels
