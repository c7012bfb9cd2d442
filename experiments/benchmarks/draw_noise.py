"""The part of an LDS that is noise of the draws, for scores with replicates (``estimator.draws.replicates``)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.benchmarks.variants import Variant
from experiments.metrics import lds
from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.estimate import PERCENT
from experiments.metrics.replicates import Noise, errors_and_band, with_draws

_TIMES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, math.inf)
"""The multiples of the draws of a side at which the table gives the expected LDS."""


@dataclass(frozen=True)
class DrawNoise:
    """What the groups of draws of one variant predict for the subsets, ``[R, S, Q, M]``, and the noise in it."""

    variant: Variant
    predictions: np.ndarray
    noise: Noise

    @classmethod
    def of(cls, variant: Variant, removed: np.ndarray) -> "DrawNoise | None":
        """From the weights that subsets remove, ``[M, N]``; None for scores without replicates."""
        if variant.scores.cross is None:
            return None
        predictions = lds.predicted(variant.scores.cross, removed)
        return cls(variant, predictions, Noise.of(predictions))

    def about(self) -> dict[str, Any]:
        """Facts for the row of the LDS: the shares of the variance of predictions."""
        noise = self.noise
        return {
            "reliability": noise.signal,
            "noise_of_query_draws": noise.query,
            "noise_of_training_draws": noise.train,
            "noise_of_both_draws": noise.both,
            "replicates": len(self.predictions),
        }

    def expected(self, kind: str, value: float) -> Iterator[dict[str, Any]]:
        """Lines of a table: the LDS to expect with more or fewer draws of either side, if it is ``value`` with those taken.

        Where the draws of training images are not in groups, they stay as many.
        """
        effort = self.variant.subject.effort
        assert effort is not None
        if not self.noise.signal > 0:
            return
        one_side = self.predictions.shape[1] == 1
        for query in _whole(effort.draws_query):
            for train in [1] if one_side else _whole(effort.draws_train):
                yield {
                    "queries": kind,
                    "estimator": self.variant.label,
                    "draws_query": _times(effort.draws_query, query),
                    "draws_train": _times(effort.draws_train, train),
                    "expected_lds_%": self.noise.expected(value, query, train),
                }

    def summary(self, value: float) -> str:
        """The part of the variance of predictions that is noise of the draws, and the LDS that endless draws would give.

        ``value`` is the LDS with the draws taken.
        """
        if not self.noise.signal > 0:
            return f"{self.variant.label}: only noise, take more draws"
        noise = self.noise.clipped()
        endless = noise.expected(value, math.inf, math.inf if self.predictions.shape[1] > 1 else 1)
        return f"{self.variant.label} {PERCENT * (1 - noise.signal):.0f} % ({value:.1f} -> {endless:.1f})"


def draws_note(kind: str, noises: Sequence[DrawNoise], values: Sequence[float]) -> str:
    """One line on the noise of the draws of all estimators, with their LDS ``values``."""
    summaries = ", ".join(noise.summary(value) for noise, value in zip(noises, values, strict=True))
    return (
        f"{kind} queries: noise of the draws in the variance of predictions, and the LDS (now -> expected from endless draws; "
        f"expected_lds.csv): {summaries}"
    )


def noise_bands(variants: Sequence[Variant]) -> dict[str, np.ndarray]:
    """Half the width of the 95 % interval of each score, ``[Q, N]``, by the label of a variant with replicates."""
    return {v.label: errors_and_band(np.asarray(v.scores.cross))[1] for v in variants if v.scores.cross is not None}


def lds_of(
    variants: Sequence[Variant],
    removed: np.ndarray,
    target: np.ndarray,
    bootstrap: Bootstrap,
    axis: str = lds.SUBSETS,
    ranked: bool = True,
) -> tuple[list[Statistic], np.ndarray, list[DrawNoise | None]]:
    """The LDS of each variant, with deviations for other draws where it has groups of them; that of each query; and the noise.

    ``removed [M, N]``: the weights that subsets remove; ``target [Q, M]``. The LDS of queries are ``[P, Q]``. ``axis`` names what
    the M numbers belong to, if not subsets; without ``ranked`` correlations are Pearson's.
    """
    predictions = np.stack([lds.predicted(variant.scores.values, removed) for variant in variants])
    values = lds.lds(predictions, target[None], bootstrap, axis, ranked)
    noises = [DrawNoise.of(variant, removed) for variant in variants]
    statistics = [
        values[p, 0] if noise is None else with_draws(values[p, 0], noise.predictions, target, bootstrap, ranked)
        for p, noise in enumerate(noises)
    ]
    return statistics, lds.per_query(predictions, target, ranked), noises


def _whole(number: int | None) -> list[float]:
    """The multiples that are whole numbers of draws."""
    return [factor for factor in _TIMES if number is None or math.isinf(factor) or (number * factor).is_integer()]


def _times(number: int | None, factor: float) -> float | None:
    """``factor`` times a number of draws, "inf" for infinitely many."""
    if number is None or math.isinf(factor):
        return None if number is None else factor
    return round(number * factor)
