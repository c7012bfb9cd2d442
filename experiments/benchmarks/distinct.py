"""What benchmarks of distinct proponents share (ReTrac §6.2): checks, rows of shares and of their differences, boxes of figures."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from attribution.checks import listed, whole
from experiments.benchmarks.variants import Variant
from experiments.metrics import common as metrics
from experiments.models.experiment import Experiment
from experiments.queries.choices import Queries


def check(experiment: Experiment, queries: Mapping[str, Queries], n: int, k: Sequence[int], sets: int, seed: int) -> None:
    """Before anything is trained, what would fail at the end.

    Raises:
        ValueError: a k beyond the training examples, an n beyond a pool, or what is no whole number.
    """
    examples = len(experiment.data.load().train)
    listed("benchmark.k", k, partial(whole, least=1, most=examples))  # of the training examples
    whole("benchmark.n", n, 1)
    whole("benchmark.sets", sets, 1)
    for pool in queries.values():
        metrics.random_sets(pool.node(experiment).count, n, sets, seed)


def share_rows(variants: Sequence[Variant], shares: Sequence[np.ndarray], k: int, n: int) -> Iterator[dict[str, Any]]:
    """The distinct shares ``[S]`` of each variant, with the levels that scores at random and perfect ones reach."""
    examples = variants[0].scores.values.shape[1]
    levels = {
        "random": metrics.random_distinct_share(examples, n, k),
        "maximum": metrics.maximum_distinct_share(examples, n, k),
    }
    for variant, share in zip(variants, shares, strict=True):
        yield {**variant.row, **metric(k, n), **metrics.over_sets(share)._asdict(), **levels}


def difference_row(first: Variant, second: Variant, shares: tuple[np.ndarray, np.ndarray], k: int, n: int) -> dict[str, Any]:
    """``first − second`` on the same sets of queries."""
    difference = metrics.paired_difference(*shares)
    label = f"{first.label} − {second.label}"
    return {"estimator": label, **metric(k, n), **difference._asdict(), "scores": [first.origin, second.origin]}


def metric(k: int, n: int) -> dict[str, Any]:
    """What rows of the top k of n queries share."""
    return {"metric": f"distinct_share@{k}", "k": k, "n": n}


def boxes(variants: Sequence[Variant], shown: int, influential: float) -> dict[str, set[int]]:
    """By variant, the examples in the top ``shown`` of more than the share ``influential`` of the queries."""
    tops = {v.label: metrics.top_k(v.scores.values, min(shown, v.scores.values.shape[1])) for v in variants}
    return {label: set(metrics.generally_influential(top, influential).tolist()) for label, top in tops.items()}


def boxed_means(shown: int, influential: float) -> str:
    """What a red box in a figure says."""
    return f"generally influential: in the top {shown} of more than {influential:.0%} of the pool"
