"""What plugins, tasks and programs may import from protloom; everything else may change at any time.

The one list of it: the reference is made of it, and a test holds protloom's own plugins, tasks and examples to it. What
stands here is withdrawn only in the steps of :mod:`protloom.deprecation`.
"""

from __future__ import annotations

from collections.abc import Mapping

Names = tuple[str, ...]

PUBLIC: Mapping[str, Mapping[str, Names]] = {
    "every plugin": {
        "protloom": (),
        "protloom.specs": (),
        "protloom.hookspecs": (),
        "protloom.contracts": (),
        "protloom.settings": ("Section", "differing"),
        "protloom.errors": (),
        "protloom.rng": (),
        "protloom.deprecation": (),
    },
    "objectives, architectures, kernels": {
        "protloom.objective": (),
        "protloom.ops": (),
        "protloom.collapse": ("measure",),
        "protloom.device": ("on_device",),
        "protloom.files": ("write_text",),
    },
    "tasks and readers of data": {
        "protloom.data.fasta": ("read_fasta", "write_fasta"),
        "protloom.variants": (),
        "protloom.variants.table": ("variant_columns",),
        "protloom.scoring": ("percentile_interval",),
        "protloom.inference": ("batches", "frozen", "letter_ids"),
        "protloom.config.source": ("merge", "parse"),
        "protloom.config.errors": ("explain",),
    },
    "programs": {
        "protloom.plugins": ("Component", "Registry"),
        "protloom.config": ("Chosen", "choose"),
        "protloom.kernels": ("choose", "told"),
        "protloom.weights": ("Pretrained", "load_pretrained"),
        "protloom.embedding": ("Embedder",),
        "protloom.task": ("open_task",),
        "protloom.likelihood": ("Place", "Reader", "refuse_untrained"),
        "protloom.variants.scores": ("Scores", "score_variants"),
        "protloom.generators": ("choose", "generate"),
        "protloom.data.records": ("Entry", "Source"),
        "protloom.data.store": ("open_corpus",),
        "protloom.cli": ("main",),
    },
    "tests of plugins": {
        "protloom.testing": (),
        "protloom.testing.checks": ("Request",),
        "protloom.testing.materials": ("batch_of", "proteins"),
        "protloom.testing.objective_bench": ("Bench",),
    },
}
"""For whom -> module -> the names that are promised; none: all that do not begin with an underscore."""


def names_of(module: str) -> Names | None:
    """Returns the names that a module promises, empty for all of its own, None where the module is not public."""
    return next((modules[module] for modules in PUBLIC.values() if module in modules), None)
