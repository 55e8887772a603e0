"""A folder of results: a file for each subject and task, and two tables of all of them.

::

    results/SUBJECT/TASK.SPLIT.json   metrics with intervals, replicates, predictions, and all that they depend on
    results.csv                       a row for every subject, task and metric
    results.md                        the main metrics

Every file is written beside and renamed, so a killed run loses at most the task that was running.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from protloom.contracts import TaskResult
from protloom.data.streams import WriteError
from protloom.errors import UserError
from protloom.files import write_text
from protloom.plain_data import plain
from protloom.task import notes
from protloom.task.run import TWIN, Entry, Report, against, intervals, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from protloom.task.run import Built

Record = Mapping[str, Any]

FORMAT = 1
"""Raised when the files change so that older ones cannot be read."""
HOME, CSV, MARKDOWN = "results", "results.csv", "results.md"
HEADER = (
    *("subject", "role", "task", "split", "simulated", "metric", "main", "value", "low95", "high95"),
    *("n", "unit", "seed", "limit", "weights", "cropped", "windowed", "skipped", "seconds"),
)
"""Columns of the CSV."""
LISTS = ("per_item", "replicates", "predictions")
"""Parts of a result that are long, and in no table."""
LONG = ("cropped", "windowed", "skipped")
"""What may happen to sequences that are longer than the network sees at once."""


_NO_LISTS: Record = {"per_item": (), "replicates": (), "predictions": {}}


class ResultFolder:
    """Reads and writes a folder of results.

    Args:
        path: the folder; made with the first result.
        warn: receives a line about a file that cannot be used.

    Raises:
        UserError: if ``path`` is something else.
    """

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self.path, self._warn = path, warn
        # when each file was written, and what the tables show of it; nothing of a damaged one
        self._tabled: dict[Path, tuple[int, Sequence[Record]]] = {}
        if path.is_dir() and not (path / HOME).is_dir() and any(path.iterdir()):
            raise UserError(f"--out {path}: is not empty and holds no results of tasks; choose another folder")
        if path.exists() and not path.is_dir():
            raise UserError(f"--out {path}: is a file; name a folder, or a file that ends in .json")

    def load(self, label: str, built: Built, key: Mapping[str, Any]) -> Entry | None:
        """Returns a subject's result if it is there and depends on the same; None if it has to be computed."""
        path = self._file(label, built.name, built.split)
        if not path.is_file() or None in key["data"].values():
            return None
        try:
            record = read(path)
            if record["key"] != plain(key):
                return None
            return entry_of(record)
        except UserError as error:
            self._warn(f"{error}; computed again")
            return None

    def save(self, entry: Entry, built: Built, key: Mapping[str, Any]) -> None:
        """Writes a result, then the tables; raises UserError where the disk does not take them."""
        path = self._file(entry.label, built.name, built.split)
        text = json.dumps(plain(_record(entry, built, key)), allow_nan=False)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
            self.write_tables()
        except OSError as error:
            raise WriteError(path, error) from error

    def write_tables(self) -> None:
        """Writes both tables anew, from all results that are there."""
        files = self._files()
        for path in files:
            changed = path.stat().st_mtime_ns
            if path not in self._tabled or self._tabled[path][0] != changed:
                # a folder may hold hundreds of results, most of them long lists that no table shows
                short = [{k: v for k, v in record.items() if k not in LISTS} for record in self._read([path])]
                self._tabled[path] = changed, short
        records = _in_order([record for path in files for record in self._tabled[path][1]])
        write_text(self.path / CSV, csv_text(records))
        write_text(self.path / MARKDOWN, markdown(records))

    def records(self) -> list[Record]:
        """Returns all results, in the order of tasks and roles; one that cannot be read is left out with a warning."""
        return _in_order(list(self._read(self._files())))

    def _files(self) -> list[Path]:
        return sorted((self.path / HOME).glob("*/*.json"))

    def _read(self, paths: Sequence[Path]) -> Iterator[Record]:
        for path in paths:
            try:
                yield read(path)
            except UserError as error:
                self._warn(f"{error}; left out")

    def _file(self, label: str, task: str, split: str | None) -> Path:
        name = f"{_slug(task)}.{split}.json" if split else f"{_slug(task)}.json"
        return self.path / HOME / _slug(label) / name


