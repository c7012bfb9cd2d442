"""How often intervals hold the truth, by simulation: ``python -m tests.experiments.metrics.coverage [SIMULATIONS [NAME]]``.

Each world simulates one experiment of a benchmark at its default size and returns the estimate, the 95 % percentile interval of a
bootstrap that resamples all axes jointly ("before"), and the truth. Where the truth has no formula it is the mean over all
simulations. Queries are skewed, correlated with each other through the subsets, and differ in what they are; shares are multiples
of 1/k and near 0 or 1.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.metrics import timestep_bias
from experiments.metrics.bootstrap import CORRELATION_LIMITS, SHARE_LIMITS, UNLIMITED, Bootstrap, Statistic
from experiments.metrics.correlation import spearman
from experiments.metrics.estimate import Estimate, exact_share, quantiles
from experiments.metrics.lds import cross_validated, lds, retraining
from experiments.metrics.noise_ceiling import noise_ceiling, spearman_of
from experiments.metrics.weighted_ranking import WeightedRanking

RESAMPLES = 500


class Trial(NamedTuple):
    """One simulated experiment; ``truth`` None: the mean of all values."""

    estimate: Estimate
    before: tuple[float, float] | None
    truth: float | None


Random = np.random.Generator
World = Callable[[Random], Trial]


def bootstrap(random: Random, **strata: np.ndarray) -> Bootstrap:
    return Bootstrap(RESAMPLES, int(random.integers(1 << 30)), strata)


def percentile(values: np.ndarray, random: Random) -> tuple[float, float]:
    """The percentile interval of the mean of ``values``, all axes resampled at once."""
    weights = [random.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in values.shape]
    means = weights[0] @ values.reshape(len(values), -1)
    for weight in weights[1:]:
        means = np.einsum("bn,bnr->br", weight, means.reshape(*weight.shape, -1))
    return quantiles(means[:, 0])


def mean_of(
    draw: Callable[[Random], np.ndarray], truth: float, axes: Sequence[str] = ("queries",), limits: tuple[float, float] = UNLIMITED
) -> World:
    """The mean of numbers that ``draw`` makes, and their mean in the population."""

    def world(random: Random) -> Trial:
        values = draw(random)
        return Trial(bootstrap(random).mean(values, axes, limits=limits).estimate(), percentile(values, random), truth)

    return world


# LDS


class Tasks(NamedTuple):
    """Predictions ``[P, Q, M]`` that correlate with targets ``[Q, M]`` by ρ ``[P]``, different for each query."""

    predictions: np.ndarray
    targets: np.ndarray


def tasks(random: Random, queries: int, subsets: int, rho: Sequence[float], common: float = 0.3, spread: float = 8.0) -> Tasks:
    """``common`` is the share of the variance over subsets that all queries have in common; ρ is beta distributed over queries."""

    def noise() -> np.ndarray:
        return np.sqrt(common) * random.normal(size=subsets) + np.sqrt(1 - common) * random.normal(size=(queries, subsets))

    targets, level = noise(), random.random(queries)
    predictions = []
    for mean in rho:
        r = stats.beta.ppf(level, mean * spread, (1 - mean) * spread)[:, None]
        predictions.append(r * targets + np.sqrt(1 - r**2) * noise())
    return Tasks(np.stack(predictions), targets)


@functools.cache
def mean_lds(rho: float, subsets: int, spread: float = 8.0) -> float:
    """The mean over experiments of the LDS over ``subsets``."""
    r = stats.beta.ppf((np.arange(4000) + 0.5) / 4000, rho * spread, (1 - rho) * spread)
    return float(spearman_of(r, subsets).mean())


def jointly(statistic: Statistic, predictions: np.ndarray, targets: np.ndarray, random: Random) -> tuple[float, float]:
    """The percentile interval of the LDS of ``predictions [P, Q, M]``, of the first minus the second if there are two."""
    Q, M = targets.shape
    ranks = [stats.rankdata(side, axis=-1) - (M + 1) / 2 for side in (*predictions, targets)]
    w = (random.multinomial(M, np.full(M, 1 / M), RESAMPLES) / M).T
    v = (random.multinomial(Q, np.full(Q, 1 / Q), RESAMPLES) / Q).T
    means = [side @ w for side in ranks]
    scales = [np.sqrt(np.maximum((side**2) @ w - mean**2, 1e-9)) for side, mean in zip(ranks, means, strict=True)]
    of = [((ranks[p] * ranks[-1]) @ w - means[p] * means[-1]) / (scales[p] * scales[-1]) * v for p in range(len(predictions))]
    sums = [values.sum(0) for values in of]
    return quantiles(sums[0] - sums[1] if len(sums) == 2 else sums[0])


def lds_world(queries: int, subsets: int, rho: Sequence[float], common: float = 0.3) -> World:
    def world(random: Random) -> Trial:
        predictions, targets = tasks(random, queries, subsets, rho, common)
        values = lds(predictions, targets[None], bootstrap(random))
        statistic = values[0, 0] - values[1, 0] if len(rho) == 2 else values[0, 0]
        truth = mean_lds(rho[0], subsets) - (mean_lds(rho[1], subsets) if len(rho) == 2 else 0)
        return Trial(statistic.estimate(), jointly(statistic, predictions, targets, random), truth)

    return world


def replicates(random: Random, rho: float, count: int, common: float, queries: int = 64, subsets: int = 12) -> np.ndarray:
    """Measurements ``[count, Q, M]`` under training runs on the same subsets that correlate by ρ, beta distributed."""

    def noise() -> np.ndarray:
        return np.sqrt(common) * random.normal(size=subsets) + np.sqrt(1 - common) * random.normal(size=(queries, subsets))

    r = random.beta(8 * rho, 8 * (1 - rho), queries)[:, None]
    signal = np.sqrt(r) * noise()
    return np.stack([signal + np.sqrt(1 - r) * noise() for _ in range(count)])


def retraining_world(rho: float, common: float) -> World:
    def world(random: Random) -> Trial:
        runs = replicates(random, rho, 2, common)
        statistic = retraining(runs[:, None], bootstrap(random))[0, 0]
        return Trial(statistic.estimate(), jointly(statistic, runs[:1], runs[1], random), mean_lds(rho, 12))

    return world


def ceiling_world(reached: float, common: float) -> World:
    """A perfect predictor that reaches an LDS of about ``reached`` over 36 subsets, of which 12 are repeated."""
    rho = reached**2
    r = stats.beta.ppf((np.arange(4000) + 0.5) / 4000, 8 * rho, 8 * (1 - rho))
    truth = float(spearman_of(np.sqrt(r), 36).mean())

    def world(random: Random) -> Trial:
        return Trial(noise_ceiling(replicates(random, rho, 2, common), bootstrap(random), 1, 36), None, truth)

    return world


def held_out_world(random: Random) -> Trial:
    """Three dampings, equally good."""
    predictions, targets = tasks(random, 64, 36, [0.55] * 3)
    statistic, _ = cross_validated(predictions, targets, bootstrap(random))
    return Trial(statistic.estimate(), None, mean_lds(0.55, 18))


# Means over queries


def shares(p: float, k: int, queries: int, alike: float = 0.3) -> Callable[[Random], np.ndarray]:
    """Multiples of 1/k whose probability differs between queries, beta distributed with the intraclass correlation ``alike``."""
    a = 1 / alike - 1
    return lambda random: random.binomial(k, random.beta(p * a, (1 - p) * a, queries)) / k


def share_difference(first: float, second: float, k: int, queries: int, alike: float = 0.3) -> World:
    """Two estimators on the same queries: a query that is hard for one is hard for the other."""
    a = 1 / alike - 1

    def world(random: Random) -> Trial:
        level = random.random(queries)
        sides = [random.binomial(k, stats.beta.ppf(level, p * a, (1 - p) * a)) / k for p in (first, second)]
        one, other = (bootstrap(np.random.default_rng(0)).mean(side, limits=SHARE_LIMITS) for side in sides)
        return Trial((one - other).estimate(), percentile(sides[0] - sides[1], random), first - second)

    return world


def effects(queries: int, removals: int, seeds: int, skew: float) -> Callable[[Random], np.ndarray]:
    """Changes with the mean 1 after removals ``[Q, R, K]``: gamma over queries (shape 1/skew²), and effects of removal and seed."""

    def draw(random: Random) -> np.ndarray:
        of_query = random.gamma(1 / skew**2, skew**2, queries)[:, None, None]
        of_seed = 0.1 * random.normal(size=seeds)
        of_removal = 0.15 * random.normal(size=(removals, 1))
        return of_query + of_seed + of_removal + 0.4 * random.normal(size=(queries, removals, seeds))

    return draw


def against_random(random: Random) -> Trial:
    """An estimator's removals minus three random ones, with the same queries and seeds."""
    top = effects(5, 1, 2, 0.7)(random)
    other = 0.5 * top.mean(2, keepdims=True) + 0.3 * effects(5, 3, 2, 0.5)(random)
    first, second = (bootstrap(np.random.default_rng(0)).mean(side, ("queries", "removals", "seeds")) for side in (top, other))
    return Trial((first - second).estimate(), percentile((top - other.mean(1, keepdims=True))[:, 0], random), 0.2)


