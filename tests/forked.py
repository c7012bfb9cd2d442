"""Processes that begin with all imports done, because each is forked from one that has made them."""

import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IMPORTED = ["attribution.training.fit", "experiments.tasks.train", "experiments.tasks.evaluate", "tests.experiments.tasks.test_cli"]


def context(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """What starts them. All tests share the server of their process, so that it imports everything once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(IMPORTED)
    return found
