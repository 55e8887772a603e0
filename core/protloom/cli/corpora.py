"""What ``data prepare`` and ``data overlap`` do alike with several corpora."""

from __future__ import annotations

from collections.abc import Sequence

from protloom.errors import UserError


def refuse_twice(sources: Sequence[str]) -> None:
    """Raises UserError if a source is named twice."""
    for source in sources:
        if sources.count(source) > 1:
            raise UserError(f"{source} is named twice: name each source once")


def columns_of(sources: Sequence[str], column: str | None) -> dict[str, str | None]:
    """Returns the sequence column of each source: ``--column`` is about the tables, if there are any among them."""
    from protloom.data.tabular import is_table

    tables = [source for source in sources if is_table(source)]
    return {source: column if source in tables or not tables else None for source in sources}
