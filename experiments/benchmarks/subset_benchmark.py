"""The settings of retrained models, shared by benchmarks that retrain on subsets."""

from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError, whole
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.retraining.modes import Mode
from experiments.benchmarks.base import QueryBenchmark
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap
from experiments.metrics.estimate import PERCENT
from experiments.metrics.lds import noise_ceiling
from experiments.models.experiment import Experiment
from experiments.models.quadrature import quadrature_notes
from experiments.models.subsets import Subsets
from experiments.models.truth import Truth
from experiments.report.row import Levels

RETRAINING = "exact retraining"
"""The name of exact retraining as an estimator."""


@dataclass(frozen=True, kw_only=True)
class SubsetBenchmark(QueryBenchmark):
    """Evaluates estimators by models trained on ``subsets``, with ``seeds`` training seeds each, for ``steps`` steps.

    If ``steps`` is None, the models train for as many epochs as the explained model. The first ``repeats`` subsets are trained with
    one more seed if ``seeds`` is 1. ``measurement`` is the target, a mean over ``draws``; it need not be the estimators'
    measurement. Intervals are from ``resamples`` bootstrap resamples of subsets and queries.
    """

    subsets: Subsets
    seeds: int
    repeats: int
    steps: int | None
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "resamples"):
            whole(self, name, least=1)
        if self.steps is not None:
            whole(self, "steps", least=1)
        whole(self, "repeats", least=0)
        self.draws.refuse_sides("n is the number of draws of every query")
        if 0 < self.repeats < 3:
            raise FieldError(self, "repeats", "give 0, or at least 3: a correlation needs that many subsets")
        self.draws.refuse_lists("a measurement")

    def notes(self) -> list[str]:
        return quadrature_notes(self.measurement, self.draws)

    def truth(self, experiment: Experiment) -> Truth:
        """The retrained models and their measurements.

        Raises:
            ValueError: ``repeats`` exceeds the number of subsets.
        """
        selections = self.subsets.selections(experiment.data.load().train)
        if self.seeds == 1:
            whole(self, "repeats", least=0, most=len(selections))
        return Truth(
            trained=experiment.trained,
            selections=selections,
            seeds=[experiment.seed + 1 + seed for seed in range(self.seeds)],
            repeats=self.repeats if self.seeds == 1 else 0,
            steps=self.steps,
            draws=self.draws,
            role="measurement",
            mode=self.mode,
            execution=experiment.execution,
        )

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap of all rows of the benchmark."""
        return Bootstrap(self.resamples, self.seed)

    def levels(self, replicates: np.ndarray) -> Levels:
        """The reference levels of LDS in per cent; the noise ceiling is from ``replicates [K', Q, M']``, unknown for K' = 1."""
        ceiling = None if len(replicates) == 1 else PERCENT * noise_ceiling(replicates, self.seeds)
        return Levels(random=0.0, ceiling=ceiling)
