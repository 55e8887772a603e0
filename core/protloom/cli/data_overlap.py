"""``protloom data overlap`` and ``duplicates``: what of the test sets is in a corpus, or in the task's own training."""

from __future__ import annotations

import argparse
import csv
import io
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protloom.cli import common, corpora
from protloom.errors import UserError

if TYPE_CHECKING:
    from protloom.contracts import HasSequences
    from protloom.data.overlap import Audit, Overlap
    from protloom.data.records import Names
    from protloom.plugins import Registry

COLUMNS = ("id", "share", "exact", "tested_in", "corpus")
"""Of the list that is written."""


def configure(commands: Any) -> None:
    """Declares both commands."""
    _configure_overlap(commands.add_parser("overlap", help="find the test sequences of tasks in a corpus"))
    _configure_duplicates(commands.add_parser("duplicates", help="find the test sequences of tasks in their training"))


def _configure_overlap(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Tells which test sequences occur in a corpus, exactly or by their k-mers, and writes a list of the sequences "
        "to drop from it. By default every real task is looked at whose data are there. Of several corpora the ids are "
        "those of the one store that 'data prepare' makes of them all."
    )
    parser.add_argument("corpora", nargs="+", metavar="CORPUS", help="a store, FASTA, CSV, TSV, Parquet, '-' or demo:")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="tasks, groups (ss3), patterns ('gb1:*'), suites")
    parser.add_argument("--against", nargs="+", default=[], metavar="FILE", help="test sequences in files of your own")
    _comparison_options(parser)
    parser.add_argument("--mmseqs", action="store_true", help="align with MMseqs2 instead, which must be on the PATH")
    parser.add_argument("--identity", type=float, metavar="X", help="with --mmseqs: least identity (0.3)")
    parser.add_argument("--coverage", type=float, metavar="X", help="with --mmseqs: least share of the test sequence")
    parser.add_argument("--column", metavar="C", help="sequence column of a table")
    parser.add_argument("--out", metavar="F.tsv", help="write the sequences of the corpus that overlap, for --drop")
    common.example(
        parser,
        "protloom data overlap corpus --data-dir data --out drop.tsv",
        "protloom data overlap proteins.fasta.gz --tasks solubility 'ss3:*' --against mine.fasta --share 0.5",
        "protloom data prepare corpus --drop drop.tsv --out cleaned",
    )


def _configure_duplicates(parser: argparse.ArgumentParser) -> None:
    parser.description = "Tells of each task which test sequences its own training and validation sets hold."
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="tasks, groups (ss3), patterns ('gb1:*'), suites")
    _comparison_options(parser)
    common.example(parser, "protloom data duplicates solubility 'ss3:*' --data-dir data")


def _comparison_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", metavar="DIR", help="folder of real data; default: PROTLOOM_DATA")
    parser.add_argument("--share", type=float, metavar="X", help="least share of k-mers that counts (0.3)")
    parser.add_argument("--k", type=int, metavar="K", help="residues of a k-mer (6)")
    common.json_option(parser)


@dataclass
class _Told:
    """Tasks that tell their sequences, and why others do not.

    Attributes:
        tasks: by name.
        tested: their test sequences.
        failed: reason -> tasks that were asked for and cannot be looked at.
        silent: tasks that do not tell their sequences, or whose data are not there, of those that nobody asked for.
    """

    tasks: dict[str, HasSequences] = field(default_factory=dict)
    tested: dict[str, Sequence[str]] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    silent: list[str] = field(default_factory=list)


def _tasks(wanted: Sequence[str] | None, args: argparse.Namespace, registry: Registry) -> _Told:
    """Builds the tasks that names mean; without names, every real one whose data are there."""
    from protloom.contracts import HasSequences
    from protloom.task import faults as task_faults
    from protloom.task import suite as task_suite

    found = _Told()
    # a task may score its validation set by default, and then needs no test set to run
    selection = task_suite.select(task_suite.names(registry) if wanted is None else wanted, registry, split="test")
    for name, reason in selection.unable.items():
        found.failed.setdefault(reason, []).append(name)
    for choice in selection.choices:
        try:
            task = task_suite.build(choice.component, registry, data_dir=args.data_dir, options=choice.options)
            component = registry.resolve("task", choice.component)
            if wanted is None and task_faults.card(component, task).get("simulated"):
                continue  # a corpus of simulated proteins is compared with them on request
            task_faults.asked(component, task.check)
            if not isinstance(task, HasSequences):
                raise UserError("does not tell its sequences, so it cannot be compared")
            found.tested[choice.name] = list(task_faults.asked(component, partial(task.sequences, "test")))
            found.tasks[choice.name] = task
        except UserError as error:
            if wanted is None:
                found.silent.append(choice.name)
            else:
                found.failed.setdefault(str(error), []).append(choice.name)
    for reason, concerned in found.failed.items():
        print(f"error: {', '.join(concerned)}: {reason}", file=sys.stderr)
    return found


