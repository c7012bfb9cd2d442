"""Pairs of estimators that LDS and deletion put into different orders, in words."""

from collections.abc import Sequence

from experiments.benchmarks.verdict_parts import LDS, deletion_metric
from experiments.metrics.estimate import Estimate
from experiments.report.row import Row
from experiments.report.tables import number


def disagreements(rows: Sequence[Row], k: Sequence[int]) -> tuple[list[str], list[str]]:
    """Compare the paired differences in LDS with those in deletion of the top ``k``.

    Returns:
        A warning for each pair with opposite signs of which at least one interval leaves out 0, those where both do first; and a
        line on the remaining pairs with opposite signs, for each number of images and kind of queries.
    """
    differences = {(row.queries, row.metric, row.estimator): row for row in rows if row.minus is not None}
    clear, partly, noise = [], [], []
    for kind in dict.fromkeys(row.queries for row in rows):
        for count in k:
            within = []
            for (queries, metric, pair), row in differences.items():
                other = differences.get((kind, deletion_metric(count), pair))
                if queries != kind or metric != LDS or other is None or row.estimate.value * other.estimate.value >= 0:
                    continue
                certain = _excludes_zero(row.estimate) + _excludes_zero(other.estimate)
                if certain:
                    (clear if certain == 2 else partly).append(_sentence(row, other, count, certain))
                else:
                    within.append(pair)
            if within:
                where = f"LDS and deletion of the top {count} ({kind} queries)"
                noise.append(f"{where} order these pairs differently, both within noise: {'; '.join(within)}")
    return [*clear, *partly], noise


def _sentence(row: Row, other: Row, count: int, certain: int) -> str:
    beyond = "both beyond noise" if certain == 2 else "one of them within noise"
    return (
        f"LDS and deletion disagree about {row.estimator} ({row.queries} queries), {beyond}: "
        f"LDS {_signed(row.estimate)} points, Δ without the top {count} {_signed(other.estimate)} %"
    )


def _signed(estimate: Estimate) -> str:
    text = f"{'+' * (estimate.value > 0)}{number(estimate.value)}"
    return text + (f" [{number(estimate.low)}, {number(estimate.high)}]" if estimate.has_interval else "")


def _excludes_zero(estimate: Estimate) -> bool:
    return estimate.has_interval and estimate.low * estimate.high > 0
