"""``task=work``: a worker, which shares the computations of ``task=evaluate`` with other processes that have its settings."""

from omegaconf import DictConfig

from experiments.parent import exit_with_parent
from experiments.store.progress import track
from experiments.store.store import Store
from experiments.tasks.composition import evaluation_of
from experiments.tasks.run_context import set_resources


def work(config: DictConfig, parent: int | None) -> None:
    """Compute what is missing in the store, and report nothing. Exit when nothing is missing or the process ``parent`` exits."""
    if parent is not None:
        exit_with_parent(parent)
    set_resources(config)
    Store(config.store.root, track).many(evaluation_of(config).nodes)