def _in_order(records: Sequence[Record]) -> list[Record]:
    """Returns results by task, split and role."""
    order = ("model", TWIN, "floor")
    return sorted(
        records, key=lambda r: (r["task"], r["split"] or "", order.index(r["role"]) if r["role"] in order else 9)
    )


def _slug(name: str) -> str:
    """Returns a name that a file may have; where characters were replaced, a hash keeps it apart from others."""
    safe = re.sub(r"[^A-Za-z0-9._=-]+", "_", name).strip("._")[-80:]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def reports(records: Sequence[Record]) -> dict[str, list[Report]]:
    """Returns for each model what it reached on each task, beside its random initialisation and the floors there.

    A subject whose result is about other items than the model's, made with another seed for instance, is left out.
    """
    found: dict[str, list[Report]] = {}
    for model in [r for r in records if r["role"] == "model"]:
        entries = [entry_of(model)]
        for other in records:
            same = all(other[key] == model[key] for key in ("task", "split", "items", "metric"))
            if same and (other["role"] == "floor" or other["subject"] == f"{TWIN} of {model['subject']}"):
                entries.append(against(entries[0], entry_of(other), lower=model["card"].get("better") == "lower"))
        found.setdefault(model["subject"], []).append(
            Report(model["task"], model["card"], entries, split=model["split"])
        )
    return found


# -------------------------------------------------------------------------------------------------------- one file


def _record(entry: Entry, built: Built, key: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": built.name,
        "split": built.split,
        "subject": entry.label,
        "name": entry.name,
        "role": entry.role,
        "summary": entry.summary,
        "key": key,
        "identity": entry.identity,
        "counts": entry.counts,
        "seconds": round(entry.seconds, 3),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "card": built.card,
        **fields_of(entry.result),
    }


def fields_of(result: TaskResult) -> dict[str, Any]:
    """Returns what is written of a result; :func:`result_of` reads it."""
    return {
        "metric": result.metric,
        "value": number(result.value),
        "interval95": [number(end) for end in result.interval],
        "n": result.n,
        "unit": result.unit,
        "items": result.items,
        "metrics": {name: number(value) for name, value in result.metrics.items()},
        "intervals95": intervals(result),
        "details": result.details,
        "per_item": result.per_item,
        "replicates": result.replicates,
        "predictions": result.predictions,
    }


