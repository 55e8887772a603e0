"""Downstream tasks and the simulated proteome that protloom ships."""

from protloom import CorpusSpec, FloorSpec, TaskSpec, hookimpl
from protloom_tasks import listing
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
def protloom_floors() -> list[FloorSpec]:
    """Offers the floors."""
    home = "protloom_tasks.floors"
    return [
        FloorSpec(
            name="onehot", factory=f"{home}:OneHot.made", summary="one-hot letters in a window round each residue"
        ),
        FloorSpec(name="composition", factory=f"{home}:Composition.made", summary="residue frequencies"),
        FloorSpec(name="kmer2", factory=f"{home}:Kmer2.made", summary="2-mer frequencies"),
        FloorSpec(name="length", factory=f"{home}:Length.made", summary="sequence length"),
        FloorSpec(
            name="separation", factory=f"{home}:Separation.made", summary="separation and letters of residue pairs"
        ),
        FloorSpec(
            name="substitution",
            factory="protloom_tasks.variant_floors:Substitution.made",
            summary="BLOSUM62 of a variant's mutations",
        ),
        FloorSpec(
            name="hydrophobicity",
            factory="protloom_tasks.variant_floors:Hydrophobicity.made",
            summary="change of hydropathy by a variant's mutations",
        ),
    ]


@hookimpl
def protloom_tasks() -> list[TaskSpec]:
    """Offers the built-in tasks."""
    return [*listing.specs(), *_simulated(), *_contacts()]


def _simulated() -> list[TaskSpec]:
    return [
        TaskSpec(
            name="sim-ss3",
            factory="protloom_tasks.secondary_structure:SimSs3",
            config="protloom_tasks.secondary_structure:SimSs3Config",
            summary="secondary structure, 3 states, frozen probe, held-out superfamilies of the SIMULATED proteome",
            tags=("per-residue", "simulated"),
        ),
        TaskSpec(
            name="sim-retrieval",
            factory="protloom_tasks.retrieval:SimRetrieval",
            config="protloom_tasks.retrieval:SimRetrievalConfig",
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
