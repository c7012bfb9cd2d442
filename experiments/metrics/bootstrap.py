"""Standard errors of every metric by the bootstrap (Efron 1979): the metric in resamples of queries, subsets, seeds, examples, ...

An *axis* is something random that an experiment repeats: its queries, the subsets or seeds that models were retrained with. A
resample draws as many indices of the axis, with replacement, as the experiment has.

Axes are crossed random factors: each is resampled on its own, the variances add up, and Student's t accounts for how few indices
they come from. Percentiles of a bootstrap over few indices are too narrow: over five they cover 56 to 82 % instead of 95 %.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from experiments.metrics.estimate import LEVEL, Estimate, bounded_interval, constant_interval, t_interval

RESAMPLES = 5000
"""With 5000 resamples a standard error is reproducible to 1 %."""
_BLOCK = 1 << 22
"""Numbers held at once for a block of resamples."""
UNLIMITED = (-math.inf, math.inf)
SHARE_LIMITS = (0.0, 1.0)
CORRELATION_LIMITS = (-1.0, 1.0)
_ROUNDING = 1e-12
"""A standard error up to this, relative to the value, is 0 except for rounding errors."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """``value [..]`` and, by axis that was repeated, its deviations in resamples of this axis, ``spread[axis] [B, ..]``.

    Deviations are scaled so that their variance estimates the one that the axis contributes, with ``degrees[axis]`` degrees of
    freedom. ``limits`` bound the value. ``count`` is the number of values that a share is the mean of: they may all be equal by
    chance. It is None for other numbers.

    Statistics of the same resamples are paired: ``a - b`` has the spread of the difference.
    """

    value: np.ndarray
    spread: Mapping[str, np.ndarray] = field(default_factory=dict)
    degrees: Mapping[str, int] = field(default_factory=dict)
    limits: tuple[float, float] = UNLIMITED
    count: int | None = None

    @classmethod
    def mean(cls, statistics: Sequence["Statistic"]) -> "Statistic":
        """The mean of paired statistics."""
        total = statistics[0]
        for statistic in statistics[1:]:
            total = total + statistic
        return total * (1 / len(statistics))

    def also_over(self, other: "Statistic") -> "Statistic":
        """This value with the deviations of ``other``, which are over further axes, besides its own."""
        spread, degrees = {**self.spread, **other.spread}, {**self.degrees, **other.degrees}
        return Statistic(self.value, spread, degrees, self.limits, self.count)

    def __add__(self, other: "Statistic") -> "Statistic":
        spread = {axis: _sum(self.spread.get(axis), other.spread.get(axis)) for axis in {**self.spread, **other.spread}}
        degrees = {axis: min(s.degrees[axis] for s in (self, other) if axis in s.degrees) for axis in spread}
        limits = self.limits[0] + other.limits[0], self.limits[1] + other.limits[1]
        counts = [s.count for s in (self, other) if s.count is not None]
        return Statistic(self.value + other.value, spread, degrees, limits, min(counts) if len(counts) == 2 else None)

    def __sub__(self, other: "Statistic") -> "Statistic":
        return self + other * -1

    def __mul__(self, factor: ArrayLike) -> "Statistic":
        """Multiply by constants. An array of them leaves no common limits."""
        factor = np.asarray(factor, np.float64)
        low, high = sorted(float(factor) * end for end in self.limits) if factor.ndim == 0 and factor != 0 else UNLIMITED
        spread = {axis: deviations * factor for axis, deviations in self.spread.items()}
        return Statistic(self.value * factor, spread, self.degrees, (low, high), self.count)

    def __getitem__(self, index: int | slice | tuple[int | slice, ...]) -> "Statistic":
        """Index the value's axes."""
        index = index if isinstance(index, tuple) else (index,)
        spread = {axis: deviations[(slice(None), *index)] for axis, deviations in self.spread.items()}
        return Statistic(np.asarray(self.value[index]), spread, self.degrees, self.limits, self.count)

    def sum(self) -> "Statistic":
        """The sum over all the value's axes."""
        axes = tuple(range(1, 1 + self.value.ndim))
        spread = {axis: deviations.sum(axes) for axis, deviations in self.spread.items()}
        low, high = (end * self.value.size for end in self.limits)
        return Statistic(np.asarray(self.value.sum()), spread, self.degrees, (low, high), self.count)

    def error(self) -> tuple[float, float]:
        """The standard error of the value, a single number, and its degrees of freedom (Satterthwaite 1946).

        Resamples in which the statistic is NaN are left out. (NaN, NaN) if nothing was repeated.
        """
        variances = {axis: known.var() for axis, d in self.spread.items() if (known := d[~np.isnan(d)]).size > 1}
        if not variances:
            return math.nan, math.nan
        total = sum(variances.values())
        if np.sqrt(total) <= _ROUNDING * max(1.0, abs(float(self.value))):
            return 0.0, float(max(self.degrees[axis] for axis in variances))
        return float(np.sqrt(total)), float(total**2 / sum(v**2 / self.degrees[axis] for axis, v in variances.items()))

    def estimate(self, level: float = LEVEL) -> Estimate:
        """The value, a single number, with its interval: Student's t, or within the limits if there are any."""
        value, (error, degrees) = float(self.value), self.error()
        if math.isnan(error) or math.isnan(value):
            return Estimate(value, level=level)
        if not math.isfinite(self.limits[1] - self.limits[0]):
            ends = t_interval(value, error, degrees, level)
        elif self.count is not None and (error == 0 or value in self.limits):
            ends = constant_interval(value, self.count, self.limits, level)
        else:
            ends = bounded_interval(value, error, degrees, self.limits, level)
        return Estimate(value, *ends, level, f"confidence, over {listed(list(self.spread))}")


