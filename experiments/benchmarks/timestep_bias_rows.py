"""The rows of ``benchmark=timestep_bias`` and ``gradient_norms``, from gradient norms and scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attribution.estimators.scores import Scores
from attribution.gradients.norms import Norms
from attribution.images import Images
from experiments.benchmarks.compare import compare
from experiments.metrics import timestep_bias as metrics
from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap, Statistic
from experiments.metrics.correlation import spearman
from experiments.metrics.estimate import PERCENT, exact_share
from experiments.metrics.ranking import ranks, top_k
from experiments.metrics.timestep_bias import Correlation
from experiments.report.row import Levels, Row, Subject

BENCHMARK = "timestep_bias"
NORMS = Subject("none")
"""The subject of rows about gradient norms, which do not depend on an estimator."""
STRETCHES = 20
"""The number of equal stretches of timesteps between which mean norms are compared."""
T_MAX, RANDOM = "t_max", "random"
"""What replaces the timestep of training."""
RISE = "rank_rise_%"
EXPLAINED, DIRECTION = "norm_explained_by_timestep", "norm_with_timestep_spearman"
"""The metrics of the trend: how much of the norms' variance the timestep explains, and whether norms grow with it."""


@dataclass(frozen=True, eq=False)
class Bias:
    """Norms at the checkpoints ``steps`` [S], with learning rates ``rates``, of a model with timesteps 1..T.

    ``trained``: the norms of all N training examples at their recorded draws. ``curves``: the norms of the P examples at positions
    ``columns``, over all compared timesteps.
    """

    steps: Sequence[int]
    rates: Sequence[float]
    trained: Norms
    curves: Norms
    columns: np.ndarray
    T: int
    bootstrap: Bootstrap = field(default_factory=Bootstrap)
    benchmark: str = BENCHMARK

    @property
    def t_max(self) -> np.ndarray:
        """The timestep with the largest norm, ``[S, P]``; the first of equal ones."""
        return np.take_along_axis(self.curves.timestep, self.curves.norms.argmax(2)[..., None], 2)[..., 0]

    @property
    def t_train(self) -> np.ndarray:
        """The recorded timesteps, ``[S, N]``."""
        return self.trained.timestep[:, :, 0]

    @property
    def norms(self) -> np.ndarray:
        """The norms at the recorded timesteps, ``[S, N]``."""
        return self.trained.norms[:, :, 0]

    def norm_rows(self) -> Iterator[Row]:
        """How norms depend on the timestep, at each checkpoint."""
        for s, step in enumerate(self.steps):
            timestep, norm, curves = self.t_train[s, self.columns], self.norms[s, self.columns], self.curves.norms[s]
            yield explained_row(timestep, norm, self.T, step, self.bootstrap, self.benchmark)
            peaks = curves.max(1) / np.maximum(np.median(curves, 1), np.finfo(np.float64).tiny)
            by_metric = {
                DIRECTION: (self._direction(s), Levels(random=0.0, maximum=1.0)),
                "largest_over_median_norm": (self.bootstrap.mean(peaks, ("examples",)), Levels()),
                "mean_t_max": (self.bootstrap.mean(self.t_max[s], ("examples",)), Levels(random=(self.T + 1) / 2)),
            }
            for metric, (value, levels) in by_metric.items():
                yield Row(
                    benchmark=self.benchmark,
                    metric=metric,
                    subject=NORMS,
                    estimate=value.estimate(),
                    levels=levels,
                    swept={"checkpoint": step},
                    about={"n": len(self.columns)},
                )

    def convergence_rows(self) -> Iterator[Row]:
        """How the trend changes from the first checkpoint to the last one (ReTrac, app. A.1); the same examples at both."""
        for metric, trend in {EXPLAINED: self._explained, DIRECTION: self._direction}.items():
            first, last = trend(0), trend(len(self.steps) - 1)
            yield Row(
                benchmark=self.benchmark,
                metric=metric,
                subject=Subject(NORMS.name, {"checkpoint": self.steps[-1]}),
                minus=Subject(NORMS.name, {"checkpoint": self.steps[0]}),
                estimate=(last - first).estimate(),
                about={"n": len(self.columns)},
            )

    @property
    def profiles(self) -> np.ndarray:
        """The median norm of the P examples at each compared timestep, divided by its geometric mean over timesteps: ``[S, K]``."""
        medians = np.maximum(np.median(self.curves.norms, 1), np.finfo(np.float64).tiny)
        return medians / np.exp(np.log(medians).mean(1, keepdims=True))

    def _explained(self, s: int) -> Statistic:
        timestep, norm = self.t_train[s, self.columns], self.norms[s, self.columns]
        return metrics.explained(timestep, norm, self.T, min(STRETCHES, self.T), self.bootstrap)

    def _direction(self, s: int) -> Statistic:
        """Spearman's correlation of an example's norms with the timestep at checkpoint s, a mean over examples."""
        of_examples = spearman(self.curves.norms[s], self.curves.timestep[s])
        return self.bootstrap.mean(of_examples, ("examples",), limits=CORRELATION_LIMITS)

    def algorithm_1(self, chosen: np.ndarray) -> list[Correlation]:
        """The correlation of Algorithm 1 at each checkpoint, for the ``chosen`` of the P examples."""
        correlations, columns = [], self.columns[chosen]
        for s in range(len(self.steps)):
            distance = np.abs(self.t_max[s, chosen] - self.t_train[s, columns])
            rank = ranks(self.norms[s])[columns]
            correlations.append(metrics.algorithm_1(distance, rank, self.bootstrap))
        return correlations

    def correlation_rows(self, correlations: Sequence[Correlation]) -> Iterator[Row]:
        """Algorithm 1 at each checkpoint."""
        for step, result in zip(self.steps, correlations, strict=True):
            shared: dict[str, Any] = {"benchmark": self.benchmark, "subject": NORMS, "swept": {"checkpoint": step}}
            shared["about"] = {"n": len(result.distance), "p": result.p}
            levels = Levels(random=0.0, maximum=1.0)
            yield Row(metric="algorithm_1_spearman", estimate=result.rho, levels=levels, **shared)
            yield Row(metric="algorithm_1_slope", estimate=result.slope, levels=Levels(random=0.0), **shared)

    def score_rows(self, scores: Mapping[str, Scores], subjects: Mapping[str, Subject], queries: str) -> list[Row]:
        """Spearman's correlation between |τ[q, z]| and its bound Σ_k η_k ‖G_k(z)‖ (up to a factor per query, ReTrac §5.2)."""
        bound = np.tensordot(self.rates, self.norms, 1)
        of_queries = [spearman(np.abs(s.values), np.broadcast_to(bound, s.values.shape)) for s in scores.values()]
        return compare(
            [subjects[name] for name in scores],
            [self.bootstrap.mean(values, limits=CORRELATION_LIMITS) for values in of_queries],
            benchmark=self.benchmark,
            metric="score_with_norm_spearman",
            queries=queries,
            levels=Levels(random=0.0, maximum=1.0),
        )

    def rise_rows(
        self,
        scores: Mapping[str, Scores],
        retimed: Mapping[tuple[str, str], Scores],
        subjects: Mapping[str, Subject],
        most: int,
        queries: str,
    ) -> Iterator[Row]:
        """Mean rise in rank of |τ|, in % of the training set, when one near-zero example at a time is retimed.

        ``retimed`` are the scores ``[Q, P]`` by estimator and by what replaced the timestep of training. ``most`` limits the number
        of examples per query.
        """
        N, count = self.norms.shape[1], min(most, len(self.columns) // 2)
        rises: dict[tuple[str, str], Statistic] = {}
        levels = []
        for name, of_estimator in scores.items():
            recorded = of_estimator.values[:, self.columns]
            chosen = metrics.neutral(recorded, count)
            before = metrics.rank_among(of_estimator.values, self.columns, recorded)
            # A new rank that is any of 1..N with equal probability, and rank 1.
            random, maximum = (PERCENT * float((before[chosen] - rank).mean()) / N for rank in ((N + 1) / 2, 1))
            levels.append(Levels(random=random, maximum=maximum))
            for timing in (T_MAX, RANDOM):
                after = metrics.rank_among(of_estimator.values, self.columns, retimed[name, timing].values)
                rises[name, timing] = self.bootstrap.mean(PERCENT * (before - after) / N, ("queries", "examples"), where=chosen)
        for timing in (T_MAX, RANDOM):
            means = [rises[name, timing] for name in scores]
            yield from compare(
                [subjects[name] for name in scores],
                means,
                benchmark=self.benchmark,
                metric=RISE,
                queries=queries,
                levels=levels,
                swept={"timestep": timing},
                about_each=[{"positions": float(mean.value) * N / PERCENT, "n": count} for mean in means],
            )
        for name in scores:
            yield Row(
                benchmark=self.benchmark,
                metric=RISE,
                queries=queries,
                subject=Subject(name, {"timestep": T_MAX}),
                minus=Subject(name, {"timestep": RANDOM}),
                estimate=(rises[name, T_MAX] - rises[name, RANDOM]).estimate(),
            )

    def most_frequent_row(self, subject: Subject, scores: Scores, train: Images, k: int, queries: str) -> tuple[Row, int]:
        """The share of queries that have the most frequent example among their top k, and the position of that example.

        It is the largest of N shares, which the lower end of its interval accounts for.
        """
        top = top_k(scores.values, k)
        example = metrics.most_frequent(top)
        random = metrics.random_most_frequent(len(top), self.norms.shape[1], k)
        about = {
            "example": int(train.index[example]),
            "example_name": train.name(example),
            "t_train": self.t_train[:, example],
            "norm_ranks": [int(ranks(norms)[example]) for norms in self.norms],
            "checkpoints": list(self.steps),
        }
        share = exact_share((top == example).any(1), among=self.norms.shape[1], over="queries")
        levels = Levels(random=random, maximum=1.0)
        metric = f"most_frequent_in_top_{k}"
        row = Row(
            benchmark=self.benchmark, metric=metric, queries=queries, subject=subject, estimate=share, levels=levels, about=about
        )
        return row, example


def explained_row(
    timestep: np.ndarray, norm: np.ndarray, T: int, checkpoint: int | str | None, bootstrap: Bootstrap, benchmark: str = BENCHMARK
) -> Row:
    """The share of the variance of norms ``[n]`` that their timesteps ``[n]`` explain."""
    stretches = min(STRETCHES, T)
    random = min(1.0, (stretches - 1) / max(1, len(norm) - 1))
    return Row(
        benchmark=benchmark,
        metric=EXPLAINED,
        subject=NORMS,
        estimate=metrics.explained(timestep, norm, T, stretches, bootstrap).estimate(),
        levels=Levels(random=random, maximum=1.0),
        swept={"checkpoint": checkpoint},
        about={"n": len(norm)},
    )
