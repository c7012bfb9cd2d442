"""The verbs of the command line (``task=``)."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from attribution.estimators import Estimator, SelfInfluence
from attribution.estimators.trajectory import TrajectoryEstimator
from attribution.nodes import Node
from attribution.training import TrainingRecord
from attribution.training.checkpoints import select
from experiments import figures
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.variants import variants_of
from experiments.metrics import common as metrics
from experiments.models.experiment import Experiment
from experiments.report.score_files import make_folder, write_proponents, write_self_influence
from experiments.speed.timing import seconds_per_pass
from experiments.store import inventory, inventory_table
from experiments.store.plan import announcement
from experiments.store.plan import plan as plan_of
from experiments.store.progress import track
from experiments.store.prune import prune
from experiments.store.store import Store
from experiments.tasks.composition import chosen_estimator, estimators_of, experiment_of
from experiments.tasks.lab import Lab, lab, set_threads
from experiments.tasks.workers import end_with, workers


def train(config: DictConfig) -> None:
    """Trains the model, or finds it in the store; shows its curve and samples of it."""
    with lab(config) as run:
        record = run.store(run.experiment.record)
        last_epoch = record.losses[-record.info["steps_per_epoch"] :]
        row = {"benchmark": "train", "estimator": "none", "metric": "training_loss_of_last_epoch"}
        run.report.add([{**row, **metrics.bootstrap_mean(last_epoch)._asdict(), "model": run.experiment.record.fingerprint}])
        _show_training(run, record)
        if config.samples.trajectory:
            samples = run.experiment.samples(config.samples.n, config.samples.seed)
            node = samples.trajectories
            run.store(node)
            print(f"sampling trajectories: {run.store.folder(node)}")


def evaluate(config: DictConfig) -> None:
    """Runs the benchmark on the estimator and those of ``benchmark.compare``."""
    benchmark = instantiate(config.benchmark, _convert_="all")
    estimators = estimators_of(config)
    with lab(config) as run:
        needed = _needed(run.config, run.experiment, benchmark, estimators)
        with workers(config, run.folder) if _announce(needed, run.store) else nullcontext():
            run.store.many(needed)
            benchmark.evaluate(run.experiment, estimators, run.store, run.report)
        record = run.store(run.experiment.record)
        chosen = next(iter(estimators.values()))
        used = select(chosen.checkpoints, record.steps, record.losses) if isinstance(chosen, TrajectoryEstimator) else ()
        _show_training(run, record, used)


def work(config: DictConfig, parent: int | None) -> None:
    """Shares the work of ``task=evaluate`` with processes that have the same settings, and reports nothing.

    It ends when all is computed, or with the process ``parent``.
    """
    if parent is not None:
        end_with(parent)
    set_threads(config)
    experiment = experiment_of(config)
    benchmark, estimators = instantiate(config.benchmark, _convert_="all"), estimators_of(config)
    Store(config.store.root, track).many(_needed(config, experiment, benchmark, estimators))


def attribute(config: DictConfig, top: int, self_influence: bool) -> None:
    """Scores all training images for ``queries`` and leaves what a user takes away (``experiments.report.score_files``)."""
    name, estimator = chosen_estimator(config)
    if self_influence and not isinstance(estimator, TrajectoryEstimator):
        raise ValueError(f"task.self_influence=true: estimator={name} has no self-influence; choose tracin or retrac")
    if top < 1:
        raise ValueError(f"task.top={top}: proponents and opponents in a CSV, at least 1")
    with lab(config) as run:
        experiment, get = run.experiment, run.store
        queries = instantiate(config.queries, _convert_="all").node(experiment)
        node = estimator.scores(experiment.record, experiment.train, queries)
        _announce([experiment.record, node], get)
        scores, train = get(node), get(experiment.train)
        whole = [variant for variant in variants_of(name, estimator, node, scores) if variant.whole]
        scores.save(folder := make_folder(run.folder / "scores"))
        for variant in whole:
            write_proponents(folder if len(whole) == 1 else make_folder(folder / variant.label), variant.scores, train, top)
        print(f"scores and a CSV for each query: {folder}")
        row = {"benchmark": "attribute", "estimator": name, "scores": node.fingerprint}
        if scores.halves is not None:
            reliability = metrics.bootstrap_mean(metrics.split_half_spearman(scores.halves), seed=config.seed)
            run.report.add([{**row, "metric": "split_half_spearman", **reliability._asdict()}])
        shown = range(min(8, len(scores.query_index)))
        run.report.figure("proponents", figures.proponents(get(queries), train, {v.label: v.scores.values for v in whole}, shown))
        if isinstance(estimator, TrajectoryEstimator) and self_influence:
            influence = get(SelfInfluence(estimator, experiment.record, experiment.train))
            path = run.folder / "self_influence.csv"
            write_self_influence(path, influence.values, train)
            print(f"self-influence of every training image: {path}")


def speed(config: DictConfig, examples: int, repeats: int, draws: Sequence[int], groups: Sequence[int], steps: int) -> None:
    """Measures this program against plain passes of the same network, and retraining side by side against Lightning's fit."""
    from experiments.speed.curvature import curvature_speed
    from experiments.speed.features import feature_speed
    from experiments.speed.gradients import draws_speed, gradient_speed
    from experiments.speed.retraining import retraining_speed
    from experiments.speed.scoring import scoring_speed

    with lab(config) as run:
        experiment = run.experiment
        shape = experiment.shape
        network = experiment.model().to(experiment.execution.torch_device())
        measure = instantiate(config.measurement, _convert_="all")
        rows = gradient_speed(network, shape, measure, examples, draws, repeats)
        rows += draws_speed(network, shape, measure, examples, draws, repeats)
        rows += curvature_speed(network, shape, experiment.objective, examples, draws, repeats)
        rows += scoring_speed(network, shape, experiment.objective, examples, draws, repeats)
        rows += feature_speed(network, shape, experiment.objective, examples, draws, repeats)
        run.report.add(
            {"benchmark": "speed", "estimator": f"{row['examples']} examples × {row['draws']} draws", **row} for row in rows
        )
        images, recipe = experiment.data.load().train, replace(experiment.trainer, steps=steps)
        rows = retraining_speed(experiment.model, images, experiment.objective, experiment.optimizer, recipe, groups, repeats)
        run.report.add({"benchmark": "speed", "estimator": f"groups of {row['group']}", **row} for row in rows)


