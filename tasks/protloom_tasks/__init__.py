"""Downstream tasks and the simulated proteome that protloom ships."""

from protloom import CorpusSpec, TaskSpec, hookimpl
from protloom_tasks.simulated import VERSION


@hookimpl
def protloom_corpora() -> list[CorpusSpec]:
    """Offers ``demo:``, the simulated proteome."""
    return [
        CorpusSpec(
            name="demo",
            factory="protloom_tasks.simulated.corpus:read",
            config="protloom_tasks.simulated.corpus:DemoConfig",
            simulated=True,
            data_version=VERSION,
            summary="a SIMULATED proteome with known contacts, structure, families and stability",
        )
    ]


@hookimpl
def protloom_tasks() -> list[TaskSpec]:
    """Offers the built-in tasks."""
    return [*_secondary_structure(), *_retrieval(), *_contacts(), *_sequences()]


def _secondary_structure() -> list[TaskSpec]:
    home = "protloom_tasks.secondary_structure"
    real = [
        TaskSpec(
            name=f"ss3:{test}",
            factory=f"{home}:Ss3",
            config=f"{home}:Ss3Config",
            options={"test": test},
            summary=f"secondary structure, 3 states, frozen probe, test set {test.upper()}",
            tags=("per-residue",),
        )
        for test in ("casp12", "cb513", "new364", "ts115")
    ]
    simulated = TaskSpec(
        name="sim-ss3",
        factory=f"{home}:SimSs3",
        config=f"{home}:SimSs3Config",
        summary="secondary structure, 3 states, frozen probe, held-out superfamilies of the SIMULATED proteome",
        tags=("per-residue", "simulated"),
    )
    return [*real, simulated]


def _retrieval() -> list[TaskSpec]:
    home = "protloom_tasks.retrieval"
    return [
        TaskSpec(
            name="scope-retrieval",
            factory=f"{home}:ScopeRetrieval",
            config=f"{home}:ScopeConfig",
            summary="zero-shot retrieval of SCOPe domains of the same family (superfamily and fold beside it)",
            tags=("per-protein", "zero-shot"),
        ),
        TaskSpec(
            name="sim-retrieval",
            factory=f"{home}:SimRetrieval",
            config=f"{home}:SimRetrievalConfig",
            summary="zero-shot retrieval of the fold, held-out superfamilies of the SIMULATED proteome",
            tags=("per-protein", "zero-shot", "simulated"),
        ),
    ]


def _contacts() -> list[TaskSpec]:
    home = "protloom_tasks.contacts"
    return [
        TaskSpec(
            name="contact",
            factory=f"{home}:Contact",
            config=f"{home}:ContactConfig",
            summary="contacts in real structures: attention maps, pairs of states, or the categorical Jacobian",
            tags=("per-pair",),
        ),
        TaskSpec(
            name="sim-contact",
            factory=f"{home}:SimContact",
            config=f"{home}:SimContactConfig",
            summary="contacts from attention maps, held-out superfamilies of the SIMULATED proteome",
            tags=("per-pair", "simulated"),
        ),
    ]


_SEQUENCES = {
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
}
"""Tasks that a file in ``definitions`` says, with what they are; after the colon, the variant."""


def _sequences() -> list[TaskSpec]:
    home = "protloom_tasks.sequence_task"
    found = []
    for name, summary in _SEQUENCES.items():
        definition, _, variant = name.partition(":")
        options = {"definition": definition} | ({"variant": variant} if variant else {})
        found.append(
            TaskSpec(
                name=name,
                factory=f"{home}:SequenceTask",
                config=f"{home}:SequenceConfig",
                options=options,
                summary=summary,
                tags=("per-protein",),
            )
        )
    return found