def read(path: Path) -> Record:
    """Reads one result.

    Raises:
        UserError: it is damaged or was written by another version.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise UserError(f"{path}: written in format {record['format']}, this protloom reads {FORMAT}")
        _ = [record[key] for key in ("task", "split", "subject", "role", "key", "card", "metric", "items")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no result of a task, or damaged ({type(error).__name__}: {error})") from None
    found: Record = record
    return found


def result_of(record: Record) -> TaskResult:
    """Returns what a task found, as it was before it was written."""
    return TaskResult(
        metric=record["metric"],
        value=_number(record["value"]),
        interval=_ends(record["interval95"]),
        n=record["n"],
        unit=record["unit"],
        metrics={name: _number(value) for name, value in record["metrics"].items()},
        per_item=np.array(record["per_item"], dtype=np.float64),
        replicates=np.array(record["replicates"], dtype=np.float64),
        items=record["items"],
        details=record["details"],
        intervals={name: _ends(ends) for name, ends in record["intervals95"].items()},
        predictions=record["predictions"],
    )


def entry_of(record: Record) -> Entry:
    """Returns a subject's entry; raises UserError if something is missing in the record."""
    try:
        return Entry(
            name=record["name"],
            label=record["subject"],
            role=record["role"],
            summary=record["summary"],
            result=result_of(record),
            difference=None,
            seconds=record["seconds"],
            counts=record["counts"],
            identity=record["identity"],
            reused=True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{record['task']}: a damaged result ({type(error).__name__}: {error})") from None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _ends(pair: Sequence[float | None]) -> tuple[float, float]:
    low, high = pair
    return _number(low), _number(high)


# ---------------------------------------------------------------------------------------------------------- tables


def csv_text(records: Sequence[Record]) -> str:
    """Returns a row for every subject, task and metric."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    for r in records:
        who = [r["subject"], r["role"], r["task"], r["split"] or "", bool(r["card"].get("simulated"))]
        limit, counts = r["key"]["limit"], r["counts"]
        rest = [r["n"], r["unit"], r["key"]["seed"], "" if limit is None else limit, r["identity"].get("weights", "")]
        rest += [*(counts.get(word, 0) for word in LONG), r["seconds"]]
        for metric, value in r["metrics"].items():
            low, high = r["intervals95"].get(metric, (None, None))
            numbers = ["" if x is None else x for x in (value, low, high)]
            writer.writerow([*who, metric, metric == r["metric"], *numbers, *rest])
    return out.getvalue()


def markdown(records: Sequence[Record]) -> str:
    """Returns the main metrics as a table for each split: models, random initialisations, the best floor."""
    lines: list[str] = []
    for split in dict.fromkeys(r["split"] for r in records):
        lines += [*_table(split, [r for r in records if r["split"] == split]), ""]
    lines += ["Brackets are 95 % intervals over the items of the split.", ""]
    lines += [f"- {note}" for note in _notes(records)]
    return "\n".join(lines).rstrip() + "\n"


def _table(split: str | None, records: Sequence[Record]) -> Iterator[str]:
    subjects = list(dict.fromkeys(r["subject"] for r in records if r["role"] != "floor"))
    yield f"## {'One set of rows, which is the test set' if split is None else f'Split: {split}'}"
    yield ""
    header = ["task", "metric", "n", *subjects, "best floor"]
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * len(header)}"
    for (task, _), own in _rows(records).items():
        first = own[0]
        title = f"{task} (SIMULATED)" if first["card"].get("simulated") else task
        cells = [title, first["metric"], f"{first['n']} {first['unit']}"]
        for subject in subjects:
            cells += [next((_shown(r) for r in own if r["subject"] == subject), "–")]
        floors = [r for r in own if r["role"] == "floor" and r["value"] is not None]
        sign = -1 if first["card"].get("better") == "lower" else 1
        best = max(floors, key=lambda r: sign * r["value"], default=None)
        cells.append("–" if best is None else f"{_shown(best)} {best['subject']}")
        yield f"| {' | '.join(cells)} |"


def _rows(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """Returns the results that stand in one row: of one task and the same items, since others are no match for them.

    A floor stands in a row of its own only where no model has a result of its task.
    """
    rows: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        rows.setdefault((record["task"], record["items"]), []).append(record)
    judged = {r["task"] for r in records if r["role"] != "floor"}
    return {key: own for key, own in rows.items() if key[0] not in judged or any(r["role"] != "floor" for r in own)}


def _shown(record: Record) -> str:
    if record["value"] is None:
        return "undefined"
    low, high = record["interval95"]
    ends = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{record['value']:.3f}{ends}"


def _notes(records: Sequence[Record]) -> Iterator[str]:
    """Yields what a reader must know to judge the numbers."""
    limits = sorted({r["key"]["limit"] for r in records if r["key"]["limit"] is not None})
    if limits:
        yield f"At most {' or '.join(map(str, limits))} items of each split were used: a quick look."
    yield from dict.fromkeys(line for record in records for line in _of_rows(record))
    for record in records:
        told = [f"{record['counts'][word]:,} {word}" for word in LONG if record["counts"].get(word)]
        if told and record["role"] == "model":
            size = record["identity"].get("max_length")
            yield f"{record['task']}, {record['subject']}: sequences over {size} residues: {', '.join(told)}."


def _of_rows(record: Record) -> Iterator[str]:
    """Yields what became of a result's rows; what is the same for every subject comes without the subject."""
    where = record["task"] if record["split"] is None else f"{record['task']} ({record['split']})"
    for line in (*notes.of_size(record["n"], record["unit"]), *notes.of_data(record["details"])):
        yield f"{where}: {line}."
    if record["role"] != "floor":
        for line in notes.of_subject(record["details"]):
            yield f"{where}, {record['subject']}: {line}."
    for line in notes.of_metric(record["subject"], result_of({**record, **_NO_LISTS})):
        yield f"{where}: {line}."
