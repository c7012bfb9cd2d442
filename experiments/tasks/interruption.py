"""Signals that end a run: Ctrl-C (exit code 130), SIGTERM (143) and SIGHUP (129), each with one line on stderr.

A signal raises :class:`Interrupted` in the main thread, so that files are closed, locks released, and workers and the jobs of a
launcher stopped on the way out. A second signal ends the process at once, and so does a run that does not stop within
``SECONDS_TO_STOP``. Before and after ``interruptible`` there is nothing to stop.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from experiments.store.loops import innermost

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SECONDS_TO_STOP = 20.0
"""How long a run may take to stop. Slurm sends SIGKILL 30 seconds after SIGTERM."""

_SECONDS_BETWEEN_SIGNALS = 0.5
"""Signals that follow faster are one: ``timeout`` and ``scancel`` signal the process and its group, and so both arrive."""

children: list[subprocess.Popen] = []
"""The processes that this process started, which end with it."""


class Interrupted(BaseException):
    """A signal asked the run to end. This is no KeyboardInterrupt, which Lightning would turn into exit code 1."""


class _Handler:
    """Handles the signals of this process."""

    def __init__(self) -> None:
        self.raises = False
        self._first: tuple[int, float] | None = None
        self._message = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first, self._message = (number, now), _message(number)
            if self.raises:
                signal.signal(signal.SIGALRM, self._end)
                signal.setitimer(signal.ITIMER_REAL, SECONDS_TO_STOP)
                raise Interrupted
        elif now - self._first[1] < _SECONDS_BETWEEN_SIGNALS:
            return
        self._end()

    def retry(self) -> None:
        """Raise again soon: Python has dropped the exception because it was raised in a ``__del__`` method or a callback."""
        if self._first is not None:
            number, self._first = self._first[0], None
            signal.signal(signal.SIGALRM, lambda *_: self(number, None))
            signal.setitimer(signal.ITIMER_REAL, 0.01)

    def exit_if_signalled(self) -> None:
        """After a signal, print the message and exit."""
        if self._first is not None:
            _kill_children()
            sys.stderr.write(self._line())
            sys.stderr.flush()
            sys.exit(128 + self._first[0])

    def _end(self, *_: Any) -> None:
        assert self._first is not None
        _kill_children()
        os.write(2, self._line().encode())  # sys.stderr may be in the middle of a write
        os._exit(128 + self._first[0])

    def _line(self) -> str:
        message, self._message = self._message, ""
        cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar hides it
        return f"{cursor}{message}\n" if message else ""


_handler = _Handler()


def install() -> None:
    """Handle the signals from now on. SIGHUP stays ignored if it is, as under ``nohup``."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:  # shells start background jobs without SIGINT
            signal.signal(number, _handler)
    report = sys.unraisablehook
    sys.unraisablehook = lambda error: _handler.retry() if isinstance(error.exc_value, Interrupted) else report(error)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal interrupt the body, and exit with its message and exit code."""
    before, _handler.raises = _handler.raises, True
    try:
        yield
    except BaseException:
        _handler.exit_if_signalled()  # whatever the exception is: compiled modules turn Interrupted into others
        raise
    finally:
        _handler.raises = before


def _message(number: int) -> str:
    loop = innermost()
    during = f" during {loop}" if loop else ""
    return (
        f"stopped by {signal.Signals(number).name}{during}: finished work and saved progress are kept in the store; "
        "run the same command again to continue"
    )


def _kill_children() -> None:
    for process in (*children, *multiprocessing.active_children()):  # active_children() has the jobs of joblib as well
        if process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
