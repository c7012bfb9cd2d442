"""Further processes that share the work of a run (``workers``): each runs ``task=work`` with the settings of the run."""

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
"""The largest number of workers that ``auto`` starts, because each needs memory."""

_NOT_SHARED = ("task", "tracker", "workers")
"""Settings that a worker does not take over from the run that started it."""


def count(config: DictConfig) -> int:
    """The number of processes that ``workers`` asks for. ``auto`` is one per core if each computes on one thread of the CPU.

    Otherwise ``auto`` is this process alone, and also where other processes are likely to use the cores: OMP_NUM_THREADS is set, or
    a launcher starts the jobs.

    Raises:
        SettingError: less than one process.
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
    """Start ``workers`` - 1 processes that share the work of the body, and end them with it. Their logs are in ``folder``."""
    hydra = HydraConfig.get()
    configuration = _configuration(hydra)
    run_dir = "hydra.run.dir='" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"  # as Hydra's grammar quotes
    shared = [o for o in hydra.overrides.task if o.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0] not in _NOT_SHARED]
    others: list[tuple[subprocess.Popen, Path]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        for number in range(1, count(config)):
            settings = ["task=work", f"task.parent={os.getpid()}", "workers=1", run_dir, "hydra.output_subdir=null"]
            log = folder / f"worker-{number}.log"
            with log.open("w") as file:
                command = [sys.executable, str(PROGRAM), *configuration, *shared, *settings]
                process = subprocess.Popen(
                    command, cwd=hydra.runtime.cwd, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
                )
            others.append((process, log))
        yield
    finally:
        for process, log in others:
            if process.poll():
                print(f"a worker ended with an error, and the other processes did its work: {log}")
            process.terminate()
            process.wait()


def _configuration(hydra: Any) -> list[str]:
    """The options for a configuration other than the program's own, as this run was given them."""
    given = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return ["--config-name", hydra.job.config_name, *(part for path in given for part in ("--config-dir", path))]


def end_with(parent: int) -> None:
    """End this process soon after its ``parent`` has ended in any way."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
