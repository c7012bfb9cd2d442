"""The processes that train a model together: those that this process starts, and those that torchrun started beside it.

Process 0 holds the locks of the store, tells the others which model to train, and does all other work alone. The others take part
in training, and write only the rows of their own visits. If one of them ends early, the training run ends.
"""

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import torch

from attribution.checks import FieldError
from attribution.images import Images, ImageSet
from attribution.nodes import InMemory
from attribution.training.ranks import Rank, free_port
from attribution.training.recipe import Hardware, Recipe
from experiments.parent import exit_with_parent, under_torchrun

_SECONDS_TO_END = 20.0
"""How long processes may take to end after one of them has failed, or after all have finished."""
_SECONDS_BETWEEN_LOOKS = 0.2
_PROGRAM = "from experiments.models.rank_processes import take_part; take_part()"


class RankError(ChildProcessError):
    """A process of a training run ended early."""


class Model(Protocol):
    """A node of a model that processes train together: ``experiments.models.trained.TrainedModel``."""

    @property
    def data(self) -> ImageSet: ...

    @property
    def hardware(self) -> Hardware: ...

    @property
    def recipe(self) -> Recipe: ...

    def without_logger(self) -> "Model": ...

    def fit(self, folder: Path, images: Images, hardware: Hardware, ranks: AbstractContextManager[Rank | None]) -> None: ...


@dataclass(frozen=True)
class Job:
    """What another process needs to take part in the training of ``node``; ``images`` if only the store has them."""

    node: Model
    folder: Path
    hardware: Hardware
    rank: Rank
    images: Images | None

    def run(self) -> None:
        """Take part in the training run."""
        images = InMemory()(self.node.data) if self.images is None else self.images
        self.node.fit(self.folder, images, self.hardware, nullcontext(self.rank))


# Processes that this one starts


@contextmanager
def started(node: Model, folder: Path, images: Images, world: int) -> Iterator[Rank]:
    """Start processes 1 to ``world - 1`` of a training run, and give this one rank 0. They end with the body, however it ends.

    Raises:
        RankError: one of them ended early.
    """
    first = Rank(0, 0, world, world, "127.0.0.1", free_port())
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, world)]
        processes = [stack.enter_context(_process(log)) for log in logs]
        done = threading.Event()
        stack.callback(done.set)
        threading.Thread(target=_watch, args=(processes, logs, done), daemon=True).start()
        try:
            for number, process in enumerate(processes, 1):
                rank = replace(first, number=number, local=number)
                _tell(process, _job(node, folder, images, node.hardware, rank))
            yield first
            _wait(processes)
        except Exception as error:
            if isinstance(error, FloatingPointError):  # all processes raise it
                raise
            time.sleep(_SECONDS_BETWEEN_LOOKS)  # a process whose end was the cause may not have ended yet
            if message := _failure(processes, logs):
                raise RankError(message) from error
            raise
        if message := _failure(processes, logs):
            raise RankError(message)


def take_part() -> None:
    """Take part in the training run that process 0 describes on stdin. End when process 0 does: its end of the pipe closes."""
    pipe = os.fdopen(os.dup(0), "rb")
    job = pickle.load(pipe)

    def watch() -> None:
        pipe.read()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    job.run()


