"""Finds the blocks of code in pages, and tells what running them means."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

SHELL = ("bash", "console")
RUN = (*SHELL, "python", "diff")
"""Languages of blocks that are run, or done."""
READ = ("yaml", "toml", "json")
"""Languages of blocks that must parse."""
OUTPUT = "text"
NEEDS = ("data", "gpu", "gpus", "cluster", "internet", "minutes")

_FENCE = re.compile(r"^( *)(`{3,}|~{3,})(.*)$")
_NOTE = re.compile(r"^\s*(?:%|<!--)\s*(needs|file|reduced):\s*(.*?)\s*(?:-->)?$")
_FILE = re.compile(r"^# file: (\S+)$")


@dataclass(frozen=True)
class Block:
    """A block of code of a page.

    Attributes:
        where: page and line.
        language: as the fence says it, empty where it says none.
        text: without the fences.
        needs: what must be there to run it, of :data:`NEEDS`: a comment before it, ``% needs: data``.
        named: the file that a comment before it names, ``% file: proteins.fasta``.
        reduced: a command of protloom and words that the tests add to its lines: a comment before the block,
            ``% reduced: train trainer.steps=2``, where what is shown takes hours.
    """

    where: str
    language: str
    text: str
    needs: tuple[str, ...] = ()
    named: str | None = None
    reduced: str = ""

    @property
    def file(self) -> str | None:
        """The file that the block is written to: named before it, or by its first line, ``# file: run.yaml``."""
        first = _FILE.match(self.text.split("\n", 1)[0])
        return first[1] if first else self.named

    @property
    def runs(self) -> bool:
        """True if running the page does something with it."""
        return self.language in RUN or self.file is not None

    @property
    def commands(self) -> list[str]:
        """The command lines of a block of the shell, those that are continued as one."""
        return [line for line in re.sub(r"\\\n\s*", " ", self.script).split("\n") if line.strip()]

    @property
    def script(self) -> str:
        """What the shell runs: all lines; or those after a prompt, where a block shows what they print as well."""
        lines = self.text.rstrip("\n").split("\n")
        if self.language != "console" or not any(line.startswith("$ ") for line in lines):
            return "\n".join(lines)
        kept: list[str] = []
        for line in lines:
            if line.startswith("$ "):
                kept.append(line[2:])
            elif kept and kept[-1].endswith("\\"):
                kept.append(line)
        return "\n".join(kept)

    def in_short(self, script: str) -> str:
        """Returns a script whose commands are reduced as the comment before the block says."""
        if not self.reduced:
            return script
        command, _, words = self.reduced.partition(" ")
        lines, found = [], False
        for line in script.split("\n"):
            call = re.match(rf"^(?:! )?protloom {command}\b[^#|>&;]*", line)
            found = found or call is not None
            lines.append(line if call is None else f"{call[0].rstrip()} {words} {line[call.end() :]}".rstrip())
        if not found:
            raise ValueError(f"{self.where}: no line to reduce begins with 'protloom {command}'")
        return "\n".join(lines)

    def step(self) -> dict[str, str]:
        """Returns what ``run_page.py`` does for this block."""
        if self.file is not None:
            return {"where": self.where, "do": "write", "text": self.text, "file": self.file}
        text = self.in_short(self.script) if self.language in SHELL else self.text
        return {"where": self.where, "do": "shell" if self.language in SHELL else self.language, "text": text}


def blocks(text: str, page: str) -> Iterator[Block]:
    """Yields the fenced blocks of a page in order; directives of MyST are none."""
    lines = text.split("\n")
    notes: dict[str, str] = {}
    at = 0
    while at < len(lines):
        note, fence = _NOTE.match(lines[at]), _FENCE.match(lines[at])
        if fence is None:
            if note:
                notes[note[1]] = note[2]
            elif lines[at].strip():
                notes = {}
            at += 1
            continue
        indent, ticks, info = fence.groups()
        end = next(
            (n for n in range(at + 1, len(lines)) if re.match(rf"^ *{ticks[0]}{{{len(ticks)},}} *$", lines[n])),
            len(lines),
        )
        body = "".join(f"{line.removeprefix(indent)}\n" for line in lines[at + 1 : end])
        words = info.split()
        language = words[0] if words else ""
        if not language.startswith("{"):
            needs = tuple(re.split(r"[,\s]+", notes["needs"])) if "needs" in notes else ()
            yield Block(f"{page}:{at + 1}", language, body, needs, notes.get("file"), notes.get("reduced", ""))
        notes = {}
        at = end + 1
