"""Progress with time left, for whatever lasts: bars on a terminal, now and then a line elsewhere."""

import atexit
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from datetime import timedelta
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

_SECONDS_BETWEEN_LINES = 10.0


class Track(Protocol):
    """Passes the items on and shows how far it is: ``track``, or a silent stand-in."""

    def __call__(self, iterable: Iterable[T], title: str, total: int | None = None) -> Iterable[T]: ...


def track(iterable: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """The items of ``iterable``; meanwhile stderr shows ``title``, how many of ``total`` are done and the time left.

    On a terminal a bar that goes away at the end (bars of nested loops stand below each other); elsewhere, as in the log
    file of a cluster job, a line every ten seconds at most. ``total`` may be left out where ``iterable`` has a length.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    return (_bar if sys.stderr.isatty() else _lines)(iterable, title, total)


class _Display:
    """The one live display of a process (a terminal has room for one), on while any bar is."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        # A loop whose body fails leaves its generator, and so its bar, to the traceback: give the cursor back at least at exit.
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
    start = said = time.monotonic()
    for done, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        if now - said >= _SECONDS_BETWEEN_LINES:
            said = now
            left = f"/{total}, {_clock((now - start) * (total - done) / done)} left" if total else f", {_clock(now - start)}"
            print(f"{title}: {done}{left}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