def run(args: argparse.Namespace) -> int:
    """Does what was asked; returns 1 if a task that was named could not be looked at."""
    return _overlap(args) if args.action == "overlap" else _duplicates(args)


# -------------------------------------------------------------------------------------------------------------- overlap


def _overlap(args: argparse.Namespace) -> int:
    from protloom.data.overlap import Audit
    from protloom.data.records import Names

    _check(args)
    registry = common.registry(args)
    told = _Told() if args.against and args.tasks is None else _tasks(args.tasks, args, registry)
    sets: dict[str, Sequence[str]] = dict(told.tested)
    for path in args.against:
        sets[path] = [sequence for _, sequence in _entries(path, None, registry)]
    if not sets:
        raise UserError("no test sequences to compare with: give --data-dir, or --against FILE" + _of(told.silent))
    audit = Audit(sets, share=_share(args))
    names = Names()
    columns = corpora.columns_of(args.corpora, args.column)
    found = {
        corpus: list(_found(_entries(corpus, columns[corpus], registry, names), audit, args)) for corpus in args.corpora
    }
    if args.out is not None:
        _refuse_unclear(names, args)
        _write(Path(args.out), found, audit)
    if args.json:
        common.print_json(_record(found, audit, told, args))
    else:
        _print_overlap(found, audit, told, args)
    return 1 if told.failed else 0


def _check(args: argparse.Namespace) -> None:
    """Refuses options that do not go together, before hours of reading."""
    corpora.refuse_twice(args.corpora)
    if args.mmseqs:
        from protloom.data import mmseqs

        for name in ("share", "k"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} is about k-mers: with --mmseqs say --identity and --coverage")
        _search(args)
        mmseqs.find()
    elif args.identity is not None or args.coverage is not None:
        raise UserError("--identity and --coverage are about alignments: say --mmseqs too, or --share")
    if args.out is not None and (Path(args.out).is_dir() or not Path(args.out).absolute().parent.is_dir()):
        raise UserError(f"--out {args.out}: name a file in a folder that exists")


def _search(args: argparse.Namespace) -> Any:
    from protloom.data.mmseqs import Search

    given = {"identity": args.identity, "coverage": args.coverage}
    return Search(**{name: value for name, value in given.items() if value is not None})


def _share(args: argparse.Namespace) -> float:
    from protloom.data.overlap import SHARE

    if getattr(args, "mmseqs", False):
        return float(_search(args).identity)
    return SHARE if args.share is None else float(args.share)


def _k(args: argparse.Namespace) -> int:
    from protloom.data.overlap import K

    return K if args.k is None else int(args.k)


def _found(entries: Iterator[tuple[str, str]], audit: Audit, args: argparse.Namespace) -> Iterator[Overlap]:
    from protloom.data import mmseqs, overlap

    if args.mmseqs:
        return mmseqs.overlaps(entries, audit, _search(args))
    return overlap.overlaps(_shown(entries), audit, k=_k(args))


def _entries(
    source: str, column: str | None, registry: Registry, names: Names | None = None
) -> Iterator[tuple[str, str]]:
    """Yields (id, residues) of any kind of corpus, and tells what cleaning did to it.

    Args:
        source: the corpus.
        column: sequence column of a table.
        registry: where readers are found.
        names: shared by the corpora that one list of ids is about.
    """
    from protloom.data.records import Source

    opened = Source(source, registry, column=column, names=names)
    yield from opened.entries()
    common.warn_of_cleaning(opened.tally)


