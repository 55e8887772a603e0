from __future__ import annotations

import argparse
import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from protloom import cli
from protloom.cli import COMMANDS, Command, common, main
from protloom.errors import UserError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A command ``probe`` whose ``run`` a test replaces."""
    module = ModuleType("protloom.cli.probe")
    module.configure = lambda parser: parser.add_argument("words", nargs="*")  # type: ignore[attr-defined]
    module.run = lambda args: 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "protloom.cli.probe", module)
    monkeypatch.setitem(cli.COMMANDS, "probe", Command("a test", "protloom.cli.probe"))
    return module


def fails_with(module: ModuleType, error: BaseException) -> None:
    def run(args: object) -> int:
        raise error

    module.run = run  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UserError("x.yaml: no"), "error: x.yaml: no", 2),
        (UserError("stopped", exit_code=9), "error: stopped", 9),
        (KeyboardInterrupt(), "interrupted", 130),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"),
            "error: runs/a/metrics.jsonl: No space left on device; free space there, or choose another folder",
            74,
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/root/x"),
            "error: /root/x: Permission denied; check the permissions, or choose another place",
            74,
        ),
    ],
)
def test_every_failure_is_one_line(
    error: BaseException, line: str, code: int, command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(command, error)
    assert main(["probe"]) == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", line + "\n")


def test_an_unforeseen_error_tells_its_line(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    fails_with(command, ZeroDivisionError("a\nb"))
    assert main(["probe"]) == 70
    pattern = (
        r"internal error: ZeroDivisionError: a b, at \S+\.py:\d+ in protloom \(run with --debug for the traceback\)\n"
    )
    assert re.fullmatch(pattern, capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [["--debug", "probe"], ["probe", "--debug"]])
def test_debug_shows_the_traceback(
    arguments: list[str], command: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    fails_with(command, ValueError("why"))
    assert main(arguments) == 70
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert re.search(r"\ninternal error: ValueError: why, at \S+:\d+ in protloom\n$", printed)


def test_global_options_stand_before_and_after_the_command(command: ModuleType) -> None:
    seen = []
    command.run = lambda args: seen.append((args.no_plugin, args.debug, args.words)) or 0  # type: ignore[attr-defined]
    assert main(["--no-plugin", "a", "probe", "w", "--no-plugin=b", "--debug", "v"]) == 0
    assert main(["probe"]) == 0
    assert seen == [(["a", "b"], True, ["w", "v"]), ([], False, [])]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["trian"], "error: no command 'trian'. Did you mean 'train'? See 'protloom --help'."),
        (["plugins", "--jsn"], "(did you mean --json?); see 'protloom plugins --help'"),
        (["plugins", "--no-plugin", "objectivs"], "there is no plugin 'objectivs'. Did you mean 'objectives'?"),
        (["--vrsion"], "(did you mean --version?)"),
        (["show"], "required: KIND"),
        (["show", "objctive", "mlm"], "Did you mean 'objective'?"),
        (["show", "objective", "mml"], "Did you mean 'mlm'?"),
        (["show", "run", "x"], "takes no name"),
        (["show", "objective", "--schema"], "--schema needs a name"),
    ],
)
def test_mistakes_are_told_with_the_nearest_choice(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_command_that_is_not_there_is_told_cleanly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "later", Command("to come", "protloom.cli.no_such_module"))
    assert main(["later"]) == 2
    assert "'later' is not part of this version" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "example" in printed
    assert f"protloom {name}" in printed.rsplit("example", 1)[1]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_example_of_the_help_is_understood(name: str) -> None:
    module = cli._load(name)
    parser = cli.Parser(prog=f"protloom {name}", allow_abbrev=False)
    module.configure(parser)
    parsers = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parsers += action.choices.values()
    for one in parsers:
        lines = one.format_help().partition("example:\n")[2].splitlines() if one.epilog else []
        for line in lines:
            # 'zcat part*.gz | protloom …', 'torchrun … -m protloom …', 'protloom … > file'
            _, _, command = line.rpartition("|")[2].partition(">")[0].partition("protloom ")
            assert command, f"{one.prog}: not an example of protloom: {line!r}"
            words = shlex.split(command)
            at = cli._command_position(words)
            assert at is not None
            assert words.pop(at) == name
            cli._top_parser().parse_strictly(words[:at], argparse.Namespace())
            words = words[at:]
            one_more = cli.Parser(prog=f"protloom {name}", allow_abbrev=False)
            module.configure(one_more)
            cli._global_options(one_more, argparse.SUPPRESS)
            one_more.parse_strictly(words, argparse.Namespace())


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert any(line.split() == [name, *entry.help.split()] for line in printed.splitlines())


def test_no_command_is_not_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "commands:" in printed.err


def test_version_by_both_ways_in() -> None:
    from protloom import __version__

    script = Path(sys.executable).with_name("protloom")
    for start in ([str(script)], [sys.executable, "-m", "protloom"]):
        done = subprocess.run([*start, "--version"], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout == f"protloom {__version__}\n"


def test_a_closed_pipe_is_quiet() -> None:
    command = [sys.executable, "-m", "protloom", "show", "run", "--schema"]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "protloom", "plugins"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 74
    assert done.stderr == "error: No space left on device; free space there, or choose another folder\n"


def test_a_terminal_without_the_signs_does_not_crash() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "protloom", "show", "architecture", "esm2"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_show_prints_options_sizes_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "architecture", "esm2:8M", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["full_name"] == "protloom/esm2"
    assert about["sizes"]["8M"] == {"layers": 6, "width": 320, "heads": 20}
    assert about["defaults"]["objective"] == "mlm"
    options = {option["key"]: option for option in about["options"]}
    assert options["layers"]["type"] == "int >= 1"
    assert all(option["description"] for option in about["options"])

    assert main(["show", "objective", "mlm"]) == 0
    printed = capsys.readouterr().out
    assert "split.mask" in printed
    assert "start_step" in printed

    assert main(["show", "run", "--json"]) == 0
    keys = {option["key"]: option for option in json.loads(capsys.readouterr().out)["options"]}
    assert keys["trainer.steps"]["default"] == 1000
    assert keys["data.corpus.N.path"]["needed"]


def test_show_lists_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "optimizer"]) == 0
    assert "adamw" in capsys.readouterr().out


def test_what_programs_read_is_strict_json(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    value = {"a": float("nan"), 2: (np.float32(0.5), np.arange(2)), "p": Path("x"), "s": {"b", "a"}, "β": True}
    common.print_json(value)
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed, parse_constant=pytest.fail) == {
        "a": None,
        "2": [0.5, [0, 1]],
        "p": "x",
        "s": ["a", "b"],
        "β": True,
    }
    with pytest.raises(TypeError, match="object has no JSON form"):
        common.print_json({"a": object()})


def test_tables_are_aligned_and_wrapped_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    rows = [("a", "one two three four five six seven eight"), ("long", "x")]
    plain, terminal = io.StringIO(), Terminal()
    common.print_table(("k", "meaning"), rows, out=plain)
    common.print_table(("k", "meaning"), rows, out=terminal)
    assert plain.getvalue().splitlines() == ["k     meaning", f"a     {rows[0][1]}", "long  x"]
    assert max(map(len, terminal.getvalue().splitlines())) <= 40
    assert terminal.getvalue().split() == plain.getvalue().split()
