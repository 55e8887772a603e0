"""The loader: order, errors, bounded look-ahead, clean end."""

from __future__ import annotations

import threading
import time
from itertools import islice

import pytest

from protloom.data.loader import LOOK_AHEAD, Loader

THREADS = [0, 1, 4]


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("protloom-loader")]


@pytest.mark.parametrize("threads", THREADS)
def test_order_is_kept_whatever_the_number_of_threads(threads: int) -> None:
    def slow_when_even(step: int) -> int:
        time.sleep(0.004 if step % 2 == 0 else 0)
        return step * step

    with Loader(slow_when_even, threads=threads, start=3, stop=40) as loader:
        assert list(loader) == [(step, step * step) for step in range(3, 40)]
    assert not loader_threads()


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_comes_at_its_step_unchanged(threads: int) -> None:
    error = RuntimeError("sequence 17 is damaged")

    def fails_at_seven(step: int) -> int:
        if step == 7:
            raise error
        return step

    with Loader(fails_at_seven, threads=threads, stop=20) as loader, pytest.raises(RuntimeError) as caught:
        list(loader)
    assert caught.value is error
    assert not loader_threads()


@pytest.mark.parametrize("threads", THREADS)
def test_steps_before_an_error_are_delivered(threads: int) -> None:
    def fails_at_seven(step: int) -> int:
        if step == 7:
            raise RuntimeError("no")
        return step

    with Loader(fails_at_seven, threads=threads, stop=20) as loader:
        steps = iter(loader)
        assert [next(steps)[0] for _ in range(7)] == list(range(7))
        with pytest.raises(RuntimeError, match="no"):
            next(steps)


@pytest.mark.parametrize("threads", THREADS)
def test_leaving_early_ends_the_threads(threads: int) -> None:
    with Loader(lambda step: step, threads=threads) as loader:
        assert [step for step, _ in islice(loader, 5)] == [0, 1, 2, 3, 4]
    assert not loader_threads()
    loader.close()


@pytest.mark.parametrize("threads", THREADS)
def test_an_error_of_the_consumer_ends_the_threads(threads: int) -> None:
    def consume() -> None:
        with Loader(lambda step: step, threads=threads) as loader:
            for step, _ in loader:
                if step == 3:
                    raise KeyError(step)

    with pytest.raises(KeyError):
        consume()
    assert not loader_threads()


@pytest.mark.parametrize("threads", THREADS)
def test_the_look_ahead_is_bounded(threads: int) -> None:
    made: list[int] = []
    with Loader(made.append, threads=threads) as loader:
        for step, _ in islice(loader, 10):
            time.sleep(0.002)
            assert max(made) <= step + LOOK_AHEAD * max(threads, 1)


def test_without_threads_nothing_is_made_ahead() -> None:
    made: list[int] = []
    with Loader(made.append, threads=0) as loader:
        for step, _ in islice(loader, 10):
            assert made[-1] == step


def test_threads_work_at_the_same_time() -> None:
    """Two steps that wait for each other can only be made by two threads."""
    meet = threading.Barrier(2, timeout=20)
    with Loader(lambda _step: meet.wait(), threads=2, stop=2) as loader:
        assert [step for step, _ in loader] == [0, 1]


def test_leaving_drops_steps_that_have_not_begun() -> None:
    begun: list[int] = []
    release = threading.Event()

    def waits_after_the_first(step: int) -> int:
        begun.append(step)
        if step:
            release.wait(20)
        return step

    with Loader(waits_after_the_first, threads=1) as loader:
        next(iter(loader))
        threading.Timer(0.1, release.set).start()
    assert begun in ([0], [0, 1])  # step 1 was under way, step 2 stood behind it


@pytest.mark.parametrize("threads", THREADS)
def test_nothing_to_do(threads: int) -> None:
    with Loader(lambda step: step, threads=threads, start=5, stop=5) as loader:
        assert list(loader) == []
    Loader(lambda step: step, threads=threads).close()


def test_a_loader_serves_once() -> None:
    with Loader(lambda step: step, threads=1, stop=3) as loader:
        assert len(list(loader)) == 3
        with pytest.raises(RuntimeError, match="once"):
            iter(loader)


def test_a_negative_number_of_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Loader(lambda step: step, threads=-1)
