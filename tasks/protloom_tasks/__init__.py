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
    return [*_secondary_structure(), *_retrieval(), *_contacts()]


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
            name="sim-contact",
            factory=f"{home}:SimContact",
            config=f"{home}:SimContactConfig",
            summary="contacts from attention maps, held-out superfamilies of the SIMULATED proteome",
            tags=("per-pair", "simulated"),
        )
    ]
