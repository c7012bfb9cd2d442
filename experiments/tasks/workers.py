"""Additional processes that share the work of a run (``workers``). Each runs ``task=work`` with the settings of the run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from attribution.device_memory import shared
from experiments.parent import under_torchrun
from experiments.tasks.choices import arguments_of_run
from experiments.tasks.cores import cores
from experiments.tasks.gpus import environment_of_worker, visible_gpus
from experiments.tasks.interruption import children
from experiments.tasks.settings import SettingError

PROGRAM = Path(__file__).parents[2] / "run.py"
MAX_PROCESSES = 8
"""The most processes ``auto`` uses, including this one; each needs its own memory."""

_NOT_PASSED_ON = ("task", "tracker", "workers")
"""Settings that are not passed on to workers."""


def count(config: DictConfig) -> int:
    """Return the number of processes, including this one.

    ``auto`` gives one per core that this process may use (at most MAX_PROCESSES) on the CPU with one thread each, one per GPU on
    GPUs, and 1 otherwise. ``auto`` also gives 1 if a launcher starts the jobs, because they are likely to share cores and GPUs.
    """
    if under_torchrun():
        if config.workers not in ("auto", 1):
            raise SettingError(
                f"workers={config.workers}: under torchrun all processes work on one run: leave this out, or start without torchrun"
            )
        return 1
    if config.workers != "auto":
        return config.workers
    launched = not HydraConfig.get().launcher._target_.endswith("BasicLauncher")
    if launched:
        return 1
    on_cpu = config.execution.device == "cpu" or (config.execution.device == "auto" and not torch.cuda.is_available())
    if on_cpu:
        return min(MAX_PROCESSES, cores()) if torch.get_num_threads() == 1 else 1
    return max(1, len(visible_gpus(config.execution.device)))


@contextmanager
def workers(config: DictConfig, folder: Path) -> Iterator[None]:
    """Start ``workers`` - 1 processes that share the work of the body, and stop them after it. They log to ``folder``."""
    hydra = HydraConfig.get()
    configuration = _configuration(hydra)
    run_dir = "hydra.run.dir='" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"  # as Hydra's grammar quotes
    passed_on = [override for override in arguments_of_run() if _top_level(override) not in _NOT_PASSED_ON]
    processes: list[tuple[subprocess.Popen, Path]] = []
    total, gpus = count(config), visible_gpus(config.execution.device)
    with shared(-(-total // max(1, len(gpus)))):
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        try:
            for number in range(1, total):
                settings = ["task=work", f"task.parent={os.getpid()}", "workers=1", run_dir, "hydra.output_subdir=null"]
                log = folder / f"worker-{number}.log"
                with log.open("w") as file:
                    command = [sys.executable, str(PROGRAM), *configuration, *passed_on, *settings]
                    process = subprocess.Popen(
                        command,
                        cwd=hydra.runtime.cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=file,
                        env={**environment, **environment_of_worker(number, gpus)},
                    )
                processes.append((process, log))
                children.append(process)
            yield
            for process, log in processes:
                if process.poll():
                    print(f"a worker failed; the other processes did its work: {log}")
        finally:
            for process, _ in processes:
                process.terminate()
            for process, _ in processes:
                process.wait()
                children.remove(process)


def _top_level(override: str) -> str:
    """Return the group or setting of the top level that an override concerns."""
    return override.lstrip("+~").partition("=")[0].split(".")[0].split("/")[0]


def _configuration(hydra: Any) -> list[str]:
    """Return the command-line options with which this run chose its configuration."""
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    return ["--config-name", hydra.job.config_name, *(part for path in folders for part in ("--config-dir", path))]
