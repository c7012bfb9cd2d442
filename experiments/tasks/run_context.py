"""The objects that every task works with: the experiment, store, report and tracker of one run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from attribution.estimators import Estimator
from attribution.nodes import Node
from attribution.precision import allow_tf32
from experiments.disk import explained
from experiments.models.coverage import coverage
from experiments.models.experiment import Experiment
from experiments.report.page.page import write_page
from experiments.report.report import Report
from experiments.report.trackers import Tracker
from experiments.store.plan import announcement
from experiments.store.progress import track
from experiments.store.provenance import provenance
from experiments.store.store import Store
from experiments.tasks.allocator import keep_freed_memory
from experiments.tasks.choices import choice_of, role_of_data
from experiments.tasks.composition import experiment_of, published_numbers, settings_of_run
from experiments.tasks.cores import cores, thread_limit
from experiments.tasks.description import command_of_run, description_of
from experiments.tasks.gpus import choose_gpu
from experiments.tasks.hardware import hardware
from experiments.tasks.settings import build, check


@dataclass(frozen=True)
class RunContext:
    """The objects that a task works with."""

    config: DictConfig
    experiment: Experiment
    store: Store
    report: Report
    tracker: Tracker

    @property
    def folder(self) -> Path:
        """The folder to which the run writes its results."""
        return self.report.folder

    def report_coverage(self, *estimators: Estimator) -> None:
        """Say in the report which parameters the scores of ``estimators`` are of."""
        if (said := coverage(self.experiment.attributed, estimators)) is not None:
            self.report.note(said)


_THREADS = torch.get_num_threads()
"""Torch's default number of threads, from which `auto` of a later job in this process starts as well."""


def set_resources(config: DictConfig) -> None:
    """Set torch's number of threads as ``threads`` says, choose the GPU of a Slurm task, turn TF32 off, and keep freed memory.

    ``auto`` gives one thread for images up to 16 × 16, and torch's default otherwise, but no more than the process has cores and
    than OMP_NUM_THREADS and MKL_NUM_THREADS allow.

    Raises:
        SettingError: If a setting of the data is missing.
    """
    check(config.data)
    largest = max(config.data.size) if OmegaConf.is_list(config.data.size) else config.data.size
    threads = config.threads
    if threads == "auto":
        threads = 1 if largest <= 16 else max(1, int(min(_THREADS, cores(), thread_limit())))
    torch.set_num_threads(threads)
    keep_freed_memory()
    choose_gpu(config.execution.device)
    allow_tf32(False)


@contextmanager
def run_context(config: DictConfig) -> Iterator[RunContext]:
    """Yield the context of a run; if the task succeeds, write the report and its page, and pass them to the tracker."""
    set_resources(config)
    tracker = build(config, "tracker")
    experiment = experiment_of(config, tracker.lightning_logger)
    device = hardware(experiment.execution.torch_device())
    with report_context(config, tracker, data=choice_of("data"), seed=config.seed, hardware=device) as report:
        yield RunContext(config, experiment, Store(config.store.root, track), report, tracker)


@contextmanager
def report_context(
    config: DictConfig, tracker: Tracker, *, data: str, seed: int, hardware: str | None = None, used: DictConfig | None = None
) -> Iterator[Report]:
    """Yield the report of a run on ``data``; if the task succeeds, write it and its page, and pass them to the tracker.

    ``used`` are the settings that the page and the tracker show; None: all.
    """
    hydra = HydraConfig.get()
    used = config if used is None else used
    settings: Any = OmegaConf.to_container(used, resolve=True)
    tracker.start(settings, description_of(config))
    report = Report(
        Path(hydra.runtime.output_dir),
        data=data,
        seed=seed,
        swept=settings_of_run(),
        hardware=hardware,
        experiment=hydra.runtime.choices["experiment"],
        scale=hydra.runtime.choices["scale"] if hydra.runtime.choices["experiment"] else None,
        published=published_numbers(config),
        role=role_of_data(),
        command=command_of_run(),
        formats=config.report.formats,
    )
    try:
        with explained(report.folder, "hydra.run.dir", "what is in the store will be reused"):
            yield report
            report.close()
            page = write_page(report, OmegaConf.to_yaml(used, resolve=True), provenance())
            tracker.rows(report.rows)
            for path in report.figures:
                tracker.figure(path.stem, path)
            if page is not None:
                tracker.page(page)
            for attributions in report.attributions:
                tracker.proponents(attributions)
    except BaseException:
        tracker.finish(failed=True)  # the next job of a sweep has a run of its own
        raise
    if message := tracker.finish():
        print(message)
    if page is not None:
        print(page)


def print_notes(notes: Sequence[str]) -> None:
    """Print lines about settings that are allowed but may mislead."""
    for note in notes:
        print(note)


def announce(nodes: Sequence[Node], store: Store) -> bool:
    """Print what the store lacks and the run will compute; return whether anything is missing."""
    if (line := announcement(nodes, store)) is not None:
        print(line)
    return line is not None
