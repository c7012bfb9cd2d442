"""Distinct proponents (ReTrac §6.2), as several benchmarks report them: checks, rows of shares, boxes in figures."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import numpy as np

from attribution.checks import listed, number, whole
from experiments.benchmarks.compare import compare
from experiments.benchmarks.variants import Variant
from experiments.metrics import distinct as metrics
from experiments.metrics.ranking import generally_influential, top_k
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.report.row import Levels, Row


class OfSets(Protocol):
    """A benchmark of the top k of sets of n queries."""

    @property
    def queries(self) -> Mapping[str, Queries]: ...

    @property
    def n(self) -> int: ...

    @property
    def k(self) -> Sequence[int]: ...

    @property
    def sets(self) -> int: ...

    @property
    def seed(self) -> int: ...


def check(benchmark: OfSets, experiment: Experiment) -> None:
    """Check the settings of a benchmark before anything is trained.

    Raises:
        ValueError: k exceeds the number of training examples, n exceeds a pool, or a number is not whole.
    """
    examples = len(experiment.data.load().train)
    listed(benchmark, "k", partial(whole, least=1, most=examples))
    whole(benchmark, "sets", least=1)
    number(benchmark, "influential", least=0, most=1)
    for queries in benchmark.queries.values():
        whole(benchmark, "n", least=1, most=queries.node(experiment).count)


def share_rows(
    variants: Sequence[Variant],
    sets: np.ndarray,
    k: int,
    *,
    benchmark: str,
    queries: str,
    differences: Sequence[tuple[int, int]] | None = None,
) -> list[Row]:
    """The distinct share of the top ``k`` over ``sets [S, n]`` of queries, of each variant and of the differences."""
    examples, n = variants[0].scores.values.shape[1], sets.shape[1]
    return compare(
        [variant.subject for variant in variants],
        [metrics.OverSets(metrics.distinct_share(top_k(variant.scores.values, k), sets)) for variant in variants],
        benchmark=benchmark,
        metric=f"distinct_share@{k}",
        queries=queries,
        levels=Levels(random=metrics.random_distinct_share(examples, n, k), maximum=metrics.maximum_distinct_share(examples, n, k)),
        about={"k": k, "n": n},
        differences=differences,
    )


def boxes(variants: Sequence[Variant], shown: int, influential: float) -> dict[str, set[int]]:
    """Return, per variant, the examples in the top ``shown`` for more than a fraction ``influential`` of the queries."""
    tops = {v.label: top_k(v.scores.values, min(shown, v.scores.values.shape[1])) for v in variants}
    return {label: set(generally_influential(top, influential).tolist()) for label, top in tops.items()}


def box_caption(shown: int, influential: float) -> str:
    """The explanation of the red boxes in a figure."""
    return f"generally influential: in the top {shown} of more than {influential:.0%} of the pool"
