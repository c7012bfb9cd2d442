"""What retraining says about groups of training images, and how well scores agree with it: rows of ``benchmark=groups``."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.images import Images
from experiments.benchmarks.compare import compare, pairs
from experiments.benchmarks.draw_noise import lds_of
from experiments.benchmarks.subset_benchmark import CEILING, RETRAINING, ceiling_of, levels
from experiments.benchmarks.variants import Variant
from experiments.estimators.datamodels import fit
from experiments.metrics import lds as metrics
from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.estimate import PERCENT
from experiments.metrics.lds import SUBSETS
from experiments.metrics.replicates import jackknifed
from experiments.report.row import Row, Subject

BENCHMARK = "groups"
LEAVE_ONE_OUT, LDS, SURROGATE, SHAPLEY = "leave_one_out", "lds", "surrogate", "shapley"
PARTS = (LEAVE_ONE_OUT, LDS, SURROGATE, SHAPLEY)
GROUPS, CIRCLES = "groups", "circles"
"""Axes that are resampled."""
METRICS = {
    LEAVE_ONE_OUT: ("leave_one_out_spearman_%", "leave_one_out_pearson_%"),
    LDS: ("group_lds_%",),
    SURROGATE: ("surrogate_spearman_%", "surrogate_pearson_%"),
    SHAPLEY: ("shapley_spearman_%", "shapley_pearson_%"),
}
"""The metrics of each part: Spearman's correlation, and Pearson's."""
PREDICTORS = {LEAVE_ONE_OUT: "leaving out each group", SHAPLEY: "Shapley values"}
"""What retraining finds in one part, as a predictor of the other parts."""


@dataclass(frozen=True, eq=False)
class Found:
    """What models that are trained without some groups say in one ``part``, for one kind of queries.

    ``replicates [K, Q, M]`` are M numbers of each training seed, which the sum of scores over the groups in ``lacking [M, G]``
    predicts: of each subset, or of each group. ``repeated [K', Q, M']`` are those that were trained most often, ``circles [C, Q,
    M]`` those of several circles, averaged over seeds.
    """

    part: str
    replicates: np.ndarray
    lacking: np.ndarray
    repeated: np.ndarray
    circles: np.ndarray | None = None

    @property
    def target(self) -> np.ndarray:
        """The mean over training seeds, ``[Q, M]``."""
        return self.replicates.mean(0)

    @property
    def axis(self) -> str:
        """What the M numbers belong to."""
        return SUBSETS if self.part == LDS else GROUPS


def found_for_each_group(part: str, replicates: np.ndarray, circles: np.ndarray | None = None) -> Found:
    """A number for each group: ``replicates [K, Q, G]``."""
    return Found(part, replicates, np.eye(replicates.shape[2]), replicates, circles)


def surrogate(measured: np.ndarray, removed: np.ndarray, damping: float) -> np.ndarray:
    """The coefficients ``[Q, G]`` of the linear model of ``measured [Q, M]`` on the weights ``removed [M, G]`` of groups.

    They are the Shapley values of the surrogate: a linear function adds the same, whatever the order. It is the ridge regression of
    datamodels, with ``damping`` λ added to the curvature of the mean over subsets. If all subsets leave out as many groups, they
    are known up to a constant of each query, and add up to 0.
    """
    return fit(measured, removed, [damping])[0].astype(np.float64) / removed.shape[1]


def rows_of(
    found: Found,
    kind: str,
    variants: Sequence[Variant],
    members: np.ndarray,
    predictors: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
) -> tuple[list[Row], dict[str, list[np.ndarray]]]:
    """The rows of one part, and by metric the correlation of every query in per cent, ``[Q]`` for each variant.

    ``members [G, N]`` are the images of the groups, and ``predictors`` numbers of groups ``[Q, G]`` from other parts.
    """
    seeds, _, count = found.replicates.shape
    rows: list[Row] = []
    of_queries: dict[str, list[np.ndarray]] = {}
    ceiling = ceiling_of(found.repeated, bootstrap, seeds, count, found.axis)
    about = {"groups": len(members), "seeds": seeds, **({SUBSETS: count} if found.axis == SUBSETS else {})}
    for metric, ranked in zip(METRICS[found.part], (True, False), strict=False):
        statistics, per_query = _correlations(found, variants, members, predictors, ranked, bootstrap)
        subjects = [*(variant.subject for variant in variants), *map(Subject, predictors)]
        shared = {"benchmark": BENCHMARK, "metric": metric, "queries": kind, "about": about}
        rows += compare(
            subjects,
            [statistic * PERCENT for statistic in statistics],
            levels=levels(ceiling if ranked else None),
            differences=pairs([variant.subject for variant in variants]),
            **shared,
        )
        of_queries[metric] = list(PERCENT * per_query)
        if ceiling is not None and ranked:
            again = metrics.retraining(found.repeated[:, None], bootstrap, found.axis)[0, 0] * PERCENT
            rows.append(Row(subject=Subject(RETRAINING), estimate=again.estimate(), levels=levels(ceiling), **shared))
            rows.append(Row(subject=Subject(CEILING), estimate=ceiling, **shared))
    return rows, of_queries


def _correlations(
    found: Found,
    variants: Sequence[Variant],
    members: np.ndarray,
    predictors: Mapping[str, np.ndarray],
    ranked: bool,
    bootstrap: Bootstrap,
) -> tuple[list[Statistic], np.ndarray]:
    """The mean correlation over queries of each variant and predictor, and that of every query with each variant, ``[P, Q]``."""
    target, axis, removed = found.target, found.axis, found.lacking @ members
    statistics, per_query, _ = lds_of(variants, removed, target, bootstrap, axis, ranked)
    predictions = [metrics.predicted(variant.scores.values, removed) for variant in variants]
    if predictors:
        others = np.stack([metrics.predicted(values, found.lacking) for values in predictors.values()])
        of_others = metrics.lds(others, target[None], bootstrap, axis, ranked)
        statistics += [of_others[place, 0] for place in range(len(others))]
        predictions += list(others)
    if found.circles is not None and len(found.circles) > 1:
        without = [np.delete(found.circles, circle, 0).mean(0) for circle in range(len(found.circles))]
        statistics = [
            jackknifed(value, CIRCLES, np.array([metrics.per_query(p, t, ranked).mean() for t in without]), bootstrap)
            for value, p in zip(statistics, predictions, strict=True)
        ]
    return statistics, per_query


def lines_of_groups(
    kind: str,
    queries: Images,
    groups: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
) -> Iterator[dict[str, object]]:
    """The lines of a CSV: ``scores [Q, G]`` of each estimator, beside what retraining ``found`` in each part, ``[Q, G]``."""
    for label, values in scores.items():
        for row in range(len(queries)):
            for place, (group, rows) in enumerate(groups.items()):
                yield {
                    "queries": kind,
                    "query": int(queries.index[row]),
                    "query_name": queries.name(row),
                    "estimator": label,
                    "group": group,
                    "images": len(rows),
                    "score": values[row, place].item(),
                    **{part: of_groups[row, place].item() for part, of_groups in found.items()},
                }
