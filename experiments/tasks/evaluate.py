"""``task=evaluate``: a benchmark of the chosen estimator and those of ``benchmark.compare``."""

from collections.abc import Sequence
from contextlib import nullcontext

from omegaconf import DictConfig

from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.training import Recorded
from attribution.training.checkpoints import select
from experiments.benchmarks.selection import Selective
from experiments.tasks.before_training import check_before_training
from experiments.tasks.choices import notes_on_sweep
from experiments.tasks.composition import Evaluation, evaluation_of
from experiments.tasks.model_quality import report_models
from experiments.tasks.run_context import RunContext, announce, print_notes, run_context
from experiments.tasks.search import is_search
from experiments.tasks.train import show_samples, show_training
from experiments.tasks.workers import workers


def evaluate(config: DictConfig) -> float | None:
    """Compute what is missing in the store, alone or with workers, and report the benchmark.

    In a search over settings (``search.py``), also report what selection does not see, and return the number to maximize.
    """
    selection = None
    with run_context(config) as run:
        evaluation = evaluation_of(config, run.experiment)
        benchmark = evaluation.benchmark
        if is_search() and isinstance(benchmark, Selective):
            benchmark.check_selection(run.experiment)
        compute_and_report(config, run, evaluation, [*notes_on_sweep(), *evaluation.notes])
        if is_search() and isinstance(benchmark, Selective):
            selection = benchmark.selection(run.experiment, evaluation.estimators, run.store)
            run.report.add(selection.rows)
        if isinstance(run.experiment.trained, Recorded) and run.experiment.trained.VISITS:
            record = run.store(run.experiment.recorded)
            chosen = next(iter(evaluation.estimators.values()))
            replayed = isinstance(chosen, TrajectoryEstimator)
            used = select(chosen.checkpoints, record.steps, record.losses, chosen) if replayed else ()
            show_training(run, record, used)
        show_samples(run)
        report_models(run, *evaluation.estimators.values())
    return None if selection is None else selection.value


def compute_and_report(config: DictConfig, run: RunContext, evaluation: Evaluation, notes: Sequence[str]) -> None:
    """Print ``notes``, compute what is missing for a benchmark, alone or with workers, and add its rows to the report."""
    check_before_training(run, evaluation.benchmark, *evaluation.estimators.values())
    print_notes(notes)
    with workers(config, run.folder) if announce(evaluation.nodes, run.store) else nullcontext():
        run.store.many(evaluation.nodes)
        evaluation.benchmark.evaluate(run.experiment, evaluation.estimators, run.store, run.report)