def near_one(queries: int, shape: float, distance: float) -> World:
    """Correlations whose distance to 1 is gamma distributed."""
    mean = 1 - distance * shape
    return mean_of(lambda random: 1 - random.gamma(shape, distance, queries), mean, limits=CORRELATION_LIMITS)


# Training examples


def outlier_world(metric: Callable[[WeightedRanking], np.ndarray], count: int, shift: float, outliers: int = 40) -> World:
    def world(random: Random) -> Trial:
        labels = np.arange(1040) < outliers
        scores = random.lognormal(shift * labels, 1.0)
        resamples = bootstrap(random, examples=labels)
        value = metric(WeightedRanking.of(scores, labels, np.ones((1, len(labels)))))[0]
        resampled = metric(WeightedRanking.of(scores, labels, resamples.counts("examples", len(labels))))
        statistic = resamples.statistic(value, {"examples": (resampled, len(labels))}, SHARE_LIMITS, count)
        return Trial(statistic.estimate(), quantiles(resampled), None)

    return world


def algorithm_1_world(which: str) -> World:
    def world(random: Random) -> Trial:
        distance = random.integers(0, 900, 50).astype(float)
        rank = 1 + stats.rankdata(0.9 * distance + 300 * random.gamma(1, 1, 50)) * 5
        resamples = bootstrap(random)
        result = timestep_bias.algorithm_1(distance, rank, resamples)
        drawn = random.integers(50, size=(RESAMPLES, 50))
        x, y = distance[drawn], rank[drawn]
        slopes = ((x - x.mean(1, keepdims=True)) * y).sum(1) / ((x - x.mean(1, keepdims=True)) ** 2).sum(1)
        return Trial(getattr(result, which), quantiles(spearman(x, y) if which == "rho" else slopes), None)

    return world


