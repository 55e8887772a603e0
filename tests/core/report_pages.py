"""Run folders written by hand, and a reader of the pages that are made of them."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from protloom.config import source as config_source

VOID = {"meta", "link", "br", "hr", "img", "input"}
CONFIG: dict[str, Any] = {
    "seed": 3,
    "out": "elsewhere",
    "init": None,
    "data": {"corpus": "proteins.fasta"},
    "tokenizer": {"name": "letters"},
    "architecture": {"name": "tower", "layers": 2, "width": 32, "tied": True},
    "objective": {"name": "mlm", "mask_rate": 0.15},
    "combine": "summed",
    "optimizer": {"name": "adamw", "lr": 0.003},
    "schedule": {"name": "cosine", "warmup_steps": 10},
    "trainer": {
        "steps": 100,
        "max_seconds": None,
        "tokens_per_step": 1000,
        "precision": "fp32",
        "device": "auto",
        "parallel": "none",
        "clip_norm": 1.0,
    },
    "kernels": "auto",
    "components": [{"kind": "objective", "name": "mlm", "distribution": "protloom", "version": "0.1.0"}],
}


def training(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    """Returns a logged line of a training step of 1,000 tokens and half a second."""
    return {
        "step": step,
        "loss": loss,
        "loss/mlm": loss,
        "scored/mlm": 150,
        "perplexity/mlm": 9.0,
        "accuracy/mlm": 0.1 + step / 1000,
        "learning_rate": 0.003 * (1 - step / 200),
        "grad_norm": 0.7,
        "tokens": 1000 * step,
        "tokens_per_second": 2000.0 + step,
        "mfu": 0.04,
        "padding_share": 0.0,
        "memory_mib": 512.25,
        "seconds": 0.5 * step,
        "skipped": 0,
        **more,
    }


def validation(step: int, loss: float, **more: Any) -> dict[str, Any]:
    """Returns a logged line of a validation, which has no counters."""
    return {
        "step": step,
        "loss": loss,
        "validation/loss": loss,
        "validation/loss/mlm": loss,
        "validation/perplexity/mlm": 9.0,
        "validation/accuracy/mlm": 0.125,
        "validation/unigram_entropy/mlm": 2.9,
        **more,
    }


def healthy() -> list[dict[str, Any]]:
    """Returns the log of a run of 100 steps that leaves nothing to remark."""
    lines = [validation(0, 3.5)]
    for step in range(10, 101, 10):
        lines.append(training(step, 3.4 - step / 100))
        if step % 20 == 0:
            lines.append(validation(step, 3.5 - step / 100))
    return lines


def changed(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a mapping with dotted keys replaced."""
    whole: dict[str, Any] = json.loads(json.dumps(base))
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = whole
        for parent in parents:
            place = place[parent]
        place[last] = value
    return whole


def write_run(
    folder: Path, lines: Sequence[Mapping[str, Any]], state: Mapping[str, Any] | None = None, **changes: Any
) -> Path:
    """Writes a run folder; keyword arguments with ``__`` for dots change its run file.

    With a ``state`` it has a checkpoint of that step, whose weights are two tensors of 12 and 5 numbers.
    """
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = changed(CONFIG, {key.replace("__", "."): value for key, value in changes.items()})
    (folder / "config.yaml").write_text(config_source.dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state is not None:
        model = folder / "checkpoints" / f"step-{state['step']:08d}" / "model"
        model.mkdir(parents=True)
        save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, model / "model.safetensors")
        (model.parent / "state.json").write_text(json.dumps({"format": 1, **state}))
    return folder


class Reader(HTMLParser):
    """Walks a page; fails where a tag is not closed in its place.

    Attributes:
        ids: of all elements.
        anchors: ``#`` links, those inside of figures too.
        loaded: what a browser would fetch.
        files: name -> text of what can be saved.
        tables: rows of cells.
        text: all words, without those of style sheets.
        tags: every tag that occurs.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.anchors: list[str] = []
        self.loaded: list[str] = []
        self.files: dict[str, str] = {}
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.stack == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(tag, dict(attrs))
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.stack, f"<{tag}/> closes itself only inside of a figure"
        self._note(tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.stack:
            assert "url(" not in data
            assert "@import" not in data
            return
        self.words.append(data)
        if self.stack and self.stack[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def _note(self, tag: str, attributes: Mapping[str, str | None]) -> None:
        self.tags.add(tag)
        for name, value in attributes.items():
            assert not name.startswith("on"), "no scripts"
            target = value or ""
            if name == "id":
                self.ids.append(target)
            elif name in ("href", "xlink:href", "src", "srcset", "data", "action", "poster"):
                self._link(target, attributes.get("download"))
            elif name in ("style", "clip-path", "fill") and "url(" in target:
                self.anchors.append(target.partition("url(")[2].partition(")")[0])

    def _link(self, target: str, download: str | None) -> None:
        if target.startswith("#"):
            self.anchors.append(target)
        elif not target.startswith("data:"):
            self.loaded.append(target)
        elif download is not None:
            kind, _, content = target.partition(",")
            assert kind.endswith(";base64")
            assert download not in self.files
            self.files[download] = base64.b64decode(unquote(content)).decode()

    def rows(self, name: str) -> list[dict[str, str]]:
        """Returns the rows of a CSV file that can be saved."""
        return list(csv.DictReader(io.StringIO(self.files[name])))


def read_page(path: Path) -> Reader:
    """Reads a page and checks what must be true of all: whole, self-contained, without scripts, every link inside."""
    reader = Reader(path.read_text(encoding="utf-8"))
    assert reader.loaded == []
    assert not reader.tags & {"script", "iframe", "object", "embed", "base"}
    assert len(set(reader.ids)) == len(reader.ids)
    assert {anchor.removeprefix("#") for anchor in reader.anchors} <= set(reader.ids)
    return reader
