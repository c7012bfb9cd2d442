"""What ``benchmark=timestep_bias`` reports: fields of rows, from gradient norms and scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.estimators.scores import Scores
from attribution.gradients.norms import Norms
from experiments.metrics import common as metrics
from experiments.metrics import timestep_bias as bias_metrics
from experiments.metrics.timestep_bias import Correlation, PairResamples

STRETCHES = 20
"""Of timesteps, whose mean norms are compared."""
PERCENT = 100
T_MAX, RANDOM = "t_max", "random"
"""What replaces the timestep of training."""
RISE = "rank_rise_%"

Row = dict[str, Any]


@dataclass(frozen=True)
class Bias:
    """Norms at the checkpoints ``steps`` [S], with learning rates ``rates``, of a model with timesteps 1..T.

    ``trained``: of all N training examples at their recorded draws; ``curves``: of P of them, at ``columns [P]``, over timesteps.
    """

    steps: Sequence[int]
    rates: Sequence[float]
    trained: Norms
    curves: Norms
    columns: np.ndarray
    T: int
    resamples: int
    seed: int

    @property
    def t_max(self) -> np.ndarray:
        """The timestep with the largest norm, ``[S, P]``; of equal ones the first."""
        return np.take_along_axis(self.curves.timestep, self.curves.norms.argmax(2)[..., None], 2)[..., 0]

    @property
    def t_train(self) -> np.ndarray:
        """The recorded timesteps, ``[S, N]``."""
        return self.trained.timestep[:, :, 0]

    @property
    def norms(self) -> np.ndarray:
        """The norms at these, ``[S, N]``."""
        return self.trained.norms[:, :, 0]

    def of_norms(self) -> Iterator[Row]:
        """How norms go with the timestep, at each checkpoint."""
        for s, step in enumerate(self.steps):
            at = {"swept": {"checkpoint": step}, "n": len(self.columns)}
            timestep, norm = self.t_train[s, self.columns], self.norms[s, self.columns]
            yield {**at, **explained(timestep, norm, self.T, self.resamples, self.seed)}
            curves = self.curves.norms[s]
            peak = curves.max(1) / np.maximum(np.median(curves, 1), np.finfo(np.float64).tiny)
            yield {**at, "metric": "largest_over_median_norm", **self._mean(peak)}
            yield {**at, "metric": "mean_t_max", **self._mean(self.t_max[s]), "random": (self.T + 1) / 2}

    def algorithm_1(self, chosen: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, Correlation]]:
        """Distances, ranks and their correlation at each checkpoint, for the ``chosen`` of the P examples."""
        found = []
        for s in range(len(self.steps)):
            distance = np.abs(self.t_max[s, chosen] - self.t_train[s, self.columns[chosen]])
            rank = bias_metrics.ranks(self.norms[s])[self.columns[chosen]]
            found.append((distance, rank, bias_metrics.algorithm_1(distance, rank, self.resamples, self.seed)))
        return found

    def of_correlations(self, found: Sequence[tuple[np.ndarray, np.ndarray, Correlation]]) -> Iterator[Row]:
        """Algorithm 1, at each checkpoint."""
        for step, (distance, _, result) in zip(self.steps, found, strict=True):
            at = {"swept": {"checkpoint": step}, "n": len(distance), "p": result.p}
            yield {**at, "metric": "algorithm_1_spearman", **result.rho._asdict(), "random": 0.0, "maximum": 1.0}
            yield {**at, "metric": "algorithm_1_slope", **result.slope._asdict(), "random": 0.0}

    def of_scores(self, scores: Mapping[str, Scores]) -> Iterator[Row]:
        """Spearman between |τ[q, z]| and Σ_k η_k ‖G_k(z)‖, which bounds TracIn's up to a factor of the query (ReTrac §5.2)."""
        bound = np.tensordot(self.rates, self.norms, 1)
        level: Row = {"metric": "score_with_norm_spearman"}
        found = {n: metrics.spearman(np.abs(of.values), np.broadcast_to(bound, of.values.shape)) for n, of in scores.items()}
        for name, of_queries in found.items():
            yield {**level, "estimator": name, **self._mean(of_queries), "random": 0.0, "maximum": 1.0}
        first, *others = found
        for name in others:
            yield {**level, "estimator": f"{first} − {name}", **self._mean(found[first] - found[name])}

    def of_shifts(self, scores: Mapping[str, Scores], new: Mapping[tuple[str, str], Scores], most: int) -> Iterator[Row]:
        """By how many ranks of |τ| the examples with scores nearest 0 rise, each alone, in % of the training set.

        ``new``: the scores ``[Q, P]`` by estimator and by what replaced the timestep of training; ``most``: how many examples.
        """
        N, count = self.norms.shape[1], min(most, len(self.columns) // 2)
        rises: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}
        resamples = PairResamples.draw(len(next(iter(scores.values())).values), len(self.columns), self.resamples, self.seed)
        for name, of in scores.items():
            own = of.values[:, self.columns]
            chosen = bias_metrics.neutral(own, count)
            before = bias_metrics.rank_among(of.values, self.columns, own)
            # Of a new rank that is any of 1..N with equal chance, and of rank 1.
            by_chance, highest = (PERCENT * float((before[chosen] - rank).mean()) / N for rank in ((N + 1) / 2, 1))
            for timing in (T_MAX, RANDOM):
                after = bias_metrics.rank_among(of.values, self.columns, new[name, timing].values)
                rises[name, timing] = PERCENT * (before - after) / N, chosen
                mean = bias_metrics.mean_where(*rises[name, timing], resamples)
                row = {"estimator": name, "metric": RISE, **mean._asdict(), "positions": mean.value * N / PERCENT, "n": count}
                yield {**row, "random": by_chance, "maximum": highest, "swept": {"timestep": timing}}
            difference = bias_metrics.difference_where(*rises[name, T_MAX], *rises[name, RANDOM], resamples)
            yield {"estimator": name, "metric": RISE, **difference._asdict(), "swept": {"timestep": f"{T_MAX} − {RANDOM}"}}
        first, *others = scores
        for name in others:
            for timing in (T_MAX, RANDOM):
                difference = bias_metrics.difference_where(*rises[first, timing], *rises[name, timing], resamples)
                row = {"estimator": f"{first} − {name}", "metric": RISE, **difference._asdict()}
                yield {**row, "swept": {"timestep": timing}}

    def of_influential(self, name: str, scores: Scores, k: int) -> tuple[Row, int]:
        """The share of queries that have one example, the same, among their top k; and the position of that example."""
        top = metrics.top_k(scores.values, k)
        example = bias_metrics.most_frequent(top)
        share = self._mean((top == example).any(1).astype(np.float64))
        level = bias_metrics.random_most_frequent(len(top), self.norms.shape[1], k)
        ranks = [int(bias_metrics.ranks(norms)[example]) for norms in self.norms]
        where = {"example": int(scores.train_index[example]), "t_train": self.t_train[:, example], "norm_ranks": ranks}
        row = {"estimator": name, "metric": f"most_frequent_in_top_{k}", **share, "random": level, "maximum": 1.0}
        return {**row, **where, "checkpoints": list(self.steps)}, example

    def _mean(self, values: np.ndarray) -> dict[str, float]:
        return metrics.bootstrap_mean(values, self.resamples, self.seed)._asdict()


def explained(timestep: np.ndarray, norm: np.ndarray, T: int, resamples: int, seed: int) -> Row:
    """What timesteps ``[n]`` explain of the norms there."""
    stretches = min(STRETCHES, T)
    share = bias_metrics.resampled_explained(timestep, norm, T, stretches, resamples, seed)
    by_chance = min(1.0, (stretches - 1) / max(1, len(norm) - 1))
    return {"metric": "norm_explained_by_timestep", **share._asdict(), "random": by_chance, "maximum": 1.0}
