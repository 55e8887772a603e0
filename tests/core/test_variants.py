"""Variants as tables name them: every form that is read, every contradiction that is told."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pytest

from protloom.errors import UserError
from protloom.variants import Mutation, Variant, make_variants

WILD_TYPE = "MKTAYIAKQRQ"


def one(mutant: str | None, sequence: str | None = None, first: int = 1) -> Variant:
    return make_variants([(mutant, sequence)], WILD_TYPE, first=first)[0]


@pytest.mark.parametrize(
    "mutant", ["A4G:K8R", "K8R:A4G", "A4G,K8R", "A4G; K8R", " a4g:k8r ", "p.Ala4Gly:p.Lys8Arg", "p.[Ala4Gly;Lys8Arg]"]
)
def test_forms_of_the_same_variant(mutant: str) -> None:
    found = one(mutant)
    assert found.sequence == "MKTGYIARQRQ"
    assert found.mutations == (Mutation(3, "A", "G"), Mutation(7, "K", "R"))
    assert one(mutant, "MKTGYIARQRQ") == found
    assert found.name == mutant.strip()


def test_the_wild_type_has_no_mutations() -> None:
    for mutant in ("WT", "_wt", "p.=", "A4A", "p.Ala4="):
        assert one(mutant) == Variant(mutant, WILD_TYPE, ())
    assert one("", WILD_TYPE) == one(None, WILD_TYPE.lower()) == Variant("WT", WILD_TYPE, ())


def test_sequences_alone() -> None:
    assert one(None, "MKTGYIARQRQ").mutations == (Mutation(3, "A", "G"), Mutation(7, "K", "R"))
    assert one(None, "MKTGYIARQRQ").name == "A4G:K8R"
    # ProteinGym's tables of indels repeat the sequence in the column of mutants
    for sequence in ("MKTGAYIAKQRQ", "MKAYIAKQRQ"):
        assert one(sequence, sequence) == Variant(sequence, sequence, None)
    assert one("MKTGYIAKQRQ", "MKTGYIAKQRQ").mutations == (Mutation(3, "A", "G"),)


def test_residues_beyond_the_twenty() -> None:
    """Selenocysteine and pyrrolysine are residues; a letter for several may stand where the wild type has it."""
    assert one("A4U").sequence == "MKTUYIAKQRQ"
    assert one("p.Ala4Pyl").mutations == (Mutation(3, "A", "O"),)
    vague = make_variants([("X2K", None), ("A4G", None), (None, "MXTAGYI")], "MXTAYI")
    assert [variant.sequence for variant in vague] == ["MKTAYI", "MXTGYI", "MXTAGYI"]


def test_another_numbering() -> None:
    assert one("A27G", first=24).mutations == (Mutation(3, "A", "G"),)
    assert one(None, "MKTGYIAKQRQ", first=24).name == "A27G"
    assert one("T2A", first=0).mutations == (Mutation(2, "T", "A"),)


@pytest.mark.parametrize(
    ("mutant", "sequence", "says"),
    [
        ("A99G", None, r"A99G: position 99 does not exist: the wild type has residues 1 to 11"),
        ("A0G", None, r"A0G: position 0 does not exist"),
        ("Q4G", None, r"Q4G: expected Q at position 4, but the wild type has A there"),
        ("A4*", None, r"A4\* is a stop, not a residue: leave the row out"),
        ("p.Ala4Ter", None, r"p\.Ala4Ter is a stop"),
        ("A4B", None, r"A4B: B stands for D or N, which is no variant: leave the row out"),
        ("p.Ala4Xaa", None, r"A4X: X stands for any residue"),
        (None, "MKTJYIAKQRQ", r"A4J: J stands for I or L"),
        (None, "MKTZYIAKQR", r"'Z' at 4 stands for E or Q"),
        ("A4", None, r"'A4' is no substitution: write A24G or p\.Ala24Gly"),
        ("p.Abc4Gly", None, r"'p\.Abc4Gly' is no substitution"),
        ("A4G:A4V", None, r"A4G:A4V changes position 4 twice"),
        (None, None, r"names neither substitutions, such as A24G, nor a whole sequence"),
        ("A4G", "MKTVYIAKQRQ", r"A4G of the wild type has G at 4, the row's sequence V"),
        ("A4G", "MKTGYIAKQR", r"A4G are substitutions, but the row's sequence has 10 residues and the wild type 11"),
        (None, "MKT*YIAKQRQ", r"'\*' at 4 is a stop"),
        (None, "MKT-YIAKQR", r"'-' at 4 is no residue"),
    ],
)
def test_contradictions(mutant: str | None, sequence: str | None, says: str) -> None:
    rows = [("K2R", None), (mutant, sequence)]
    with pytest.raises(UserError, match=rf"^table\.csv, line 3: .*{says}") as caught:
        make_variants(rows, WILD_TYPE, where=lambda number: f"table.csv, line {number + 2}")
    assert "\n" not in str(caught.value)


def test_a_shifted_numbering_is_recognised() -> None:
    shifted = [(f"{letter}{number}G", None) for number, letter in enumerate(WILD_TYPE[:8])]  # from 0
    with pytest.raises(UserError, match=r"first residue were number 0: --first-residue 0$"):
        make_variants(shifted, WILD_TYPE)
    assert len(make_variants(shifted, WILD_TYPE, first=0)) == 8
    far = [(f"{letter}{number}G", None) for number, letter in enumerate(WILD_TYPE[:8], start=24)]
    with pytest.raises(UserError, match=r"--first-residue 24$"):
        make_variants(far, WILD_TYPE)
    with pytest.raises(UserError, match=r"no other numbering fits all rows"):
        make_variants([*far, ("W30A", None)], WILD_TYPE)
    # two residues are at that distance somewhere by chance: no advice
    with pytest.raises(UserError, match=r"is it the right wild type, and its first residue number 1\?$"):
        make_variants(far[:1], WILD_TYPE)


LARGE = ("avgfp", "grb2-abundance", "ube4b")
ASSAYS = ("BLAT_ECOLX_Stiffler_2015", "dlg4-2022-binding", "pten-abundance", "tem-1")


@pytest.mark.parametrize("assay", [*ASSAYS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_all_rows_of_real_assays_fit_their_wild_type(assay: str, shared_data: Path) -> None:
    folder = shared_data / "proteingym_like_dms"
    if not folder.is_dir():
        pytest.skip(f"no deep mutational scans at {folder}")
    wild_type = json.loads((folder / "wild_types.json").read_text())[assay]
    with gzip.open(folder / f"{assay}.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    found = make_variants(((row["mutant"], row["mutated_sequence"]) for row in rows), wild_type)
    assert [len(variant.mutations or ()) for variant in found] == [int(row["num_mutations"]) for row in rows]
    with pytest.raises(UserError, match=r"--first-residue 1$"):
        make_variants(((row["mutant"], None) for row in rows), wild_type, first=2)
