"""``task=plan``: a dry run of ``task=evaluate``."""

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from attribution.nodes import Cost, Node
from experiments.models.models_on_disk import ManyRetrained, ModelsOnDisk
from experiments.speed.rates import Rates
from experiments.store import inventory_table
from experiments.store.inventory_table import duration, size
from experiments.store.plan import missing
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
    objective, condition = experiment.trained.objective, experiment.data.load().train.conditions(slice(1))
    rates = Rates.of(network, experiment.shape, objective, experiment.execution, store.root, condition)
    lacking = missing(evaluation.nodes, store)
    rows, models = plan_of(evaluation.nodes, store, rates, lacking), models_on_disk(lacking)
    shown = [_shown(row) for row in rows]
    if tflops is not None:
        other = rates.at(tflops)
        for line, row in zip(shown, rows, strict=True):
            line[f"{tflops:g} TFLOP/s"] = duration(other.seconds(row["cost"]))
    inventory_table.show(shown, f"missing in {store.root}")
    if models.number:
        print(_models(models))


def models_on_disk(lacking: Sequence[tuple[Node, Cost]]) -> ModelsOnDisk:
    """Return the disk that missing retrained models will take, among all missing nodes with their costs."""
    # The passes of a node are those of parts that are not known yet.
    return ModelsOnDisk.of(lacking, [node for node, cost in lacking if isinstance(node, ManyRetrained) and cost.passes])


def _models(models: ModelsOnDisk) -> str:
    return (
        f"retrained models: {models.number}, {size(models.kept)} on disk if they are kept; with benchmark.keep_models=false\n"
        f"{size(models.measured)} for measurements and images, and at most {size(models.at_a_time)} for each process while it runs"
    )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the table, which fits 80 characters: work in words instead of the names of classes."""
    columns = {name: row[name] for name in ("nodes", "passes", "memory", "disk")}
    return {"work": row["work"] or row["class"], **columns, "time": row["seconds"]}
