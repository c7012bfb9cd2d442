"""Outlier detection (ReTrac §6.3, table 2, figures 15, 16): do images of another source have the largest self-influences?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from attribution.checks import FieldError, listed, whole
from attribution.estimators import Estimator, SelfInfluence
from attribution.estimators.layers import refuse_layers
from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.compare import compare
from experiments.benchmarks.variants import effort_of
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap, Statistic
from experiments.metrics.precision import maximum_precision, random_precision
from experiments.metrics.weighted_ranking import WeightedRanking
from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

Metric = Callable[[WeightedRanking], np.ndarray]
Described = tuple[str, Metric, Levels, dict[str, int]]
"""The name, function, levels and further facts of a metric."""


@dataclass(frozen=True, kw_only=True)
class Outlier(Benchmark):
    """Self-influence as a score of being an outlier: the training images with the label ``outlier`` against all others.

    The rows are the share of outliers among the k largest self-influences, AUROC and average precision, with intervals from
    ``resamples`` of the outliers and of the other training images. The figures show the ``shown`` largest self-influences of all
    training images and of the inliers.
    """

    outlier: int
    k: Sequence[int] = (10, 20, 40, 100)
    resamples: int = RESAMPLES
    seed: int = 0
    shown: int = 24

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._nodes(experiment, estimators).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = self._nodes(experiment, estimators)
        influences = get.many(list(nodes.values()), "self-influence")
        train = get(experiment.train)
        outliers = train.label == self.outlier
        subjects = [
            Subject(name, scores=node.fingerprint, effort=effort_of(estimators[name], {}, node, get))
            for name, node in nodes.items()
        ]
        values = [np.asarray(influence.values) for influence in influences]
        rows = report.add(self._rows(subjects, values, outliers))
        shares = [row for row in rows if "k" in row.about and row.minus is None]
        report.figure("outlier_share", figures.over_k(shares, "outliers among the top k"))
        for name, influence in zip(nodes, values, strict=True):
            report.figure(f"self_influence_{name}", self._grid(train, influence, outliers))

    def _rows(self, subjects: Sequence[Subject], influences: Sequence[np.ndarray], outliers: np.ndarray) -> list[Row]:
        """The rows of every metric, from self-influences ``[N]`` of each subject."""
        metrics = self._metrics(outliers)
        by_subject = [self._statistics(influence, outliers, metrics) for influence in influences]
        rows = []
        for name, _, levels, about in metrics:
            values = [statistics[name] for statistics in by_subject]
            rows += compare(subjects, values, benchmark="outlier", metric=name, levels=levels, about=about)
        return rows

    def _metrics(self, outliers: np.ndarray) -> list[Described]:
        """All metrics."""
        rare = random_precision(outliers)
        shares: list[Described] = [
            (
                f"outlier_share@{k}",
                partial(WeightedRanking.share, k=k),
                Levels(random=rare, maximum=maximum_precision(outliers, k)),
                {"k": k},
            )
            for k in self.k
        ]
        return [
            *shares,
            ("auroc", WeightedRanking.auroc, Levels(random=0.5, maximum=1.0), {}),
            ("average_precision", WeightedRanking.average_precision, Levels(random=rare, maximum=1.0), {}),
        ]

    def _statistics(self, influence: np.ndarray, outliers: np.ndarray, metrics: Sequence[Described]) -> dict[str, Statistic]:
        """Each metric of the ranking by ``influence [N]``.

        How many outliers and other images there are is part of the experiment's design, so these counts, and hence the reference
        levels, are fixed across resamples.
        """
        bootstrap = Bootstrap(self.resamples, self.seed, {"examples": outliers})
        N = len(outliers)
        ranking = WeightedRanking.of(influence, outliers, np.ones((1, N)))
        spread: dict[str, list[np.ndarray]] = {name: [] for name, *_ in metrics}
        for weights in bootstrap.blocks("examples", N):
            resampled = WeightedRanking.of(influence, outliers, weights)
            for name, metric, _, _ in metrics:
                spread[name].append(metric(resampled))
        return {
            name: bootstrap.statistic(
                metric(ranking)[0],
                {"examples": (np.concatenate(spread[name]), N)},
                (0.0, levels.maximum or 1.0),
                about.get("k", int(outliers.sum())),
            )
            for name, metric, levels, about in metrics
        }

    def _grid(self, train: Images, influence: np.ndarray, outliers: np.ndarray) -> Figure:
        """The figure of the training images with the largest self-influences."""
        order = np.argsort(-influence, kind="stable")
        first, inliers = order[: self.shown], order[~outliers[order]][: self.shown]
        lists = {"largest self-influence": first, "largest self-influence of inliers": inliers}
        return figures.ranked(train, lists, influence, np.flatnonzero(outliers).tolist(), "outlier")

    def _nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, SelfInfluence]:
        self._check(experiment.data.load().train)
        nodes = {}
        for name, estimator in estimators.items():
            if not isinstance(estimator, TrajectoryEstimator):
                raise ValueError(
                    f"benchmark=outlier: estimator={name} does not replay training, and only self-influence over checkpoints is "
                    "compared; choose tracin or retrac"
                )
            if estimator.models > 1:
                raise FieldError(estimator, "models", "self-influence is of one model: set 1")
            refuse_layers(estimator, "self-influence")
            nodes[name] = SelfInfluence(estimator, experiment.checkpointed, experiment.train)
        return nodes

    def _check(self, train: Images) -> None:
        """Check the settings before anything is trained."""
        labels, N = np.unique(train.label).tolist(), len(train)
        if self.outlier not in labels or len(labels) < 2:
            raise FieldError(self, "outlier", f"the training images have labels {labels}; choose one of at least two")
        listed(self, "k", partial(whole, least=1, most=N))  # of the training images
        for name in ("resamples", "shown"):
            whole(self, name, least=1)