def explained_world(random: Random) -> Trial:
    timestep = random.integers(1, 1001, 256)
    norm = np.exp(np.sin(timestep / 150) + random.gamma(2, 0.5, 256))
    resamples = bootstrap(random)
    statistic = timestep_bias.explained(timestep, norm, 1000, 20, resamples)
    resampled = statistic.value + statistic.spread["examples"] * np.sqrt(255 / 256)
    return Trial(statistic.estimate(), quantiles(resampled), None)


def rise_world(random: Random) -> Trial:
    """The rise in rank of the 128 of 256 examples nearest 0, which differ from query to query, of 48 queries."""
    values = 20 + 6 * random.normal(size=(48, 1)) + 12 * (random.gamma(1, 1, 256) - 1) + 15 * random.normal(size=(48, 256))
    where = np.argsort(random.normal(size=(48, 256)) + random.normal(size=256), axis=1) < 128
    return Trial(bootstrap(random).mean(values, ("queries", "examples"), where=where).estimate(), None, 20.0)


def most_frequent_world(strength: float) -> World:
    """The example in the top 10 of the most queries, out of 256, some of which are generally influential."""
    probability = np.minimum(1, 10 / 256 * np.exp(strength * np.linspace(-1, 1, 256)))

    def world(random: Random) -> Trial:
        hits = random.random((48, 256)) < probability
        example = int(hits.sum(0).argmax())
        chosen = hits[:, example]
        return Trial(exact_share(chosen, among=256, over="queries"), percentile(chosen * 1.0, random), float(probability[example]))

    return world


def exact_world(p: float, n: int) -> World:
    return lambda random: Trial(exact_share(random.random(n) < p), None, p)