def plan(config: DictConfig) -> None:
    """Dry run of ``task=evaluate``: what is missing in the store, and about how much time, memory and disk it will take."""
    set_threads(config)
    experiment, store = experiment_of(config), Store(config.store.root)
    nodes = _needed(config, experiment, instantiate(config.benchmark, _convert_="all"), estimators_of(config))
    network = experiment.model().to(experiment.execution.torch_device())
    rate = seconds_per_pass(network, experiment.shape, experiment.record.objective)
    inventory_table.show(plan_of(nodes, store, rate), f"missing in {store.root}")


def store(config: DictConfig, action: str, node: str | None, apply: bool, **conditions: Any) -> None:
    """Lists, explains or prunes the store."""
    root = Store(config.store.root)
    if action == "list":
        inventory_table.show(inventory.listing(root.root), str(root.root))
    elif action == "explain":
        if node is None:
            raise ValueError("task.action=explain needs task.node=FINGERPRINT, or its beginning; task.action=list shows them")
        inventory_table.show_explanation(inventory.explain(root.root, node))
    elif action == "prune":
        rows = prune(root, **conditions, dry_run=not apply)
        inventory_table.show(rows, "removed" if apply else "would be removed (task.apply=true does it)")
    else:
        raise ValueError(f"task.action={action}: choose list, explain or prune")


def _needed(config: DictConfig, experiment: Experiment, benchmark: Benchmark, estimators: Mapping[str, Estimator]) -> list[Node]:
    """What an evaluation asks the store for."""
    samples = experiment.samples(config.samples.n, config.samples.seed)
    return [experiment.record, *benchmark.nodes(experiment, estimators), samples]


def _announce(nodes: Sequence[Node], store: Store) -> bool:
    """Says what is to be computed; whether anything is."""
    if (line := announcement(nodes, store)) is not None:
        print(line)
    return line is not None


def _show_training(run: Lab, record: TrainingRecord, used: Sequence[int] = ()) -> None:
    table = record.step_table[record.step_table["rank"] == 0]
    rates = table["learning_rate"][:, 0]
    steps = range(1, len(record.losses) + 1)
    run.report.figure("training", figures.training_curve(steps, record.losses, rates, record.steps, used))
    run.tracker.curve("training", steps, {"loss": record.losses.tolist(), "learning_rate": rates.tolist()})
    samples = run.store(run.experiment.samples(run.config.samples.n, run.config.samples.seed))
    run.report.figure("samples", figures.grid(samples))