@contextmanager
def _process(log: IO[bytes]) -> Iterator[subprocess.Popen]:
    """A process that takes part, and that ends with the body."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches process 0, which ends the others
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        with suppress(OSError):  # what it did not read
            process.stdin.close()


def _tell(process: subprocess.Popen, job: Job) -> None:
    assert process.stdin is not None
    pickle.dump(job, process.stdin)
    process.stdin.flush()


def _watch(processes: Sequence[subprocess.Popen], logs: Sequence[IO[bytes]], done: threading.Event) -> None:
    """End this process if another has failed and this one does not notice: with NCCL it would wait for half an hour."""
    while not done.wait(_SECONDS_BETWEEN_LOOKS):
        if (message := _failure(processes, logs)) and not done.wait(_SECONDS_TO_END):
            os.write(2, f"error: {message}\n".encode())
            os._exit(1)


def _failure(processes: Sequence[subprocess.Popen], logs: Sequence[IO[bytes]]) -> str:
    """The error of the first process that failed, with the last line of its output; the empty string if none has failed."""
    for number, (process, log) in enumerate(zip(processes, logs, strict=True), 1):
        if code := process.poll():
            log.seek(0)
            lines = log.read().decode(errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
            how = f"was ended by signal {-code}" if code < 0 else f"failed ({said})"
            of = f"process {number} of a training run on {len(processes) + 1} devices"
            return f"{of} {how}: run again to continue from its last save"
    return ""


def _wait(processes: Sequence[subprocess.Popen]) -> None:
    end = time.monotonic() + _SECONDS_TO_END
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        time.sleep(0.01)


def _job(node: Model, folder: Path, images: Images, hardware: Hardware, rank: Rank) -> Job:
    return Job(node.without_logger(), folder.absolute(), hardware, rank, images if node.data.STORED else None)


# Processes that torchrun started


class Torchrun:
    """This process as one of those that torchrun started. Process 0 tells the others what to train, through PyTorch's TCPStore."""

    def __init__(self) -> None:
        self.number, self.local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        self.world, self.local_world = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        self._address = os.environ["MASTER_ADDR"]
        hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        tcp = torch.distributed.TCPStore(
            self._address,
            int(os.environ["MASTER_PORT"]),
            is_master=self.number == 0 and not hosted,
            timeout=timedelta(minutes=5),
            wait_for_workers=False,
        )
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._orders = torch.distributed.PrefixStore(f"diffusion-attribution/{attempt}", tcp)
        self._given = 0

    def hardware(self, hardware: Hardware) -> Hardware:
        """The devices of torchrun's processes, with a strategy that starts no others.

        Raises:
            FieldError: other devices were chosen.
        """
        if hardware.devices not in (1, self.local_world, "auto", -1):
            message = f"torchrun started {self.local_world} processes on this machine: set this to that number, or leave it out"
            raise FieldError(hardware, "devices", message)
        strategy = "ddp" if hardware.strategy in ("auto", "ddp_spawn") else hardware.strategy
        return replace(hardware, devices=self.local_world, strategy=strategy)

    @contextmanager
    def training(self, node: Model, folder: Path, images: Images) -> Iterator[Rank]:
        """Give this process, which is process 0, its rank, and let the others take part."""
        hardware, port = self.hardware(node.hardware), free_port()
        first = Rank(0, 0, self.world, self.local_world, self._address, port)
        self._give(_job(node, folder, images, hardware, first))
        yield first

    def dismiss(self) -> None:
        """Let the other processes end."""
        with suppress(RuntimeError):  # torchrun has ended, and the others with it
            self._give(None)

    def follow(self) -> None:
        """Take part in what process 0 trains, until it dismisses this process. Exit if torchrun ends."""
        exit_with_parent(os.getppid())
        while (job := self._next()) is not None:
            with suppress(FloatingPointError):  # process 0 has the same error, and reports it
                replace(job, rank=replace(job.rank, number=self.number, local=self.local)).run()

    def _give(self, job: Job | None) -> None:
        self._orders.set(str(self._given), pickle.dumps(job))  # pyright: ignore[reportArgumentType]
        self._given += 1

    def _next(self) -> Any:
        while not self._orders.check([str(self._given)]):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        self._given += 1
        return pickle.loads(self._orders.get(str(self._given - 1)))


@lru_cache(maxsize=1)
def torchrun() -> Torchrun | None:
    """Return this process as one of those that torchrun started, or None if it is alone."""
    return Torchrun() if under_torchrun() else None


def hardware_of(node: Model) -> Hardware:
    """The devices of a training run in this process."""
    run = torchrun()
    return node.hardware if run is None else run.hardware(node.hardware)


def ranks_of(node: Model, folder: Path, images: Images) -> AbstractContextManager[Rank | None]:
    """Return the context that gives this process its rank. It is entered only if the model has to be trained."""
    from attribution.training.trainer import processes_to_start  # Lightning, which takes seconds to import

    if (run := torchrun()) is not None:
        return run.training(node, folder, images)
    world = processes_to_start(node.recipe, node.hardware)
    return started(node, folder, images, world) if world > 1 else nullcontext()
