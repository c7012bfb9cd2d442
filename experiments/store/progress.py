"""Progress of long loops with the time left: bars on a terminal, occasional lines elsewhere."""

import atexit
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from experiments.store.loops import noted

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class Track(Protocol):
    """Yields the items of an iterable and shows progress: ``track``, or a silent replacement."""

    def __call__(self, iterable: Iterable[T], title: str, total: int | None = None) -> Iterable[T]: ...


def track(iterable: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield the items of ``iterable`` and show ``title``, the finished share of ``total`` and the time left on stderr.

    On a terminal this is a bar that disappears at the end; nested loops have one bar each. Elsewhere, as in the log file of a
    cluster job, it is a line every ten seconds at most. ``total`` may be omitted if ``iterable`` has a length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return (_bar if sys.stderr.isatty() else _lines)(noted(iterable, title, total), title, total)


class _Display:
    """The live display of a process. There is one per terminal; it is active while it has bars."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        # If the body of a loop fails, the traceback keeps its generator, and with it its bar, alive: restore the cursor at exit.
        atexit.register(self._stop)

    def add(self, title: str, total: int | None) -> tuple[Progress, TaskID]:
        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            left = (TextColumn("[dim]left"), TimeRemainingColumn())
            self._progress = progress = Progress(*columns, *left, console=Console(stderr=True), transient=True)
            progress.start()
        else:
            progress = self._progress
        return progress, progress.add_task(title, total=total)

    def remove(self, progress: Progress, task: TaskID) -> None:
        progress.remove_task(task)
        if not progress.task_ids:
            self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


_display = _Display()


def _bar(iterable: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    progress, task = _display.add(title, total)
    try:
        for item in iterable:
            yield item
            progress.advance(task)
    finally:
        _display.remove(progress, task)


def _lines(iterable: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    start = printed = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - printed >= _SECONDS_BETWEEN_LINES:
            printed = now
            left = f"/{total}, {_clock((now - start) * (total - done) / done)} left" if total else f", {_clock(now - start)}"
            print(f"{title}: {done}{left}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
