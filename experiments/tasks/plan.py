"""``task=plan``: a dry run of ``task=evaluate``."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from experiments.speed.rates import Rates
from experiments.store import inventory_table
from experiments.store.inventory_table import duration
from experiments.store.plan import plan as plan_of
from experiments.store.store import Store
from experiments.tasks.before_training import check_experiment
from experiments.tasks.choices import notes_on_sweep
from experiments.tasks.composition import evaluation_of
from experiments.tasks.run_context import print_notes, set_resources
from experiments.tasks.settings import SettingError


def plan(config: DictConfig, tflops: float | None = None) -> None:
    """List what is missing in the store, with estimates of its memory, disk space, and time on this device.

    ``tflops``: the sustained speed of another device, in 10^12 floating-point operations per second; its time is estimated too.

    Raises:
        SettingError: ``tflops`` is not above 0.
    """
    if tflops is not None and not tflops > 0:
        raise SettingError(f"task.tflops={tflops:g}: must be above 0")
    set_resources(config)
    evaluation, store = evaluation_of(config), Store(config.store.root)
    experiment = evaluation.experiment
    print_notes([*notes_on_sweep(), *evaluation.notes])
    check_experiment(experiment, store, evaluation.benchmark, *evaluation.estimators.values())
    network = experiment.model().to(experiment.execution.torch_device())
    rates = Rates.of(network, experiment.shape, experiment.trained.objective, experiment.execution, store.root)
    rows = plan_of(evaluation.nodes, store, rates)
    shown = [_shown(row) for row in rows]
    if tflops is not None:
        other = rates.at(tflops)
        for line, row in zip(shown, rows, strict=True):
            line[f"{tflops:g} TFLOP/s"] = duration(other.seconds(row["cost"]))
    inventory_table.show(shown, f"missing in {store.root}")


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the table, which fits 80 characters: work in words instead of the names of classes."""
    columns = {name: row[name] for name in ("nodes", "passes", "memory", "disk")}
    return {"work": row["work"] or row["class"], **columns, "time": row["seconds"]}