def _shown(entries: Iterator[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Counts on stderr, on a terminal only."""
    for number, entry in enumerate(entries, start=1):
        if number % 100_000 == 0 and sys.stderr.isatty():
            print(f"\r{number:,} sequences", end="\r", file=sys.stderr, flush=True)
        yield entry


def _refuse_unclear(names: Names, args: argparse.Namespace) -> None:
    """Raises UserError where an id of the list would be that of another sequence in the store."""
    if names.unclear is not None:
        raise UserError(
            f"the id {names.unclear!r} is that of a sequence, and was given to an earlier one whose id came again, so "
            f"a list of ids would not be clear: first '{_prepare(args)}', then look at the store; nothing was written"
        )


def _prepare(args: argparse.Namespace, *options: str) -> str:
    """Returns the command that makes one store of the corpora."""
    column = [] if args.column is None else ["--column", args.column]
    words = shlex.join(["protloom", "data", "prepare", *args.corpora, *column, *options])
    return f"{words} --out CLEANED"


def _write(path: Path, found: Mapping[str, Sequence[Overlap]], audit: Audit) -> None:
    from protloom.data.streams import WriteError
    from protloom.files import write_text

    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\")
    table.writerow(COLUMNS)
    for corpus, overlaps in found.items():
        for one in overlaps:
            sets = " ".join(audit.sets_of(one.tested))
            table.writerow((one.id, f"{one.share:.3f}", "yes" if one.exact else "no", sets, corpus))
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise WriteError(path, error) from error


def _record(
    found: Mapping[str, Sequence[Overlap]], audit: Audit, told: _Told, args: argparse.Namespace
) -> dict[str, Any]:
    how = {"mmseqs": _search(args)} if args.mmseqs else {"k": _k(args), "share": audit.share}
    return {
        **how,
        "corpora": {corpus: {"overlapping": len(overlaps)} for corpus, overlaps in found.items()},
        "read": audit.read,
        "tasks": audit.counts(),
        "not_compared": told.silent,
        "failed": {name: reason for reason, names in told.failed.items() for name in names},
        "list": args.out,
    }


def _print_overlap(found: Mapping[str, Sequence[Overlap]], audit: Audit, told: _Told, args: argparse.Namespace) -> None:
    how = "identity" if args.mmseqs else "share"
    header = ("test set", "sequences", "in the corpus exactly", f"{how} >= {audit.share:g}", "of the corpus")
    rows = [
        (
            name,
            f"{count.tested:,}",
            _part(count.exact, count.tested),
            _part(count.above, count.tested),
            f"{count.corpus:,}",
        )
        for name, count in audit.counts().items()
    ]
    common.print_table(header, rows)
    total = sum(map(len, found.values()))
    what = "by alignment" if args.mmseqs else f"by {_k(args)}-mers"
    print(f"\n{total:,} of {audit.read:,} sequences of the corpus overlap with a test sequence ({what})")
    if told.silent:
        print(f"not compared{_of(told.silent)}")
    if args.out is None and total:
        print(f"next     the same with --out drop.tsv, then: {_prepare(args, '--drop', 'drop.tsv')}")
    if args.out is not None:
        print(f"list     {args.out}")
        if total:
            print(f"next     {_prepare(args, '--drop', args.out)}")


def _part(count: int, whole: int) -> str:
    return f"{count:,} ({count / whole:.1%})" if whole else f"{count:,}"


def _of(silent: Sequence[str]) -> str:
    """Names the tasks that could not be looked at, with what tells why."""
    return f" (no data, or they do not tell their sequences: {', '.join(silent)}; see 'task list')" if silent else ""


# ----------------------------------------------------------------------------------------------------------- duplicates


def _duplicates(args: argparse.Namespace) -> int:
    from protloom.data.overlap import occurring

    told = _tasks(args.tasks, args, common.registry(args))
    share, k = _share(args), _k(args)
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: must lie above 0 and be at most 1")
    records: dict[str, dict[str, int]] = {}
    for name, task in told.tasks.items():
        tested = told.tested[name]
        training = [*task.sequences("train"), *task.sequences("valid")]
        exact, above = occurring(tested, training, k=k, share=share)
        records[name] = {
            "training": len(training),
            "test": len(tested),
            "exact": int(exact.sum()),
            "above": int(above.sum()),
            "repeated_in_test": len(tested) - len(set(tested)),
        }
    if args.json:
        failed = {name: reason for reason, names in told.failed.items() for name in names}
        common.print_json({"k": k, "share": share, "tasks": records, "failed": failed})
        return 1 if told.failed else 0
    rows = [
        (
            name,
            f"{r['training']:,}",
            f"{r['test']:,}",
            _part(r["exact"], r["test"]),
            _part(r["above"], r["test"]),
            f"{r['repeated_in_test']:,}",
        )
        for name, r in records.items()
    ]
    if rows:
        what = ("in training exactly", f"share >= {share:g}", "repeat another test sequence")
        common.print_table(("task", "training and validation", "test", *what), rows)
    return 1 if told.failed else 0
