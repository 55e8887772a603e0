"""How much of a shared machine others used meanwhile: what a comparison by the clock must tell."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

_STAT = Path("/proc/stat")


class LoadMeter:
    """Measures from its making on; on systems without ``/proc/stat`` it knows nothing."""

    def __init__(self) -> None:
        self._begin, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def foreign_cores(self) -> float | None:
        """Returns how many cores, on average, were busy for others than this process and its ended children."""
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return None
        elapsed = time.monotonic() - self._begin
        return max(0.0, (busy - self._busy) - (_own_seconds() - self._own)) / max(elapsed, 1e-9)


def _busy_seconds() -> float | None:
    """Returns the seconds that all cores together have worked since the machine started."""
    try:
        with _STAT.open(encoding="ascii") as file:
            user, nice, system, _idle, _wait, irq, softirq, *_ = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)
