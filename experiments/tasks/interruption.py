"""Signals that end a run: Ctrl-C (exit code 130), SIGTERM (143) and SIGHUP (129), each with one line on stderr.

A signal raises :class:`Interrupted` in the main thread, so that files are closed, locks released and workers stopped on the way
out. A second signal ends the process at once, and so does the time limit ``SECONDS_TO_STOP``.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number


class _Handler:
    """Handles the signals of this process. Before ``interruptible`` there is nothing to stop, and the process ends at once."""

    def __init__(self) -> None:
        self.raises = False
        self._first: float | None = None
        self._message: str | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            self._message = _message(number)
            if self.raises:
                limit = threading.Timer(SECONDS_TO_STOP, self._end, [number])
                limit.daemon = True
                limit.start()
                raise Interrupted(number, self._message)
        elif now - self._first < _SECONDS_BETWEEN_SIGNALS:
            return
        self._end(number)

    def stopped(self, stop: Interrupted) -> None:
        """Print the message and exit, after the body of ``interruptible`` was left."""
        _kill_children()
        self._print()
        sys.exit(128 + stop.number)

    def _end(self, number: int) -> None:
        _kill_children()
        self._print()
        os._exit(128 + number)

    def _print(self) -> None:
        message, self._message = self._message, None
        if message is not None:
            # A progress bar hides the cursor.
            sys.stderr.write(("\x1b[?25h" if sys.stderr.isatty() else "") + message + "\n")
            sys.stderr.flush()


_handler = _Handler()


def install() -> None:
    """Handle the signals from now on. SIGHUP stays ignored if it is, as under ``nohup``."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGINT:  # shells start background jobs without SIGINT
            signal.signal(number, _handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let a signal interrupt the body, and exit with its message and exit code."""
    _handler.raises = True
    try:
        yield
    except Interrupted as stop:
        _handler.stopped(stop)
    finally:
        _handler.raises = False


def _message(number: int) -> str:
    loop = innermost()
    during = f" during {loop}" if loop else ""
    return (
        f"stopped by {signal.Signals(number).name}{during}: finished work and saved progress are kept in the store; "
        "run the same command again to continue"
    )


def _kill_children() -> None:
    for process in (*children, *multiprocessing.active_children()):
        process.kill()
