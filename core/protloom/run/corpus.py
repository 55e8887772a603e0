"""How many of a task's sequences a model was trained on: looks them up in the corpora of its run, where these are.

A store holds a hash of every sequence, so that nothing has to be read but those hashes and the few sequences that they
point at. Sequences that the run held out for its validation, or left out as too short, do not count as trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pydantic import ValidationError

from protloom.contracts import HasSequences
from protloom.data.chunk import hash_slices, lengths_of, offsets_of
from protloom.data.store import find_corpus, uri_scheme
from protloom.data.totals import Rule
from protloom.errors import UserError
from protloom.run.folder import CONFIG
from protloom.settings import DataConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from protloom.contracts import Task, TaskResult
    from protloom.data.layout import Store
    from protloom.plugins import Registry

BLOCK = 1 << 22
"""Hashes of a store that are looked at in one go."""
KEY = "training_corpus"
"""Where the details of a result tell what was found."""


@dataclass(frozen=True)
class RunCorpus:
    """The sequences that a model was trained on, as far as they are there.

    Attributes:
        stores: the corpora of its run, and of the runs that it was started from.
        rules: which sequences of each were trained on.
        missing: why there is none, or what lacks; None where everything is there.
    """

    stores: Sequence[Store] = ()
    rules: Sequence[Rule] = ()
    missing: str | None = None

    @property
    def known(self) -> bool:
        """Whether every corpus is there, so that a sequence that is not found was not trained on."""
        return self.missing is None

    def contains(self, sequences: Sequence[str]) -> NDArray[np.bool_]:
        """Tells of each sequence whether a corpus that is there holds it exactly, ``[n]``."""
        wanted = [sequence.upper().encode() for sequence in sequences]
        bounds = offsets_of(lengths_of(wanted))
        hashes = hash_slices(b"".join(wanted), bounds)
        sorted_hashes, first = np.unique(hashes, return_index=True)
        found = np.zeros(len(sorted_hashes), dtype=np.bool_)
        for store, rule in zip(self.stores, self.rules, strict=True):
            for low in range(0, len(store) if wanted else 0, BLOCK):
                high = min(low + BLOCK, len(store))
                at = np.minimum(np.searchsorted(sorted_hashes, store.hashes[low:high]), len(sorted_hashes) - 1)
                hits = np.flatnonzero(sorted_hashes[at] == store.hashes[low:high])
                for i in hits[~found[at[hits]]].tolist():
                    # two sequences of one hash are one in 2^64, but exact means exact
                    same = store.sequence(low + i).tobytes() == wanted[first[at[i]]]
                    found[at[i]] |= same and bool(rule.tokens(store, low + i, low + i + 1)[0])
        return np.asarray(found[np.searchsorted(sorted_hashes, hashes)])


def open_run_corpus(model: str, registry: Registry) -> RunCorpus:
    """Finds the corpora that a model was trained on; builds no store, and never fails.

    Args:
        model: what ``--model`` names: a run, a checkpoint or a model folder inside one; anything else is unknown.
        registry: finds the reader of a corpus's URI.
    """
    stores: list[Store] = []
    rules: list[Rule] = []
    missing: list[str] = []
    source: str | None = model
    visited: set[Path] = set()
    while source is not None:
        folder = _folder(source)
        if folder is None:
            what = f"{source} is no run folder" if source == model else f"its initial weights ({source}) are of no run"
            missing.append(what)
            break
        if folder in visited:
            break
        visited.add(folder)
        try:
            source = _add(folder, stores, rules, missing, registry)
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, ValidationError):
            missing.append(f"{folder / CONFIG} cannot be read")
            break
    return RunCorpus(stores, rules, "; ".join(missing) or None)


def _folder(source: str) -> Path | None:
    """Returns the folder with the run file that a model belongs to."""
    path = Path(source).expanduser().absolute()
    # a run, a checkpoint with a copy of the run file, or the model inside one
    return next((folder for folder in (path, path.parent) if (folder / CONFIG).is_file()), None)


def _add(folder: Path, stores: list[Store], rules: list[Rule], missing: list[str], registry: Registry) -> str | None:
    """Adds the corpora of one run; returns what it was started from, None where it was fresh."""
    document = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    data = DataConfig.model_validate(document["data"])
    rule = Rule(data.max_length, data.min_length, 0, data.validation_fraction if data.validation is None else 0.0)
    trained = _content_hashes(folder)
    for part in data.parts():
        try:
            store = find_corpus(
                part.path, cache_dir=data.cache_dir, strict=data.strict, column=part.column, registry=registry
            )
        except UserError:
            store = None
        if store is None:
            here = uri_scheme(part.path) is not None or Path(part.path).expanduser().exists()
            lost = "has changed since, or its prepared copy is not in the cache (any more)"
            missing.append(f"the corpus {part.path} {lost if here else 'is not there (any more)'}")
        elif trained and store.content_hash not in trained:
            missing.append(f"the corpus {part.path} has changed since")
        else:
            stores.append(store)
            rules.append(rule)
    return None if document.get("init") is None else str(document["init"])


def _content_hashes(folder: Path) -> tuple[str, ...]:
    """Returns the content hashes of the corpora that the run was trained on, none before its first checkpoint."""
    from protloom import checkpoint

    newest = folder if (folder / "state.json").is_file() else checkpoint.latest(folder)
    try:
        return checkpoint.read_state(newest).corpora if newest is not None else ()
    except UserError:
        return ()


# ------------------------------------------------------------------------------------------------------- results


def mark(result: TaskResult, task: Task, corpus: RunCorpus) -> TaskResult:
    """Returns a result whose details tell, under :data:`KEY`, how many of the scored sequences were trained on.

    The entry holds ``sequences`` (scored ones, both of a pair), ``found`` (those that the corpus holds exactly; null
    where nothing is known), ``complete`` (a sequence that was not found was not trained on), ``why`` (null, or what
    lacks) and ``of`` (``scored`` or, where a task keeps no predictions, the whole ``split``).

    Args:
        result: of the task.
        task: that made it; what it scored is said by ``split`` in the details, else it was the test split.
        corpus: what the model was trained on.
    """
    table = result.predictions
    scored = [str(value) for column in ("sequence", "partner") for value in table.get(column, ()) if value]
    of = "scored" if scored else "split"
    if not scored and isinstance(task, HasSequences):
        scored = list(task.sequences(str(result.details.get("split", "test"))))
    entry: dict[str, Any] = {
        "sequences": len(scored),
        "found": None,
        "complete": False,
        "of": of,
        "why": corpus.missing,
    }
    if not scored:
        entry["why"] = "the task does not tell its sequences"
    elif corpus.stores:
        entry["found"] = int(corpus.contains(scored).sum())
        entry["complete"] = corpus.known
    return replace(result, details={**result.details, KEY: entry})


def describe(details: Mapping[str, Any]) -> str | None:
    """Returns one line about the training corpus for a printed table, None where nothing was looked up."""
    entry = details.get(KEY)
    if entry is None:
        return None
    if entry["found"] is None:
        return f"training corpus: unknown ({entry['why']})"
    what = "scored sequences" if entry["of"] == "scored" else "sequences of the whole split"
    line = f"training corpus: {entry['found']:,} of {entry['sequences']:,} {what} occur in it exactly"
    return line if entry["complete"] else f"{line}, at least ({entry['why']})"
