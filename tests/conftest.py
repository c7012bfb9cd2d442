"""One thread per process: two OpenMP processes side by side on few cores wait for each other more than they work."""

import functools
import gc
import logging
import os
from types import SimpleNamespace

import omegaconf
import pytest
import torch

from tests.experiments.tasks.compositions import remember_files

gc.set_threshold(50_000, 20, 20)  # as in run.py: imports make a million objects that stay
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SLURM_CPUS_PER_TASK", "1")  # one core, on which workers=auto starts no more processes
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
# OmegaConf parses an interpolation each time it is read, a third of the time of a check. Thousands of configs share the same ones.
omegaconf.base.parse = functools.cache(omegaconf.grammar_parser.parse)
remember_files()
# Tests end processes, not machines. A small run waits for the disk a thousand times, half of its time.
os.fsync = lambda descriptor: None


def pytest_collection_finish():
    """Leave modules and collected tests out of every later search for garbage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_default_dtype():
    """A test that changes the default dtype does not change it for the next."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _same_working_directory():
    """A test that leaves another working directory behind fails, not the next one that starts a process."""
    before = os.getcwd()
    yield
    after = os.getcwd()
    os.chdir(before)
    assert after == before, f"the test left the working directory {after}"


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory):
    """The folder of a store for runs with much in common, which then compute once what they share."""
    return tmp_path_factory.mktemp("shared") / "store"


@pytest.fixture
def a_second_a_step(monkeypatch):
    """The clock of retraining, which goes forward by one second with every optimizer step."""
    from attribution.retraining.stacked_state import Stack

    clock, step = SimpleNamespace(now=0.0), Stack.step

    def timed(*arguments):
        clock.now += 1
        step(*arguments)

    monkeypatch.setattr(Stack, "step", timed)
    monkeypatch.setattr("attribution.retraining.fit_together.time", SimpleNamespace(monotonic=lambda: clock.now))
