"""Claims about progress: bars on a terminal, seldom a line elsewhere, the items unchanged."""

import os
import pty
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from experiments.store import progress
from experiments.store.progress import track


@contextmanager
def terminal(monkeypatch):
    """Makes stderr a terminal; yields a function that reads what was written there so far."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        yield lambda: b"".join(_read(ours)).decode()
    os.close(ours)


def _read(terminal: int) -> Iterator[bytes]:
    """What was written to a terminal. The system passes it on in pieces, on a busy machine with delay."""
    while select.select([terminal], [], [], 0.5)[0]:
        yield os.read(terminal, 1 << 20)


def test_items_pass_unchanged_and_what_is_quick_says_nothing(capsys):
    assert list(track(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert list(track((i for i in range(3)), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_without_a_terminal_a_line_now_and_then_tells_how_far_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    list(track(range(2), "counting"))
    list(track(iter(range(1)), "endless"))
    assert capsys.readouterr().err.splitlines() == [
        "counting: 1/2, 0:00:00 left",
        "counting: 2/2, 0:00:00 left",
        "endless: 1, 0:00:00",
    ]


def test_on_a_terminal_nested_loops_have_a_bar_each(monkeypatch):
    """Titles and counts of both loops are on the screen while they run; the display is off afterwards."""
    with terminal(monkeypatch) as shown:
        for _ in track(range(2), "outer"):
            for _ in track(range(3), "inner", total=3):
                progress._display._progress.refresh()
        text = shown()
    assert all(word in text for word in ("outer", "inner", "0/2", "1/2", "2/3", "left"))
    assert progress._display._progress is None


def test_a_loop_that_fails_takes_its_bar_away(monkeypatch):
    def failing():
        yield 1
        raise ValueError("no")

    with terminal(monkeypatch) as shown:
        with pytest.raises(ValueError, match="no"):
            list(track(failing(), "failing", total=2))
        assert "failing" in shown()
    assert progress._display._progress is None
