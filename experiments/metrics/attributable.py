"""Does removing a query's top group do more than removing random groups of its size? Pure functions.

Q queries, R random groups of the same size, K training seeds, F group sizes in ascending order. Measurements are of each query
under models trained without a group, with the same seeds for all groups.

If the top group does no more than a random one, the mean over seeds x of its measurement and those x_r of the random groups are
exchangeable, whether they differ by the noise of training or by what the groups are. For normal numbers

    t = (x − mean_r x_r) / (s √(1 + 1/R)),   s² = Σ_r (x_r − mean_r x_r)² / (R − 1)

then has Student's t distribution with R − 1 degrees of freedom. The test is one-sided: the top group should make the query worse.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from experiments.metrics.estimate import Estimate, t_interval


@dataclass(frozen=True, eq=False)
class GroupTest:
    """The ``effect [..]`` of groups beyond random ones, its standard ``error [..]`` and the error's degrees of freedom."""

    effect: np.ndarray
    error: np.ndarray
    degrees: int

    @property
    def t(self) -> np.ndarray:
        """The effect over its error; 0 if both are 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.effect == 0, 0.0, self.effect / self.error)

    @property
    def p(self) -> np.ndarray:
        """The probability that a random group has at least this t."""
        return stats.t.sf(self.t, self.degrees)

    def threshold(self, significance: float) -> float:
        """The smallest t with p of at most ``significance``."""
        return float(stats.t.isf(significance, self.degrees))

    def estimate(self, place: int, significance: float) -> Estimate:
        """The effect at ``place`` with an interval. Its lower end is at least 0 exactly if p is at most ``significance``."""
        level = 1 - 2 * significance
        ends = t_interval(float(self.effect[place]), float(self.error[place]), self.degrees, level)
        return Estimate(float(self.effect[place]), *ends, level, "confidence, over random groups")


def against_random(own: np.ndarray, random: np.ndarray) -> GroupTest:
    """Test measurements ``own [.., K]`` without a query's group against those without random groups, ``random [.., R, K]``."""
    x, of_random = own.mean(-1), random.mean(-1)
    R = of_random.shape[-1]
    return GroupTest(x - of_random.mean(-1), of_random.std(-1, ddof=1) * np.sqrt(1 + 1 / R), R - 1)


def left_out(random: np.ndarray) -> GroupTest:
    """Test each random group ``[.., R, K]`` (R ≥ 3) against the others, ``[.., R]``. Those that pass are false positives."""
    R = random.shape[-2]
    tests = [against_random(random[..., r, :], np.delete(random, r, axis=-2)) for r in range(R)]
    return GroupTest(np.stack([t.effect for t in tests], -1), np.stack([t.error for t in tests], -1), R - 2)


def retraining_error(random: np.ndarray) -> np.ndarray:
    """The part of the error of ``against_random`` that more training seeds would reduce, ``[.., R, K] -> [..]``.

    It is from the interaction of groups and seeds: what differs between seeds for all groups alike cancels in the effect. Needs two
    seeds.
    """
    R, K = random.shape[-2:]
    of_groups, of_seeds = random.mean(-1, keepdims=True), random.mean(-2, keepdims=True)
    rest = random - of_groups - of_seeds + random.mean((-2, -1), keepdims=True)
    variance = np.square(rest).sum((-2, -1)) / ((R - 1) * (K - 1))
    return np.sqrt(variance / K * (1 + 1 / R))


def significant(p: np.ndarray, significance: float) -> np.ndarray:
    """Which of F sizes do more than random groups: ``p [F, ..]`` to bool ``[F, ..]``, by the method of Holm (1979).

    The smallest p of a query is compared with ``significance`` / F, the next one with ``significance`` / (F - 1), and so on, until
    one is larger. Where no size does anything, the probability of any finding is at most ``significance``. No size has to wait for
    another: random groups that are large often contain a decisive image themselves, and then show nothing.
    """
    F = len(p)
    order = np.argsort(p, axis=0, kind="stable")
    steps = significance / np.arange(F, 0, -1).reshape(F, *[1] * (p.ndim - 1))
    passed = np.logical_and.accumulate(np.take_along_axis(p, order, 0) <= steps, axis=0)
    result = np.empty_like(passed)
    np.put_along_axis(result, order, passed, 0)
    return result


def smallest(found: np.ndarray) -> np.ndarray:
    """The position of the smallest size that is found: bool ``[F, ..]`` to ``[..]``, F where there is none."""
    return np.where(found.any(0), found.argmax(0), len(found))
