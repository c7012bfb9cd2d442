"""``task=attribute``: scores of all training images for the chosen ``queries``, to take away."""

from omegaconf import DictConfig

from attribution.estimators import SelfInfluence
from attribution.estimators.training_trajectory import TrajectoryEstimator
from experiments import figures
from experiments.benchmarks.variants import variants_of
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.correlation import split_half_spearman
from experiments.report.row import Row, Subject
from experiments.report.score_files import make_folder, write_proponents, write_self_influence
from experiments.tasks.composition import chosen_estimator
from experiments.tasks.lab import announce, lab
from experiments.tasks.settings import SettingError, build

_SHOWN = 8
"""Queries in the figure, at most."""


def attribute(config: DictConfig, top: int, self_influence: bool) -> None:
    """Score all training images and write the files of :mod:`experiments.report.score_files`.

    Args:
        top: Proponents and opponents in the CSV of a query.
        self_influence: Write the self-influence of every training image as well.

    Raises:
        SettingError: ``top`` below 1, or an estimator without self-influence.
    """
    name, estimator = chosen_estimator(config)
    if self_influence and not isinstance(estimator, TrajectoryEstimator):
        raise SettingError(f"task.self_influence=true: estimator={name} has no self-influence; choose tracin or retrac")
    if top < 1:
        raise SettingError(f"task.top={top}: proponents and opponents in a CSV; must be at least 1")
    with lab(config) as run:
        experiment, get = run.experiment, run.store
        queries = build(config, "queries").node(experiment)
        node = estimator.scores(experiment.record, experiment.train, queries)
        announce([experiment.record, node], get)
        scores, train = get(node), get(experiment.train)
        variants = [variant for variant in variants_of(name, estimator, node, scores) if variant.all_timesteps]
        scores.save(folder := make_folder(run.folder / "scores"))
        for variant in variants:
            path = folder if len(variants) == 1 else make_folder(folder / variant.label)
            write_proponents(path, variant.scores, train, top)
        print(f"scores and a CSV for each query: {folder}")
        if scores.halves is not None:
            reliability = Bootstrap(seed=config.seed).mean(split_half_spearman(scores.halves)).estimate()
            subject = Subject(name, scores=node.fingerprint)
            run.report.add([Row(benchmark="attribute", metric="split_half_spearman", subject=subject, estimate=reliability)])
        shown, values = range(min(_SHOWN, len(scores.query_index))), {v.label: v.scores.values for v in variants}
        run.report.figure("proponents", figures.proponents(get(queries), train, values, shown))
        if isinstance(estimator, TrajectoryEstimator) and self_influence:
            influence = get(SelfInfluence(estimator, experiment.record, experiment.train))
            path = run.folder / "self_influence.csv"
            write_self_influence(path, influence.values, train)
            print(f"self-influence of every training image: {path}")
