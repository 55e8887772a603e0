"""What tasks share whatever they measure: floors, the files that they need, and what a card says of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic

from protloom.errors import UserError
from protloom_tasks.datasets.published import Fetch, download_of
from protloom_tasks.datasets.selection import find
from protloom_tasks.definition import D, Loaded

if TYPE_CHECKING:
    from pathlib import Path

    from protloom.contracts import Download, Subject
    from protloom_tasks.datasets.files import Source
    from protloom_tasks.floors import Floor


class TaskBase:
    """Floors, files and the entries of a card that follow from them.

    Attributes:
        name: of the task.
        simulated: a program made the data.
    """

    name: str
    simulated = False

    def _floors(self) -> Sequence[Floor]:
        raise NotImplementedError

    def _sources(self) -> Sequence[Source]:
        """Returns the files that a card names."""
        return ()

    def _needed(self) -> Sequence[Source]:
        """Returns those of them that a run reads."""
        return self._sources()

    def _find(self, source: Source) -> Path:
        raise NotImplementedError

    def check(self) -> None:
        """Raises UserError if a file is missing."""
        for source in self._needed():
            self._find(source)

    def _recipes(self) -> Sequence[Fetch]:
        """Returns how files are made of published ones, where that is known."""
        return ()

    def downloads(self) -> Sequence[Download]:
        """Returns the files of the task; see :class:`protloom.contracts.HasDownloads`."""
        return [download_of(source, self._recipes()) for source in self._sources()]

    def floors(self) -> Mapping[str, Subject]:
        """Returns the trivial subjects, the most telling one first."""
        return {floor.name: floor for floor in self._floors()}

    def _tail(self) -> dict[str, Any]:
        """Returns the last entries of a card."""
        sources = self._sources()
        return {
            "floors": {floor.name: floor.summary for floor in self._floors()},
            "data": {source.path: {"from": source.origin, "licence": source.licence} for source in sources},
            "status": {source.path: self._status(source) for source in sources},
            "simulated": self.simulated,
        }

    def _status(self, source: Source) -> str:
        try:
            self._find(source)
        except UserError:
            return f"missing {source.path}"
        return "ready"


class DefinedTask(TaskBase, Generic[D]):
    """A task that a definition says.

    Args:
        loaded: the definition.
        data_dir: the data folder; None: what PROTLOOM_DATA says.

    Attributes:
        definition: what the file says.
    """

    def __init__(self, loaded: Loaded[D], data_dir: str | None) -> None:
        self.name, self.definition = loaded.name, loaded.definition
        self._folder, self._data_dir = loaded.folder, data_dir

    def _find(self, source: Source) -> Path:
        return find(source, self._data_dir, self._folder)

    def _recipes(self) -> Sequence[Fetch]:
        return self.definition.fetch

    def _tail(self) -> dict[str, Any]:
        """Returns the last entries of a card: those that every definition has are left out where they say nothing."""
        said = self.definition
        own = {"differs": said.differs, "note": said.note, "reference": said.reference, "citation": said.citation}
        return {**{key: value for key, value in own.items() if value}, **super()._tail()}
