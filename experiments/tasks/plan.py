"""``task=plan``: a dry run of ``task=evaluate``."""

from omegaconf import DictConfig

from experiments.speed.timing import seconds_per_pass
from experiments.store import inventory_table
from experiments.store.plan import plan as plan_of
from experiments.store.store import Store
from experiments.tasks.composition import evaluation_of
from experiments.tasks.lab import set_threads


def plan(config: DictConfig) -> None:
    """Show what is missing in the store, and about how much time, memory and disk it will take."""
    set_threads(config)
    evaluation, store = evaluation_of(config), Store(config.store.root)
    experiment = evaluation.experiment
    network = experiment.model().to(experiment.execution.torch_device())
    rate = seconds_per_pass(network, experiment.shape, experiment.record.objective)
    inventory_table.show(plan_of(evaluation.nodes, store, rate), f"missing in {store.root}")
