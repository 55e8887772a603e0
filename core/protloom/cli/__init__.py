"""The command line: finds the command, imports its module alone, and turns every failure into one line.

A command is a module with ``configure(parser) -> None``, which declares arguments and an example, and
``run(args) -> int``, which returns the exit code. The table below is all that ``protloom --help`` reads, so that help
imports no plugin and no numerical library.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple, NoReturn

from protloom import __version__
from protloom.errors import UserError, did_you_mean, nearest

INTERRUPTED = 130
BROKEN_PIPE = 141
IO_ERROR = 74
INTERNAL_ERROR = 70
PATIENCE = 3.0
"""Seconds; torchrun looks after its processes every tenth of a second."""


class Command(NamedTuple):
    """A line of the command table."""

    help: str
    module: str


COMMANDS = {
    "train": Command("train a model on sequences", "protloom.cli.train"),
    "resume": Command("go on with a run that stopped", "protloom.cli.resume"),
    "task": Command("list, show and run downstream tasks", "protloom.cli.task"),
    "compare": Command("train recipes under one budget and tell where they differ", "protloom.cli.compare"),
    "report": Command("write one offline page about runs", "protloom.cli.report"),
    "embed": Command("write the features that a model gives to sequences", "protloom.cli.embed"),
    "complete": Command("write the rest of sequences whose beginning is given", "protloom.cli.complete"),
    "generate": Command("write new sequences with a trained model", "protloom.cli.generate"),
    "score": Command("tell how likely a model holds sequences, residue by residue", "protloom.cli.score"),
    "plan": Command("tell what a run will take before it is started", "protloom.cli.plan"),
    "bench": Command("measure how fast variants of a training run are", "protloom.cli.bench"),
    "data": Command("prepare, inspect and simulate corpora", "protloom.cli.data"),
    "preview": Command("print what an objective makes of a sequence", "protloom.cli.preview"),
    "plugins": Command("list plugins and their components, and explain failures", "protloom.cli.plugins"),
    "new-plugin": Command("write a plugin package that works, to start from", "protloom.cli.new_plugin"),
    "check-plugin": Command("check that a plugin's components keep their contracts", "protloom.cli.check_plugin"),
    "show": Command("describe a component and its options", "protloom.cli.show"),
    "convert": Command("convert weights from and to other programs' formats", "protloom.cli.convert"),
    "doctor": Command("tell what this machine offers and what is missing", "protloom.cli.doctor"),
}
"""Every command by name."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes end in one line with the nearest valid choice."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError instead of printing the usage."""
        raise UserError(f"{message}; see '{self.prog} --help'")

    def parse_strictly(self, argv: Sequence[str], namespace: argparse.Namespace) -> argparse.Namespace:
        """Parses ``argv`` into ``namespace``; raises UserError for what is not understood."""
        nested = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        # intermixed: 'train run.yaml --out DIR seed=1' has positionals on both sides of an option
        parse = self.parse_known_args if nested else self.parse_known_intermixed_args
        args, unknown = parse(argv, namespace)
        if unknown:
            guess = nearest(unknown[0].split("=")[0], self.options())
            hint = f" (did you mean {guess}?)" if guess else ""
            self.error(f"not understood: {' '.join(unknown)}{hint}")
        return args

    def options(self) -> Iterator[str]:
        """Yields the option strings of this parser and its sub-parsers."""
        for action in self._actions:
            yield from action.option_strings
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.options()


def console() -> NoReturn:
    """Runs the command line of this process and ends the process with its exit code."""
    code = main()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # everything is written and closed; at the interpreter's own exit the threads of process groups that sharded
        # parameters still hold would now and then abort a process that has succeeded ("terminate called without …")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code, which is 0 only on success.

    Args:
        argv: the arguments after the program's name; those of the process by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _spin_briefly()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a terminal that cannot show a sign gets a '?', not a crash
            stream.reconfigure(errors="replace")
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BrokenPipeError:
        _discard_output()  # whoever read it has seen enough
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        code = _report(error, debug="--debug" in arguments)
        try:
            sys.stdout.flush()
        except OSError:
            _discard_output()
    return code


def _spin_briefly() -> None:
    """Makes OpenMP's threads wait by sleeping soon, before torch loads OpenMP; who sets a policy keeps it.

    By default they spin: beside another program that uses a core, packed training then took 5 to 16 times as long as
    with threads that sleep, for a few per cent at most on an idle machine (benchmarks/wait_policy.py measures yours).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def _discard_output() -> None:
    """Sends stdout nowhere, so that the interpreter does not complain when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str]) -> int:
    at = _command_position(arguments)
    top = _top_parser()
    if at is None:
        top.parse_strictly(arguments, argparse.Namespace())
        top.print_help(sys.stderr)
        return 2
    args = top.parse_strictly(arguments[:at], argparse.Namespace())
    name = arguments[at]
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}.{did_you_mean(name, COMMANDS)} See 'protloom --help'.")
    module = _load(name)
    parser = Parser(
        prog=f"protloom {name}",
        description=f"{COMMANDS[name].help[0].upper()}{COMMANDS[name].help[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    _global_options(parser, argparse.SUPPRESS)
    args = parser.parse_strictly(arguments[at + 1 :], args)
    code: int = module.run(args)
    return code


def _command_position(arguments: Sequence[str]) -> int | None:
    """Returns where the command's name stands: the first argument that is neither an option nor an option's value."""
    skip = False
    for at, argument in enumerate(arguments):
        if skip:
            skip = False
        elif not argument.startswith("-"):
            return at
        else:
            skip = argument == "--no-plugin"
    return None


def _load(name: str) -> ModuleType:
    module = COMMANDS[name].module
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise UserError(f"the command {name!r} is not part of this version of protloom ({__version__})") from None


def _top_parser() -> Parser:
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items())
    parser = Parser(
        prog="protloom",
        usage="protloom [--debug] [--no-plugin NAME] COMMAND ...",
        description=f"Trains and evaluates protein language models; everything is a plugin.\n\ncommands:\n{table}",
        epilog="'protloom COMMAND --help' explains a command.\n\nexample:\n"
        "  protloom train --data proteins.fasta --arch esm2:8M --out runs/first",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"protloom {__version__}")
    _global_options(parser, False)
    return parser


def _global_options(parser: argparse.ArgumentParser, default: object) -> None:
    """Declares what may stand before the command as well as after it."""
    group = parser.add_argument_group("global options")
    group.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")
    group.add_argument(
        "--no-plugin",
        action="append",
        metavar="NAME",
        default=default or [],
        help="do not load this plugin: a distribution, an entry point, or distribution:entrypoint",
    )


def _report(error: BaseException, *, debug: bool) -> int:
    """Prints an error, after its traceback if ``debug``, and returns the exit code that goes with it."""
    if debug:
        import traceback

        traceback.print_exception(error)
    if isinstance(error, UserError):
        line, code = f"error: {error}", error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        line, code = "interrupted", INTERRUPTED
    elif isinstance(error, OSError):
        line, code = f"error: {_explain_os_error(error)}", IO_ERROR
    else:
        from protloom.plugins.blame import explain

        advice = "" if debug else " (run with --debug for the traceback)"
        line, code = f"internal error: {explain(error)}{advice}", INTERNAL_ERROR
    if os.environ.get("RANK", "0") != "0":
        line = _as_second_voice(line)
    print(line, file=sys.stderr)
    return code


def _as_second_voice(line: str) -> str:
    """Gives rank 0 the time to tell the same first: torchrun then ends this process, and it is told once.

    An error of this process alone comes through, with the rank's number.
    """
    import signal
    import time

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(PATIENCE)
    return f"[rank {os.environ['RANK']}] {line}"


def _joined(error: BaseException) -> str:
    return " ".join(str(error).split())


def _explain_os_error(error: OSError) -> str:
    import errno

    advice = {
        errno.ENOSPC: "; free space there, or choose another folder",
        errno.EDQUOT: "; free space there, or choose another folder",
        errno.EACCES: "; check the permissions, or choose another place",
        errno.EPERM: "; check the permissions, or choose another place",
        errno.EROFS: "; choose a place that can be written",
        errno.ENOENT: "; check the path",
    }
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' -> '.join(names)}: " if names else ""
    what = error.strerror or _joined(error) or type(error).__name__
    return f"{where}{what}{advice.get(error.errno or 0, '')}"
