"""What separates scores from retraining: that training is not linear, and that scores approximate its derivative."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from attribution.checks import FieldError, listed, whole
from attribution.estimators import Estimator
from attribution.estimators.metagradient import Metagradient
from attribution.nodes import Get, Node
from attribution.precision import FLOAT32, check_precision
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from attribution.training.repeatable import require_repeatable
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.compare import compare
from experiments.benchmarks.subset_benchmark import MIN_SUBSETS
from experiments.benchmarks.variants import Variant, computed, scores_of, variants_for
from experiments.metrics import lds as metrics
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap, Statistic
from experiments.metrics.estimate import PERCENT
from experiments.metrics.linearization import mean_error
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.models.truth import Truth
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

BENCHMARK, EXACT = "linearization", "metagradient"
RETRAINED = "retraining"
QUANTITIES = ("spearman", "pearson", "error", "scaled_error")
ROUNDING = Subject("rounding")
"""The training run on all images once more: the change of measurements that is due to nothing but the order of sums."""


@dataclass(frozen=True, kw_only=True)
class Linearization(QueryBenchmark):
    """The correlation and the distance between predicted and true changes of a measurement when training images lose their weight.

    The truth is the recorded training run once more, with the same seed, batches, noises and learning rates, in which the removed
    images have weight 0. There are ``count`` random sets of each of the numbers in ``sizes``; by default 1, 4, 16, ... and half of
    the training set. All changes are those of the mean over the draws of ``exact``, so that these are no source of error:

    - metagradient against retraining: the error of the linearization
    - an estimator against metagradient: the error of its approximation of the derivative
    - an estimator against retraining: both

    The quantities are Spearman's and Pearson's correlation over the sets of a size, and the norm of the difference relative to that
    of the true changes, as predicted and after the best scale, all in per cent and as means over queries.
    """

    exact: Metagradient
    sizes: Sequence[int] | None = None
    count: int
    mode: Mode
    precision: str = FLOAT32
    keep_models: bool = True
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.sizes is not None:
            listed(self, "sizes", _size)
        whole(self, "count", least=MIN_SUBSETS)
        whole(self, "resamples", least=1)
        check_precision(self, "precision")
        if self.exact.models != 1:
            raise FieldError(self.exact, "models", "the exact derivative belongs to one training: set 1")

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        measured = [node for nodes in self._measured(experiment, self._truth(experiment)).values() for node in nodes]
        return [*measured, *scores_of(experiment, self._with_exact(estimators), self.queries).values()]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        estimators, truth, N = self._with_exact(estimators), self._truth(experiment), experiment.train.count
        nodes, masks = scores_of(experiment, estimators, self.queries), self._masks(N)
        scores, measured = computed(nodes, get), self._measured(experiment, truth)
        rows: list[Row] = []
        for kind in self.queries:
            variants = [v for v in variants_for(kind, estimators, nodes, scores, get) if v.all_timesteps]
            recorded, *of_models = measured[kind]
            costs = truth.measured(of_models, get)[0]  # [Q, 1 + sizes · count]
            changes = costs[:, 1:] - costs[:, :1]
            rounding = get(recorded).values - costs[:, 0]
            for place, (size, kept) in enumerate(masks.items()):
                true = changes[:, place * self.count : (place + 1) * self.count]
                predicted = [metrics.predicted(v.scores.values, ~kept) / N for v in variants]
                rows += report.add(self._rows(kind, size, variants, predicted, true, rounding))
        report.figure(BENCHMARK, figures.linearization(rows, EXACT))

    def _rows(
        self,
        kind: str,
        size: int,
        variants: Sequence[Variant],
        predicted: Sequence[np.ndarray],
        true: np.ndarray,
        rounding: np.ndarray,
    ) -> Iterator[Row]:
        bootstrap, about = Bootstrap(self.resamples, self.seed), {"sets": self.count, "n": len(true)}
        swept = {"removed": size}
        for against, target, first in ((RETRAINED, true, 0), (EXACT, predicted[0], 1)):
            subjects = [variant.subject for variant in variants[first:]]
            for quantity in QUANTITIES:
                values = [_compared(quantity, each, target, bootstrap) * PERCENT for each in predicted[first:]]
                metric = f"{quantity}_with_{against}_%"
                levels = Levels(random=0.0) if quantity in QUANTITIES[:2] else Levels()
                yield from compare(
                    subjects,
                    values,
                    benchmark=BENCHMARK,
                    metric=metric,
                    queries=kind,
                    swept=swept,
                    about=about,
                    levels=levels,
                    differences=(),
                )
        noise = mean_error(true + rounding[:, None], true, bootstrap, scaled=False) * PERCENT
        yield Row(
            benchmark=BENCHMARK,
            metric=f"error_with_{RETRAINED}_%",
            queries=kind,
            subject=ROUNDING,
            estimate=noise.estimate(),
            swept=swept,
            about=about,
        )

    def _with_exact(self, estimators: Mapping[str, Estimator]) -> dict[str, Estimator]:
        """The exact derivative first, then the estimators that approximate it."""
        if chosen := [name for name, each in estimators.items() if isinstance(each, Metagradient)]:
            message = "takes part in any case, with the settings of benchmark.exact: choose other estimators, such as kfac"
            raise FieldError(self, "compare", f"{chosen[0]} {message}", chosen)
        return {EXACT: self.exact, **estimators}

    def _masks(self, N: int) -> dict[int, np.ndarray]:
        """The kept images of each set, ``[count, N]``, by the number of images that it removes.

        Raises:
            FieldError: a size leaves no training image.
        """
        powers = [4**k for k in range(N.bit_length()) if 4**k < N / 2]
        sizes = dict.fromkeys([*powers, N // 2] if self.sizes is None else self.sizes)
        if max(sizes) >= N:
            raise FieldError(self, "sizes", f"there are {N} training images: remove fewer")
        masks = {}
        for size in sizes:
            random = np.random.default_rng([self.seed, 0x11EA, size])
            kept = np.ones((self.count, N), dtype=bool)
            for mask in kept:
                mask[random.permutation(N)[:size]] = False
            masks[size] = kept
        return masks

    def _truth(self, experiment: Experiment) -> Truth:
        """The training run with all weights 1, and then with weight 0 of each set."""
        trained = experiment.training
        masks = np.concatenate(list(self._masks(experiment.train.count).values()))
        return Truth(
            trained=trained,
            selections=[Selection.weighted(weights) for weights in [np.ones(masks.shape[1]), *masks.astype(np.float64)]],
            seeds=[trained.seed],
            steps=trained.recipe.steps,
            draws=self.exact.draws,
            role="query",
            mode=self.mode.choose(trained.outline, experiment.shape, trained.recipe),
            precision=self.precision,
            execution=experiment.execution,
            keep_models=self.keep_models,
        )

    def _measured(self, experiment: Experiment, truth: Truth) -> dict[str, list[Measured]]:
        """The measurements under the recorded model and then under the retrained ones, by kind of queries."""
        require_repeatable(experiment.attributed, f"benchmark={BENCHMARK}")
        measured = {}
        for kind, queries in self.queries.items():
            nodes = truth.nodes(self.exact.measurement, queries.node(experiment))
            measured[kind] = [replace(nodes[0], model=experiment.trained), *nodes]
        return measured


def _compared(quantity: str, predicted: np.ndarray, target: np.ndarray, bootstrap: Bootstrap) -> Statistic:
    """One of ``QUANTITIES`` of predictions ``[Q, M]``."""
    if quantity in ("spearman", "pearson"):
        return metrics.lds(predicted[None], target[None], bootstrap, ranked=quantity == "spearman")[0, 0]
    return mean_error(predicted, target, bootstrap, scaled=quantity == "scaled_error")


def _size(owner: Linearization, field: str) -> None:
    whole(owner, field, least=1)
