"""The distinct share of proponents (ReTrac §6.2, table 1): pure functions.

Q queries, N training examples, k top places, S sets of n queries each.
"""

from dataclasses import dataclass

import numpy as np

from experiments.metrics.estimate import Estimate, quantiles


def distinct_share(top: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """|∪ top-k over the queries of a set| / (n k) for each set: ``top [Q, k], sets [S, n] -> [S]`` (ReTrac §6.2, table 1).

    It is 1/n if all queries of a set have the same proponents, and 1 if no two queries share one.
    """
    positions = np.sort(top[sets].reshape(len(sets), -1), axis=1)
    return (1 + (positions[:, 1:] != positions[:, :-1]).sum(1)) / positions.shape[1]


def random_distinct_share(examples: int, n: int, k: int) -> float:
    """The mean distinct share of random scores, N (1 - (1 - k/N)ⁿ) / (n k) (docs/methods.md, Targeted attribution)."""
    return examples * (1 - (1 - k / examples) ** n) / (n * k)


def maximum_distinct_share(examples: int, n: int, k: int) -> float:
    """The largest possible distinct share, min(1, N/(n k)) (docs/methods.md, Targeted attribution)."""
    return min(1.0, examples / (n * k))


def random_sets(pool: int, n: int, sets: int, seed: int) -> np.ndarray:
    """Draw ``sets`` random sets of n *distinct* queries out of ``pool``: int64 ``[S, n]``, rows ascending.

    If n equals pool, there is one set. This is not a bootstrap: a query drawn twice shares all its proponents with itself and would
    lower the distinct share.

    Raises:
        ValueError: n is outside 1..pool, or ``sets`` is less than 1.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"n={n} distinct queries, but the pool has {pool}: set n to 1..{pool} or enlarge the pool")
    if sets < 1:
        raise ValueError(f"sets={sets}: must be at least 1")
    if n == pool:
        return np.arange(n)[None]
    order = np.random.default_rng(seed).random((sets, pool)).argsort(1)
    return np.sort(order[:, :n], axis=1)


@dataclass(frozen=True, eq=False)
class OverSets:
    """The mean of ``shares [S]`` over sets of queries, with the range of the sets themselves.

    The range is where 95 % of the sets lie: what one experiment with n queries would show. It is not a confidence interval of the
    mean, which would shrink with the number of sets although sets of one pool are not independent. Differences on the same sets are
    paired, so variation shared by both sides cancels.
    """

    shares: np.ndarray

    def __sub__(self, other: "OverSets") -> "OverSets":
        return OverSets(self.shares - other.shares)

    def estimate(self) -> Estimate:
        """The mean and the range; the latter is unknown for a single set."""
        kind = "range of sets of queries, no confidence interval" if len(self.shares) > 1 else None
        return Estimate(float(self.shares.mean()), *quantiles(self.shares), kind=kind)
