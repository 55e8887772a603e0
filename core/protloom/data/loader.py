"""Prepares future steps while the network works on the current one.

Threads, not processes: making a batch is mostly numpy, which releases the interpreter lock, and handing a batch to a
process costs twenty times what making it does.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType
    from typing import Self

T = TypeVar("T")

LOOK_AHEAD = 2
"""Steps beyond the one that is due, for each thread."""


class Loader(Generic[T]):
    """Iterates over ``(step, make_step(step))`` in order of the steps, whatever the number of threads.

    Use it as a context manager, so that its threads end when the loop is left early. An exception of ``make_step`` is
    raised, unchanged, when its step is due. It may be iterated over once.

    Args:
        make_step: makes everything of one step; called by several threads at once, so it must not keep state.
        threads: 0 makes each step when it is asked for; n threads make up to 2n steps beyond it.
        start: the first step.
        stop: one past the last step; None goes on for ever.
    """

    def __init__(self, make_step: Callable[[int], T], *, threads: int, start: int = 0, stop: int | None = None) -> None:
        if threads < 0:
            raise ValueError(f"threads must be 0 or more, not {threads}")
        self._make_step = make_step
        self._threads = threads
        self._start, self._stop = start, stop
        self._running: Generator[tuple[int, T], None, None] | None = None

    def __iter__(self) -> Iterator[tuple[int, T]]:
        if self._running is not None:
            raise RuntimeError("a loader is iterated over once: make a new one")
        self._running = self._ahead() if self._threads else self._inline()
        return self._running

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Drops the steps that were not asked for and ends the threads; harmless when repeated."""
        if self._running is not None:
            self._running.close()

    def _steps(self) -> Iterator[int]:
        return iter(count(self._start)) if self._stop is None else iter(range(self._start, self._stop))

    def _inline(self) -> Generator[tuple[int, T], None, None]:
        for step in self._steps():
            yield step, self._make_step(step)

    def _ahead(self) -> Generator[tuple[int, T], None, None]:
        steps = self._steps()
        waiting: deque[tuple[int, Future[T]]] = deque()
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="protloom-loader")
        try:
            while True:
                while len(waiting) <= LOOK_AHEAD * self._threads and (step := next(steps, None)) is not None:
                    waiting.append((step, pool.submit(self._make_step, step)))
                if not waiting:
                    return
                due, future = waiting.popleft()
                yield due, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
