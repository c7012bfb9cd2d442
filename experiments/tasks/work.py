"""``task=work``: a worker, which shares the computations of ``task=evaluate`` with the processes that have the same settings."""

from omegaconf import DictConfig

from experiments.store.progress import track
from experiments.store.store import Store
from experiments.tasks.composition import evaluation_of
from experiments.tasks.lab import set_threads
from experiments.tasks.workers import end_with


def work(config: DictConfig, parent: int | None) -> None:
    """Compute what is missing in the store, and report nothing. End when nothing is missing, or with the process ``parent``."""
    if parent is not None:
        end_with(parent)
    set_threads(config)
    Store(config.store.root, track).many(evaluation_of(config).nodes)
