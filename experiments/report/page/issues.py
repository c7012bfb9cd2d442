"""What a reader should know before trusting scores: duplicates, generally influential images, estimators that disagree."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from attribution.images import Images
from experiments.metrics.duplicates import digests
from experiments.metrics.ranking import generally_influential, mean_ranks
from experiments.report.page.explorer import Ranked

GENERAL_TOP, GENERAL_SHARE, CHANCE = 10, 0.1, 0.01
"""An image among the top GENERAL_TOP of more than GENERAL_SHARE of the queries is general, unless so many would have any such
image with a probability above CHANCE if every query drew its top at random."""
AGREEMENT = 0.2
"""Estimators with a mean rank correlation below it disagree."""
_RANKS = 2_000_000


@dataclass(frozen=True)
class General:
    """Training images that are among the top proponents of many queries, with the number of these queries, most first."""

    label: str
    positions: Sequence[int]
    counts: Sequence[int]
    top: int
    queries: int


@dataclass(frozen=True, eq=False)
class Agreement:
    """The rank correlation ``[E, E]`` of the scores of E estimators over training images, averaged over ``queries`` queries."""

    labels: Sequence[str]
    correlation: np.ndarray
    queries: int

    @property
    def alone(self) -> list[str]:
        """Estimators that disagree with every other one, such as random scores; none if there are only two."""
        if len(self.labels) < 3:
            return []
        others = np.where(np.eye(len(self.labels), dtype=bool), -1.0, self.correlation)
        return [label for label, row in zip(self.labels, others, strict=True) if not (row >= AGREEMENT).any()]

    @property
    def disagreeing(self) -> list[tuple[str, str, float]]:
        """Other pairs of estimators that disagree, the most different first."""
        pairs = [
            (a, b, float(self.correlation[i, j]))
            for (i, a), (j, b) in itertools.combinations(enumerate(self.labels), 2)
            if self.correlation[i, j] < AGREEMENT and not {a, b} & set(self.alone)
        ]
        return sorted(pairs, key=lambda pair: pair[2])


def equal_to_training(queries: Images, hashes: Sequence[bytes]) -> list[tuple[int, int]]:
    """Rows of queries that equal a training image, with the position of the first such image, by the ``hashes`` of these."""
    positions = {digest: position for position, digest in reversed(list(enumerate(hashes)))}
    return [(row, positions[digest]) for row, digest in enumerate(digests(queries)) if digest in positions]


def general(of_kind: Ranked) -> list[General]:
    """The generally influential images of every estimator that has any."""
    found = []
    for ranking in of_kind.rankings:
        top = ranking.proponents[:, :GENERAL_TOP]
        counts, least = np.bincount(top.ravel()), _beyond_chance(len(top), top.shape[1], len(of_kind.attributions.train))
        positions = [p for p in generally_influential(top, GENERAL_SHARE).tolist() if counts[p] >= least]
        positions.sort(key=lambda position: (-counts[position], position))
        if positions:
            numbers = [int(counts[position]) for position in positions]
            found.append(General(ranking.label, positions, numbers, top.shape[1], len(top)))
    return found


def _beyond_chance(queries: int, k: int, N: int) -> int:
    """The least number of queries that would have any image among their random top ``k`` with a probability of at most CHANCE."""
    probabilities = N * stats.binom.sf(np.arange(-1, queries), queries, k / N)  # of at least 0, 1, ... queries
    return int(np.count_nonzero(probabilities > CHANCE))


def agreement(of_kind: Ranked) -> Agreement | None:
    """The rank correlations of all estimators with finite scores; None if there are fewer than two of them, or of images."""
    labels = [ranking.label for ranking in of_kind.rankings]
    scores, N = of_kind.attributions.scores, len(of_kind.attributions.train)
    if len(labels) < 2 or N < 2:
        return None
    count = min(of_kind.count, max(1, _RANKS // (N * len(labels))))
    rows = np.unique(np.linspace(0, of_kind.count - 1, count).round().astype(int))
    ranks = np.stack([mean_ranks(np.asarray(scores[label])[rows]) for label in labels]) - (N - 1) / 2
    norms = np.sqrt((ranks**2).sum(-1, keepdims=True))
    ranks = np.divide(ranks, norms, out=np.full_like(ranks, np.nan), where=norms > 0)
    of_queries = np.stack([(ranks * other).sum(-1) for other in ranks])  # NaN where all scores of a query are equal
    known = np.isfinite(of_queries)
    total = np.where(known, of_queries, 0.0).sum(-1)
    correlation = np.divide(total, known.sum(-1), out=np.full_like(total, np.nan), where=known.any(-1))
    return Agreement(labels, correlation, len(rows))
