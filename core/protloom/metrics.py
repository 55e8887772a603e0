"""Where a run's numbers go: ``metrics.jsonl`` always, TensorBoard beside it, and a line or a bar for the person."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from protloom.files import write_text

if TYPE_CHECKING:
    from protloom.contracts import Callback

Record = Mapping[str, float | int | str]
WARM = 3
"""Steps after which the pace of a run is told."""


class MetricLog:
    """Writes one JSON object a line, the same numbers to TensorBoard, and tells callbacks.

    Args:
        run_dir: the run folder.
        step: lines after this step are dropped first: they belong to steps that a resumed run does again (all of
            them if it begins at 0).
        tensorboard: write event files.
        callbacks: told of every line.
    """

    def __init__(
        self, run_dir: Path, *, step: int = 0, tensorboard: bool = True, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        _keep_until(self.path, step)
        self._file: TextIO = self.path.open("a", encoding="utf-8")
        self._callbacks = tuple(callbacks)
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else 0)

    def write(self, record: Record) -> None:
        """Writes one line; ``record`` must have ``step``."""
        # not-a-number is not JSON: it is written as null, so that every line can be read
        clean = {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in record.items()}
        with self._named_errors():
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        if self._board is not None:
            # a validation's line has a loss too, which must not become a second value of the training's curve
            hidden = {"step", "loss"} if "validation/loss" in record else {"step"}
            for name, value in record.items():
                if name not in hidden and isinstance(value, int | float):
                    self._board.add_scalar(name, value, global_step=int(record["step"]))
        for callback in self._callbacks:
            callback.on_log(record)

    def close(self) -> None:
        """Flushes and closes everything, each whatever becomes of the others."""
        with ExitStack() as stack:
            for callback in reversed(self._callbacks):
                stack.callback(callback.close)
            if self._board is not None:
                stack.callback(self._board.close)
            with self._named_errors():  # what could not be written before is tried again
                self._file.close()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Adds the file's name to what the system says, such as that the disk is full."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _keep_until(path: Path, step: int) -> None:
    """Drops lines of later steps, and a last line cut short by a kill; replaces the file only when whole."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if step else ():
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    write_text(path, "".join(line + "\n" for line in kept))


class Progress:
    """Tells the person how far a run is: a bar on a terminal, plain lines elsewhere.

    Args:
        total: steps of the run; None where something else than steps ends it.
        done: steps already done.
        share: of the run already done.
        every: plain lines are printed at about this many places of a run.
        quiet: print nothing (ranks above 0).
    """

    def __init__(
        self, total: int | None, *, done: int = 0, share: float = 0.0, every: int = 20, quiet: bool = False
    ) -> None:
        self._total, self._first = total, done
        self._gap = 1.0 / every
        self._share = self._shown = self._begin_share = share
        self._begin, self._paced = time.perf_counter(), done
        self._quiet, self._told = quiet, False
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            self._bar, self._task = _bar(total, done)

    def advance(self, step: int, share: float) -> None:
        """Counts a step; tells after the third how long the run will take, as the first logged line may be far."""
        self._share = share
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if step == self._first + 1:
            # neither the first validation nor the first step, which compiles and allocates, tells the pace
            self._begin, self._paced, self._begin_share = time.perf_counter(), step, share
        elif self._bar is None and step - self._first == WARM and not self._told and share < 1.0:
            pace = (time.perf_counter() - self._begin) / max(1, step - self._paced)
            self._print(f"{self._counted(step)}  {pace:.2g} s a step, {self._left()} left")

    def _left(self) -> str:
        """Returns the time that is left at the present pace."""
        done = self._share - self._begin_share
        return clock((time.perf_counter() - self._begin) / done * (1.0 - self._share)) if done > 0 else "?"

    def _counted(self, step: int) -> str:
        total = "" if self._total is None else f"/{self._total}"
        return f"step {step:>{len(str(self._total or 1000))}}{total}"

    def update(self, step: int, record: Record, share: float) -> None:
        """Shows a logged step."""
        self._share = share
        if self._quiet:
            return
        text = _summary(record)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif self._share >= 1.0 or self._share // self._gap != self._shown // self._gap or not self._told:
            self._print(f"{self._counted(step)}  {text}  {self._left()} left")
        self._told, self._shown = True, self._share

    def note(self, text: str) -> None:
        """Prints a line without disturbing the bar."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            self._print(text)

    def _print(self, text: str) -> None:
        if not self._quiet:
            say(text)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()


def say(text: str) -> None:
    """Prints on stdout; a reader that has gone away ('| head') ends the printing, not the training."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _bar(total: int | None, done: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task("train", total=total, completed=done, text="")


def _summary(record: Record) -> str:
    terms = {key.removeprefix("loss/"): float(value) for key, value in record.items() if key.startswith("loss/")}
    apart = f" ({', '.join(f'{name} {value:.4f}' for name, value in terms.items())})" if len(terms) > 1 else ""
    parts = [f"loss {float(record['loss']):.4f}{apart}"]
    if "learning_rate" in record:
        parts.append(f"lr {float(record['learning_rate']):.2e}")
    if "tokens_per_second" in record:
        parts.append(f"{float(record['tokens_per_second']):,.0f} tokens/s")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Writes a duration as ``1:02:03`` or ``2:03``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def peak_memory() -> float:
    """Returns the largest resident size of this process so far, in MiB."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 1024 * 1024)
