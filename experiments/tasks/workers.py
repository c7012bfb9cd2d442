"""More processes for the same work (``workers=``): each is given this run's settings with ``task=work``."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.tasks.settings import SettingError

PROGRAM = Path(__file__).parents[2] / "run.py"
MOST = 8
"""Workers that ``auto`` starts at most: memory grows with each."""

_OWN = ("task", "tracker", "workers")
"""Choices that a worker does not share with who started it."""


def count(config: DictConfig) -> int:
    """Of ``workers``. ``auto``: one per core where each computes on one thread of the CPU, else this process alone.

    It is alone also where other processes are likely to use the cores: OMP_NUM_THREADS is set, or a launcher starts the jobs.

    Raises:
        ValueError: neither auto nor a whole number of at least 1.
    """
    if config.workers != "auto":
        if config.workers < 1:
            raise SettingError(f"workers={config.workers}: must be auto, or a whole number of at least 1")
        return config.workers
    crowded = "OMP_NUM_THREADS" in os.environ or not HydraConfig.get().launcher._target_.endswith("BasicLauncher")
    on_cpu = config.execution.device == "cpu" or (config.execution.device == "auto" and not torch.cuda.is_available())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, cores) if on_cpu and torch.get_num_threads() == 1 and not crowded else 1


@contextmanager
def workers(config: DictConfig, folder: Path) -> Iterator[None]:
    """While the body runs, ``workers`` - 1 more processes share the work of ``task=evaluate``; their logs are in ``folder``."""
    hydra = HydraConfig.get()
    where = _configuration(hydra)
    run_dir = "hydra.run.dir='" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"  # as Hydra's grammar quotes
    shared = [o for o in hydra.overrides.task if o.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0] not in _OWN]
    others: list[tuple[subprocess.Popen, Path]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        for number in range(1, count(config)):
            own = ["task=work", f"task.parent={os.getpid()}", "workers=1", run_dir, "hydra.output_subdir=null"]
            log = folder / f"worker-{number}.log"
            with log.open("w") as file:
                command = [sys.executable, str(PROGRAM), *where, *shared, *own]
                process = subprocess.Popen(
                    command, cwd=hydra.runtime.cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
                )
            others.append((process, log))
        yield
    finally:
        for process, log in others:
            if process.poll():
                print(f"a worker ended with an error, and the others did its work: {log}")
            process.terminate()
            process.wait()


def _configuration(hydra: Any) -> list[str]:
    """Where this run's configuration is, if it is not the program's own."""
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return ["--config-name", hydra.job.config_name, *(part for path in given for part in ("--config-dir", path))]


def end_with(parent: int) -> None:
    """Ends this process soon after its ``parent``, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
