"""What every task works with: store, experiment, report and tracker of one run."""

import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.trackers import Tracker
from experiments.store.progress import track
from experiments.store.store import Store
from experiments.tasks.composition import experiment_of, settings_of_run


@dataclass(frozen=True)
class Lab:
    """One run's surroundings."""

    config: DictConfig
    experiment: Experiment
    store: Store
    report: Report
    tracker: Tracker

    @property
    def folder(self) -> Path:
        """Where the run leaves its results."""
        return self.report.folder


_THREADS = torch.get_num_threads()
"""Torch's own choice, for the next job of a process in which a job before had another."""


def set_threads(config: DictConfig) -> None:
    """Applies ``threads``. OMP_NUM_THREADS in the environment comes before "auto"."""
    small = config.data.size <= 16 and "OMP_NUM_THREADS" not in os.environ
    threads = (1 if small else _THREADS) if config.threads == "auto" else config.threads
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads={threads}: auto, or a whole number of at least 1")
    torch.set_num_threads(threads)


@contextmanager
def lab(config: DictConfig) -> Iterator[Lab]:
    """Opens the lab; when the task has succeeded, writes the report and hands rows and figures to the tracker."""
    hydra = HydraConfig.get()
    set_threads(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    tracker = instantiate(config.tracker)
    tracker.start(OmegaConf.to_container(config, resolve=True))
    report = Report(
        Path(hydra.runtime.output_dir),
        data=hydra.runtime.choices["data"],
        seed=config.seed,
        swept=settings_of_run(),
        command=shlex.join(["python", "run.py", *hydra.overrides.task]),  # sys.argv is a launcher's in a worker
    )
    yield Lab(config, experiment_of(config, tracker.lightning_logger), Store(config.store.root, track), report, tracker)
    report.close()
    tracker.rows(report.rows)
    for path in report.figures:
        tracker.figure(path.stem, path)
    if where := tracker.finish():
        print(where)
