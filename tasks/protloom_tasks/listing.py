"""The tasks that files in ``definitions`` say, by name; after the colon, the variant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from protloom import TaskSpec

SEQUENCES: Mapping[str, str] = {
    "remote-homology": "fold of remote homologs, 1195 classes (TAPE)",
    "signal-peptide": "signal peptide or none, from the first 70 residues",
    "neuropeptide": "neuropeptide precursor or not (ProFET)",
    "stability": "stability of designed mini-proteins (TAPE)",
    "scop-class": "structural class of a SCOP domain",
    "solubility": "solubility in E. coli (DeepSol's test set)",
    "localization:test": "subcellular localisation, 10 classes (DeepLoc 1.0)",
    "localization:hard": "subcellular localisation, 10 classes (setHARD)",
    "beta-lactamase": "fitness of TEM-1 single mutants",
    "metal-ion-binding": "metal-binding protein or not (bindEmbed21's set)",
    "fluorescence": "brightness of avGFP variants (TAPE)",
    "gb1:sampled": "fitness of GB1 variants (FLIP), a random split",
    "gb1:one-vs-rest": "fitness of GB1 variants (FLIP), trained on single mutants",
    "gb1:two-vs-rest": "fitness of GB1 variants (FLIP), trained on at most two mutations",
    "gb1:three-vs-rest": "fitness of GB1 variants (FLIP), trained on at most three mutations",
    "gb1:low-vs-high": "fitness of GB1 variants (FLIP), trained on those below the wild type",
    "chezod-disorder": "mean disorder of a protein (CheZOD)",
    "kcat": "turnover numbers of enzymes (CatPred), a stand-in",
    "peptide-hla": "peptide and HLA class I molecule bind or not (TransPHLA's independent set)",
    "ec-deepfri": "EC numbers of chains (DeepFRI's test chains), a stand-in",
    "ppi": "yeast proteins interact or not (D-SCRIPT), a stand-in",
}
"""Labels of whole sequences."""

_TESTS = ("casp12", "casp14", "cb513", "ts115")

RESIDUES: Mapping[str, str] = {
    **{
        f"ss3:{test}": f"secondary structure, 3 states, frozen probe, test set {test.upper()}"
        for test in (*_TESTS, "new364")
    },
    **{f"ss8:{test}": f"secondary structure, 8 states, frozen probe, test set {test.upper()}" for test in _TESTS},
    "disorder-residue": "disorder of residues (CheZOD Z-scores)",
    "conservation": "conservation of residues, 9 ordered classes (ConSurf-10k)",
}
"""Labels of residues."""

RETRIEVAL: Mapping[str, str] = {
    "scope-retrieval": "zero-shot retrieval of SCOPe domains of the same family (superfamily and fold beside it)"
}
"""Nothing is trained."""

SCANS: Mapping[str, str] = {
    "variant-effect:blat-ecolx": "zero-shot effects of mutations: growth of TEM-1 single mutants",
    "variant-effect:avgfp": "zero-shot effects of mutations: brightness of avGFP variants",
    "variant-effect:dlg4-2022-binding": "zero-shot effects of mutations: binding of variants of a PDZ domain",
    "variant-effect:grb2-abundance": "zero-shot effects of mutations: abundance of variants of an SH3 domain",
    "variant-effect:pten-abundance": "zero-shot effects of mutations: abundance of PTEN single mutants",
    "variant-effect:tem-1": "zero-shot effects of mutations: growth of TEM-1 double mutants",
    "variant-effect:ube4b": "zero-shot effects of mutations: activity of variants of a U-box domain",
}
"""Deep mutational scans."""


def specs() -> Iterator[TaskSpec]:
    """Yields the registered tasks that definitions say, and the one that runs a user's own definition."""
    yield TaskSpec(
        name="definition",
        factory="protloom_tasks.definition_task:make",
        config="protloom_tasks.definition_task:DefinitionConfig",
        summary="a task of your own: one YAML file and tables, no code",
        files={".yaml": "definition", ".yml": "definition"},
    )
    yield from _specs(SEQUENCES, "sequence_task:SequenceTask", "sequence_task:SequenceConfig", "per-protein")
    yield from _specs(RESIDUES, "residue_task:ResidueTask", "residue_task:ResidueConfig", "per-residue")
    home = "retrieval"
    yield from _specs(RETRIEVAL, f"{home}:RetrievalTask", f"{home}:DefinedConfig", "per-protein", "zero-shot")
    yield from _specs(SCANS, "variant_task:VariantTask", "variant_task:VariantConfig", "variants", "zero-shot")


def _specs(summaries: Mapping[str, str], factory: str, config: str, *tags: str) -> Iterator[TaskSpec]:
    for name, summary in summaries.items():
        definition, _, variant = name.partition(":")
        yield TaskSpec(
            name=name,
            factory=f"protloom_tasks.{factory}",
            config=f"protloom_tasks.{config}",
            options={"definition": definition} | ({"variant": variant} if variant else {}),
            summary=summary,
            tags=tags,
        )
