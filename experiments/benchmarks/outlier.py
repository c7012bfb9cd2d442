"""Outlier detection (ReTrac §6.3, table 2, figures 15, 16): have the few images of another source the largest self-influences?"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from attribution.checks import listed, whole
from attribution.estimators import Estimator, SelfInfluence
from attribution.estimators.trajectory import TrajectoryEstimator
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import Benchmark
from experiments.figures.mappings import mappings
from experiments.metrics import precision as tracing_metrics
from experiments.models.experiment import Experiment
from experiments.report.report import Report

_Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Self-influences ``[N]``, which are outliers ``[N]``, weights ``[B, N]`` -> ``[B]``."""


@dataclass(frozen=True, kw_only=True)
class Outlier(Benchmark):
    """Self-influence as a score of being an outlier: the training images with the label ``outlier`` against all others.

    Reported are the share of outliers among the k largest self-influences, AUROC and average precision, with intervals from
    ``resamples`` of the training images; shown are the ``shown`` largest of all and of the inliers.
    """

    outlier: int
    k: Sequence[int] = (10, 20, 40, 100)
    resamples: int = 1000
    seed: int = 0
    shown: int = 24

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._nodes(experiment, estimators).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = self._nodes(experiment, estimators)
        found = dict(zip(nodes, get.many(list(nodes.values()), "self-influence"), strict=True))
        train = get(experiment.train)
        outliers = train.label == self.outlier
        values = {name: np.asarray(influence.values) for name, influence in found.items()}
        origins = {name: node.fingerprint for name, node in nodes.items()}
        report.add({"benchmark": "outlier", **row} for row in self._rows(values, origins, outliers))
        shares = [row for row in mappings(report.rows) if row.get("k") is not None and row.get("random") is not None]
        report.figure("outlier_share", figures.over_k(shares, "outliers among the top k"))
        for name, influence in values.items():
            report.figure(f"self_influence_{name}", self._grid(train, influence, outliers))

    def _rows(self, values: Mapping[str, np.ndarray], origins: Mapping[str, str], outliers: np.ndarray) -> Iterator[dict[str, Any]]:
        # The first "resample" is the training set itself.
        drawn = np.concatenate([np.ones((1, len(outliers))), tracing_metrics.resamples(outliers, self.resamples, self.seed)])
        for metric, measure, levels in self._metrics(outliers):
            measured = {name: measure(influence, outliers, drawn) for name, influence in values.items()}
            for name, values_of in measured.items():
                estimate = tracing_metrics.estimate(values_of[0], values_of[1:])
                yield {"estimator": name, **metric, **estimate._asdict(), **levels, "scores": origins[name]}
            first, *others = measured
            for other in others:
                difference = measured[first] - measured[other]
                estimate = tracing_metrics.estimate(difference[0], difference[1:])
                both = [origins[first], origins[other]]
                yield {"estimator": f"{first} − {other}", **metric, **estimate._asdict(), "scores": both}

    def _metrics(self, outliers: np.ndarray) -> Iterator[tuple[dict[str, Any], _Measure, dict[str, float]]]:
        """Name, function and levels of all that is reported."""
        rare = tracing_metrics.random_precision(outliers)
        for k in self.k:
            levels = {"random": rare, "maximum": tracing_metrics.maximum_precision(outliers, k)}
            yield {"metric": f"outlier_share@{k}", "k": k}, partial(tracing_metrics.weighted_share, k=k), levels
        yield {"metric": "auroc"}, tracing_metrics.weighted_auroc, {"random": 0.5, "maximum": 1.0}
        yield {"metric": "average_precision"}, tracing_metrics.weighted_average_precision, {"random": rare, "maximum": 1.0}

    def _grid(self, train: Images, influence: np.ndarray, outliers: np.ndarray) -> Figure:
        order = np.argsort(-influence, kind="stable")
        first, inliers = order[: self.shown], order[~outliers[order]][: self.shown]
        lists = {"largest self-influence": first, "largest self-influence of inliers": inliers}
        return figures.ranked(train, lists, influence, np.flatnonzero(outliers).tolist(), "outlier")

    def _nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, SelfInfluence]:
        self._check(experiment.data.load().train)
        found = {}
        for name, estimator in estimators.items():
            if not isinstance(estimator, TrajectoryEstimator):
                raise ValueError(f"benchmark=outlier: estimator={name} has no self-influence; choose tracin or retrac")
            found[name] = SelfInfluence(estimator, experiment.record, experiment.train)
        return found

    def _check(self, train: Images) -> None:
        """Before anything is trained: what would fail at the end."""
        labels, N = np.unique(train.label).tolist(), len(train)
        if self.outlier not in labels or len(labels) < 2:
            raise ValueError(
                f"benchmark.outlier={self.outlier}: the training images have labels {labels}; choose one of two or more "
                "(data=patches_digits and data=cifar_mnist have 1: zeros)"
            )
        listed("benchmark.k", self.k, partial(whole, least=1, most=N))  # of the training images
        for name in ("resamples", "shown"):
            whole(f"benchmark.{name}", getattr(self, name), 1)