WORLDS: Mapping[str, World] = {
    "lds, 64 queries, 36 subsets": lds_world(64, 36, [0.55]),
    "lds, queries alike over subsets": lds_world(64, 36, [0.4], common=0.8),
    "lds, 24 queries, 36 subsets": lds_world(24, 36, [0.3]),
    "lds, 5 queries, 36 subsets": lds_world(5, 36, [0.55]),
    "lds, 64 queries, 12 subsets": lds_world(64, 12, [0.55]),
    "correlation over 10 groups, 32 queries": lds_world(32, 10, [0.55]),
    "correlation over 10 groups, difference": lds_world(32, 10, [0.55, 0.45]),
    "lds of random scores": lds_world(64, 36, [1e-3]),
    "lds, difference": lds_world(64, 36, [0.55, 0.45]),
    "lds, difference, 5 queries": lds_world(5, 36, [0.55, 0.45]),
    "lds, held-out damping": held_out_world,
    "exact retraining, 12 subsets": retraining_world(0.5, 0.3),
    "noise ceiling 50, 12 repeats": ceiling_world(0.5, 0.1),
    "noise ceiling 70, 12 repeats": ceiling_world(0.7, 0.3),
    "noise ceiling 85, 12 repeats": ceiling_world(0.85, 0.3),
    "precision@5, 48 queries, 0.97": mean_of(shares(0.97, 5, 48), 0.97, limits=SHARE_LIMITS),
    "precision@1, 48 queries, 0.97": mean_of(shares(0.97, 1, 48), 0.97, limits=SHARE_LIMITS),
    "precision@20, 48 queries, 0.1": mean_of(shares(0.1, 20, 48), 0.1, limits=SHARE_LIMITS),
    "precision@5, 5 queries, 0.8": mean_of(shares(0.8, 5, 5), 0.8, limits=SHARE_LIMITS),
    "precision@5, 5 queries, 0.96": mean_of(shares(0.96, 5, 5), 0.96, limits=SHARE_LIMITS),
    "precision@5, difference, 48 queries": share_difference(0.95, 0.9, 5, 48),
    "precision@5, difference, 5 queries": share_difference(0.8, 0.6, 5, 5),
    "precision@1, difference near 1": share_difference(0.98, 0.95, 1, 48),
    "auroc, 48 queries": mean_of(lambda random: random.beta(12, 2, 48), 12 / 14, limits=SHARE_LIMITS),
    "auroc, 5 queries": mean_of(lambda random: random.beta(12, 2, 5), 12 / 14, limits=SHARE_LIMITS),
    "counterfactual, 5 queries, 2 seeds": mean_of(effects(5, 1, 2, 0.7), 1.0, ("queries", "removals", "seeds")),
    "counterfactual, random removals": mean_of(effects(5, 3, 2, 0.5), 1.0, ("queries", "removals", "seeds")),
    "counterfactual, difference": against_random,
    "counterfactual, 1 seed": mean_of(effects(5, 1, 1, 0.5), 1.0, ("queries", "removals", "seeds")),
    "outlier share@10": outlier_world(lambda ranking: ranking.share(10), 10, 2.0),
    "outlier share@10, nearly all": outlier_world(lambda ranking: ranking.share(10), 10, 3.5),
    "outlier share@40": outlier_world(lambda ranking: ranking.share(40), 40, 2.0),
    "outlier auroc": outlier_world(WeightedRanking.auroc, 40, 1.5),
    "outlier average precision": outlier_world(WeightedRanking.average_precision, 40, 2.0),
    "algorithm 1, Spearman": algorithm_1_world("rho"),
    "algorithm 1, slope": algorithm_1_world("slope"),
    "norms explained by timestep": explained_world,
    "largest over median norm": mean_of(lambda random: random.lognormal(1, 0.8, 256), float(np.exp(1 + 0.32)), ("examples",)),
    "score with norm, 48 queries": mean_of(lambda random: 2 * random.beta(5, 2, 48) - 1, 3 / 7, limits=CORRELATION_LIMITS),
    "rise in rank": rise_world,
    "most frequent example, flat": most_frequent_world(0.0),
    "most frequent example, steep": most_frequent_world(2.5),
    "compression, 48 queries": near_one(48, 0.7, 1e-3),
    "sparse timesteps, 16 queries": near_one(16, 1.0, 1e-2),
    "split halves, 48 queries": near_one(48, 2.0, 0.1),
    "training loss, 8 steps": mean_of(lambda random: random.gamma(9, 0.01, 8), 0.09, ("steps",)),
    "share of images, 0.98 of 64": exact_world(0.98, 64),
}


class Coverage(NamedTuple):
    """Shares of intervals that hold the truth; the error of the mean value; the mean width."""

    now: float
    before: float | None
    bias: float
    width: float


def coverage(name: str, simulations: int) -> Coverage:
    """Simulate a world; the random numbers are a function of its name."""
    random = np.random.default_rng(list(name.encode()))
    trials = [WORLDS[name](random) for _ in range(simulations)]
    mean = float(np.mean([trial.estimate.value for trial in trials]))
    truths = [mean if trial.truth is None else trial.truth for trial in trials]
    now = [trial.estimate.low <= truth <= trial.estimate.high for trial, truth in zip(trials, truths, strict=True)]
    before = [
        trial.before[0] <= truth <= trial.before[1] for trial, truth in zip(trials, truths, strict=True) if trial.before is not None
    ]
    width = float(np.mean([trial.estimate.high - trial.estimate.low for trial in trials]))
    return Coverage(float(np.mean(now)), float(np.mean(before)) if before else None, mean - float(np.mean(truths)), width)


if __name__ == "__main__":
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    part = sys.argv[2] if len(sys.argv) > 2 else ""
    print(f"{number} simulations each, {RESAMPLES} resamples\n")
    print("| 95 % interval of | covers, % | percentiles, % | mean width | error of the mean value |\n|---|---|---|---|---|")
    for world_name in WORLDS:
        if part in world_name:
            result = coverage(world_name, number)
            old = "" if result.before is None else f"{100 * result.before:.1f}"
            print(f"| {world_name} | {100 * result.now:.1f} | {old} | {result.width:.2g} | {result.bias:+.2g} |", flush=True)
