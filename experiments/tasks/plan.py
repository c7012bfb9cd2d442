"""``task=plan``: a dry run of ``task=evaluate``."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from experiments.speed.timing import seconds_per_pass
from experiments.store import inventory_table
from experiments.store.plan import plan as plan_of
from experiments.store.store import Store
from experiments.tasks.before_training import check_experiment
from experiments.tasks.choices import notes_on_sweep
from experiments.tasks.composition import evaluation_of
from experiments.tasks.run_context import print_notes, set_resources


def plan(config: DictConfig) -> None:
    """List what is missing in the store, with estimates of its time, memory and disk space."""
    set_resources(config)
    evaluation, store = evaluation_of(config), Store(config.store.root)
    experiment = evaluation.experiment
    print_notes([*notes_on_sweep(), *evaluation.notes])
    check_experiment(experiment, store, evaluation.benchmark, *evaluation.estimators.values())
    network = experiment.model().to(experiment.execution.torch_device())
    rate = seconds_per_pass(network, experiment.shape, experiment.trained.objective)
    rows = plan_of(evaluation.nodes, store, rate)
    inventory_table.show(list(map(_shown, rows)), f"missing in {store.root}")
    if unknown := sum(row["unknown"] for row in rows[:-1]):
        print(f"not in the time: {unknown} nodes that combine or decompose results, for which there is no estimate")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the table, which fits 80 characters: work in words instead of the names of classes."""
    columns = {name: row[name] for name in ("nodes", "passes", "memory", "disk")}
    return {"work": row["work"] or row["class"], **columns, "time": row["seconds"]}
