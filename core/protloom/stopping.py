"""Stopping a run from outside: the first signal asks, the second acts."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any


@dataclass
class StopRequest:
    """Set by a signal: finish the step, save, and end."""

    name: str | None = None


@contextmanager
def stop_on_signals(*, quiet: bool = False) -> Iterator[StopRequest]:
    """Turns the first SIGTERM, SIGUSR1, SIGINT or SIGHUP into a request to stop; a second one acts as usual.

    A signal that is ignored (SIGHUP under ``nohup``) stays ignored.

    Args:
        quiet: do not tell that the request was heard.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may set handlers: a notebook's or a server's keeps its own
        return
    previous: dict[signal.Signals, Any] = {}

    def ask(number: int, _frame: object) -> None:
        request.name = signal.Signals(number).name
        signal.signal(number, previous[signal.Signals(number)])
        if not quiet:
            # a step may take a minute; written past Python's buffers, which a handler must not touch
            told = f"{request.name}: finishing the step, then saving (once more to stop at once)\n"
            with suppress(OSError):  # a closed terminal cannot be told
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, told.encode())

    for chosen in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(chosen) is not signal.SIG_IGN:
            previous[chosen] = signal.signal(chosen, ask) or signal.SIG_DFL
    try:
        yield request
    finally:
        for chosen, handler in previous.items():
            signal.signal(chosen, handler)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Lets SIGTERM end the process as an exception does, so that what it has started is stopped too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