@dataclass(frozen=True)
class Bootstrap:
    """Draws ``count`` resamples of any axes.

    What is drawn from an axis depends on nothing but ``seed``, the axis's name, its length n and its strata. Everything that is
    measured along the same axis is therefore paired, whatever the estimator, the metric or the benchmark. ``strata``, by axis, are
    labels ``[n]``: every resample has as many indices of each label as the experiment.
    """

    count: int = RESAMPLES
    seed: int = 0
    strata: Mapping[str, np.ndarray] = field(default_factory=dict)
    _drawn: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def counts(self, axis: str, n: int) -> np.ndarray:
        """How often each index of an axis is drawn: float64 ``[B, n]``, held for the next call. For large n use ``blocks``."""
        if (axis, n) not in self._drawn:
            self._drawn[axis, n] = np.concatenate(list(self.blocks(axis, n)))
        return self._drawn[axis, n]

    def blocks(self, axis: str, n: int) -> Iterator[np.ndarray]:
        """``counts`` in blocks of resamples ``[b, n]`` of bounded size."""
        strata = self._strata(axis, n)
        generators = [np.random.default_rng([self.seed, n, part, *axis.encode()]) for part in range(len(strata))]
        size = max(1, _BLOCK // n)
        for start in range(0, self.count, size):
            block = np.empty((min(size, self.count - start), n))
            for generator, members in zip(generators, strata, strict=True):
                block[:, members] = _counts(generator, len(members), len(block))
            yield block

    def statistic(
        self,
        value: ArrayLike,
        resampled: Mapping[str, tuple[ArrayLike, int]],
        limits: tuple[float, float] = UNLIMITED,
        count: int | None = None,
    ) -> Statistic:
        """``value [..]`` with its values ``[B, ..]`` in resamples of each axis, given with the axis's length n.

        The variance over resamples of a mean is (n - 1)/n of that of the mean itself, which the deviations make up for. An axis
        has the degrees of freedom of its smallest stratum. An axis of length 1 was not repeated.
        """
        value = np.asarray(value, np.float64)
        spread, degrees = {}, {}
        for axis, (values, n) in resampled.items():
            smallest = n if axis not in self.strata else min(map(len, self._strata(axis, n)))
            if smallest > 1:
                spread[axis] = (np.asarray(values, np.float64) - value) * np.sqrt(smallest / (smallest - 1))
                degrees[axis] = smallest - 1
        return Statistic(value, spread, degrees, limits, count)

    def mean(
        self,
        values: ArrayLike,
        axes: Sequence[str] = ("queries",),
        where: np.ndarray | None = None,
        limits: tuple[float, float] = UNLIMITED,
    ) -> Statistic:
        """The mean of ``values [.., n1, n2, ..]`` where they are known (not NaN) and ``where`` is true.

        ``axes`` name the last dimensions, each of which is resampled; those before are averaged without resampling. A dimension
        with fewer than two indices of known values was not repeated and has no spread.
        """
        values = np.asarray(values, np.float64)
        known = ~np.isnan(values) if where is None else where & ~np.isnan(values)
        leading = tuple(range(values.ndim - len(axes)))
        total, count = np.where(known, values, 0).sum(leading), known.sum(leading).astype(np.float64)
        value = np.asarray(total.sum() / count.sum() if count.any() else np.nan)
        spread, degrees = {}, {}
        for place, (axis, n) in enumerate(zip(axes, total.shape, strict=True)):
            others = tuple(other for other in range(total.ndim) if other != place)
            totals, counts = total.sum(others), count.sum(others)
            repeated = np.count_nonzero(counts)
            if repeated < 2:
                continue
            drawn = self.counts(axis, n)
            weights = drawn @ counts
            means = np.divide(drawn @ totals, weights, out=np.full(self.count, np.nan), where=weights > 0)
            spread[axis] = (means - value) * np.sqrt(repeated / (repeated - 1))
            degrees[axis] = repeated - 1
        return Statistic(value, spread, degrees, limits, int(np.count_nonzero(count)) if limits == SHARE_LIMITS else None)

    def median(self, values: ArrayLike, axis: str = "queries") -> Statistic:
        """The median of ``values [n]``, whose axis is resampled."""
        values = np.asarray(values, np.float64)
        n, order = len(values), np.argsort(values)
        drawn = np.cumsum(self.counts(axis, n)[:, order], 1)  # [B, n]: how many of a resample are at most each value
        middle = [(drawn > place).argmax(1) for place in ((n - 1) // 2, n // 2)]
        medians = np.mean([values[order][positions] for positions in middle], 0)
        return self.statistic(np.median(values), {axis: (medians, n)})

    def _strata(self, axis: str, n: int) -> list[np.ndarray]:
        labels = self.strata.get(axis)
        strata = [np.arange(n)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if sum(map(len, strata)) != n:
            raise ValueError(f"the strata of {axis} label {sum(map(len, strata))} indices, but the values have {n}")
        return strata


def listed(names: Sequence[str]) -> str:
    """Join names as "queries, subsets and seeds"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _sum(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray:
    present = [side for side in (first, second) if side is not None]
    return present[0] + present[1] if len(present) == 2 else present[0]


def _counts(generator: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    drawn = generator.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n)
