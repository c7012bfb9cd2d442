"""Processes that begin with all imports done, because each is forked from one that has made them.

An interpreter takes several seconds to import PyTorch and Lightning. Tests of what processes do need no new ones; those of how they
are started do.
"""

import functools
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

import pytest
import torch

from experiments.models import rank_processes

ROOT = Path(__file__).parents[1]
IMPORTED = ["attribution.training.fit", "experiments.tasks.train", "experiments.tasks.evaluate", "tests.experiments.tasks.test_cli"]


def context(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """What starts them. All tests share the server of their process, so that it imports everything once."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(IMPORTED)
    return found


def fork_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that Lightning would spawn."""
    from lightning.pytorch.strategies.launchers import multiprocessing as launcher

    context(monkeypatch)
    start = functools.partial(torch.multiprocessing.start_processes, join=False)
    monkeypatch.setattr(torch.multiprocessing, "_sharing_strategy", "file_system")  # the server takes few file descriptors
    monkeypatch.setattr(
        launcher.mp, "start_processes", lambda fn, args, nprocs, **_: start(fn, args, nprocs, start_method="forkserver")
    )


def fork_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork the processes that take part in a training run."""
    monkeypatch.setattr(rank_processes, "_process", functools.partial(_rank, context(monkeypatch)))


class Forked:
    """A forked process with what ``subprocess.Popen`` has."""

    def __init__(self, process: BaseProcess, stdin: IO[bytes]):
        self._process, self.stdin = process, stdin

    def poll(self) -> int | None:
        return self._process.exitcode


@contextmanager
def _rank(processes: ForkServerContext, log: IO[bytes]) -> Iterator[Forked]:
    """A process that takes part in a training run, and that ends with the body."""
    reader, writer = processes.Pipe(duplex=False)
    output = Connection(os.dup(log.fileno()), readable=False)  # the server passes on connections, and no other files
    process = processes.Process(target=_take_part, args=(reader, output, dict(os.environ)))
    process.start()
    reader.close()
    output.close()
    stdin = os.fdopen(os.dup(writer.fileno()), "wb")
    writer.close()
    try:
        yield Forked(process, stdin)
    finally:
        process.kill()
        process.join()
        with suppress(OSError):  # what it did not read
            stdin.close()


def _take_part(reader: Connection, output: Connection, environment: dict[str, str]) -> None:
    os.setsid()
    os.environ.update(environment)
    for number, file in enumerate((reader, output, output)):
        os.dup2(file.fileno(), number)
    reader.close()
    torch.set_num_threads(1)
    rank_processes.take_part()
