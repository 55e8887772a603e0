"""The plugin: a contrastive objective on pairs of proteins, and the reader of a corpus of pairs."""

from protloom import CorpusSpec, ObjectiveSpec, hookimpl


@hookimpl
def protloom_objectives() -> list[ObjectiveSpec]:
    """Offers the objective."""
    return [
        ObjectiveSpec(
            name="contrastive-pairs",
            factory="protloom_contrastive_pairs.contrastive_pairs:ContrastivePairs",
            config="protloom_contrastive_pairs.contrastive_pairs_config:ContrastivePairsConfig",
            summary="the pooled states of two related proteins are nearer than those of all others in the batch",
        )
    ]


@hookimpl
def protloom_corpora() -> list[CorpusSpec]:
    """Offers ``pairs:FILE.tsv``: two sequences a line, which are sampled together."""
    return [
        CorpusSpec(
            name="pairs",
            factory="protloom_contrastive_pairs.corpus:read",
            config="protloom_contrastive_pairs.corpus:PairsConfig",
            identity="protloom_contrastive_pairs.corpus:identity",
            summary="a table of pairs: id, sequence, sequence",
        )
    ]
