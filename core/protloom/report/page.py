"""A page: what stands on it, and how it becomes one HTML file."""

from __future__ import annotations

import base64
import importlib.resources
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from protloom import __version__
from protloom.report import charts

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Words:
    """Paragraphs, or points of a list where there are several.

    Attributes:
        lines: one each.
    """

    kind: ClassVar[str] = "words"
    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: a title for every column.
        rows: as many cells in each.
        caption: what the numbers are.
        text_columns: so many columns, from the left, hold words; the others hold numbers, aligned to the right.
    """

    kind: ClassVar[str] = "table"
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text_columns: int = 1


@dataclass(frozen=True)
class Listing:
    """Text as it stands in a file, folded away.

    Attributes:
        title: what it is.
        text: the content.
        open: unfolded at first.
    """

    kind: ClassVar[str] = "listing"
    title: str
    text: str
    open: bool = False


@dataclass(frozen=True)
class Drawing:
    """One picture of a figure.

    Attributes:
        title: above it.
        svg: a whole SVG document.
        wide: takes the width of the page.
    """

    title: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Figure:
    """Pictures with their numbers.

    Attributes:
        name: of the files that can be saved.
        caption: what is to be seen, and how it was made.
        drawings: the pictures.
        csv: all their numbers.
    """

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    drawings: Sequence[Drawing]
    csv: str


Part = Words | Table | Listing | Figure


@dataclass(frozen=True)
class Section:
    """A part of the page with a title; left out where it is empty."""

    title: str
    parts: Sequence[Part]

    @property
    def anchor(self) -> str:
        """What a link to it is called."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: of the page.
        verdict: sentences that say first what it comes to.
        warnings: sentences that say what to look at.
        sections: the rest.
    """

    title: str
    verdict: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section]


def render(page: Page) -> str:
    """Returns a page as HTML with everything in it: no script, and nothing that a browser would load.

    Raises:
        UserError: matplotlib or Jinja2 is not installed.
    """
    charts.refuse_if_missing()
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    source = importlib.resources.files("protloom.report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    sections = [section for section in page.sections if section.parts]
    return environment.from_string(source).render(
        page=page,
        sections=sections,
        version=__version__,
        inline=lambda drawing, prefix: Markup(charts.inline(drawing.svg, prefix, drawing.title)),
        data_uri=data_uri,
        file_name=file_name,
    )


def data_uri(text: str, media_type: str) -> str:
    """Returns a link that holds a whole file."""
    return f"data:{media_type};charset=utf-8;base64,{base64.b64encode(text.encode()).decode('ascii')}"


def file_name(*words: str) -> str:
    """Returns words as a file's name without anything that a file system may refuse."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words)).strip("-")
