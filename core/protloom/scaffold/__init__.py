"""Writes a plugin package to start from: one small component that works, its tests, and what pip needs."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from pathlib import Path

from protloom import __version__
from protloom.errors import UserError, did_you_mean
from protloom.specs import API_VERSION

TEMPLATES = Path(__file__).with_name("templates")
COMMON = "common"
ENDING = ".tmpl"

KINDS = ("objective", "architecture", "tokenizer", "task", "optimizer", "kernel")
"""Kinds of component that there is a template for."""

USES: Mapping[str, str] = {
    "objective": "protloom train --data demo: --arch esm2:tiny objective=@NAME@ trainer.steps=50",
    "architecture": "protloom train --data demo: --arch @NAME@:tiny trainer.steps=50",
    "tokenizer": "protloom train --data demo: --arch esm2:tiny tokenizer=@NAME@ trainer.steps=50",
    "task": "protloom task run @NAME@ --model floor:kmer2",
    "optimizer": "protloom train --data demo: --arch esm2:tiny optimizer=@NAME@ trainer.steps=50",
    "kernel": "protloom train --data demo: --arch amplify:tiny kernels=@NAME@ trainer.steps=50",
}
"""A command that uses a new component of each kind."""

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def write(kind: str, name: str, folder: Path) -> list[Path]:
    """Writes a package.

    Args:
        kind: one of :data:`KINDS`.
        name: of the component: lower-case words joined by ``-``.
        folder: the folder to make.

    Returns:
        The files, in order.

    Raises:
        UserError: no such kind, a name that cannot be one, or a folder that is not empty.
    """
    if kind not in KINDS:
        raise UserError(f"no template for a {kind!r}.{did_you_mean(kind, KINDS)}")
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(f"{name!r} cannot be a name: use lower-case letters and digits, words joined by '-'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder with --out")
    words = words_of(kind, name)
    written = []
    for source in sorted([*(TEMPLATES / COMMON).rglob(f"*{ENDING}"), *(TEMPLATES / kind).rglob(f"*{ENDING}")]):
        home = TEMPLATES / (COMMON if source.is_relative_to(TEMPLATES / COMMON) else kind)
        target = folder / fill(str(source.relative_to(home)).removesuffix(ENDING), words)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(fill(source.read_text(encoding="utf-8"), words), encoding="utf-8")
        written.append(target)
    return written


def words_of(kind: str, name: str) -> dict[str, str]:
    """Returns what stands for the words of the templates."""
    module = name.replace("-", "_")
    words = {
        "KIND": kind,
        "NAME": name,
        "DISTRIBUTION": f"protloom-{name}",
        "PACKAGE": f"protloom_{module}",
        "MODULE": module,
        "CLASS": "".join(word.capitalize() for word in name.split("-")),
        "VERSION": __version__,
        "API": str(API_VERSION),
    }
    return {**words, "USE": fill(USES[kind], words)}


def fill(text: str, words: Mapping[str, str]) -> str:
    """Puts words in their places, ``@NAME@`` for example; other text between signs stays."""
    return re.sub(r"@([A-Z]+)@", lambda match: words.get(match[1], match[0]), text)
