"""``task=plan``: a dry run of ``task=evaluate``."""

from omegaconf import DictConfig

from experiments.models.rehearsal import rehearse
from experiments.speed.timing import seconds_per_pass
from experiments.store import inventory_table
from experiments.store.plan import plan as plan_of
from experiments.store.store import Store
from experiments.tasks.before_training import check_draws
from experiments.tasks.composition import evaluation_of
from experiments.tasks.run_context import set_threads


def plan(config: DictConfig) -> None:
    """List what is missing in the store, with estimates of its time, memory and disk space."""
    set_threads(config)
    evaluation, store = evaluation_of(config), Store(config.store.root)
    print(*(f"{note}\n" for note in evaluation.notes), sep="", end="")
    experiment = evaluation.experiment
    check_draws(experiment, evaluation.benchmark, *evaluation.estimators.values())
    if not store.has(experiment.trained):
        rehearse(experiment)
    network = experiment.model().to(experiment.execution.torch_device())
    rate = seconds_per_pass(network, experiment.shape, experiment.trained.objective)
    inventory_table.show(plan_of(evaluation.nodes, store, rate), f"missing in {store.root}")
