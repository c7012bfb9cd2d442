"""The settings of retrained models, shared by benchmarks that retrain on subsets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from attribution.checks import FieldError, whole
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.precision import FLOAT32
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from experiments.benchmarks.base import QueryBenchmark, check_measuring
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap
from experiments.metrics.estimate import PERCENT, Estimate
from experiments.metrics.lds import SUBSETS
from experiments.metrics.noise_ceiling import noise_ceiling
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.models.quadrature import quadrature_notes
from experiments.models.subsets import Subsets, check_variation
from experiments.models.truth import Truth
from experiments.report.row import Levels

RETRAINING = "exact retraining"
"""The name of exact retraining as an estimator."""
CEILING = "noise ceiling"
"""The name of a perfect predictor in the rows that give the noise ceiling with its interval."""
MIN_SUBSETS = 3
"""The fewest subsets with a correlation."""


@dataclass(frozen=True, kw_only=True)
class SubsetBenchmark(QueryBenchmark):
    """Evaluates estimators by models trained on ``subsets``, with ``seeds`` training seeds each, for ``steps`` steps.

    If ``steps`` is None, the models train for as many epochs as the explained model. The first ``repeats`` subsets are trained with
    one more seed if ``seeds`` is 1. ``measurement`` is the target, a mean over ``draws`` in ``precision``; it need not be the
    estimators' measurement. Intervals are from ``resamples`` bootstrap resamples of the subsets, and of the queries. Without
    ``keep_models`` a model is deleted when its measurements are stored.
    """

    subsets: Subsets
    seeds: int
    repeats: int
    steps: int | None
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    precision: str = FLOAT32
    keep_models: bool = True
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "resamples"):
            whole(self, name, least=1)
        if self.steps is not None:
            whole(self, "steps", least=1)
        whole(self, "repeats", least=0)
        if 0 < self.repeats < MIN_SUBSETS:
            raise FieldError(self, "repeats", f"give 0, or at least {MIN_SUBSETS}: a correlation needs that many subsets")
        check_measuring(self)

    def notes(self) -> list[str]:
        return quadrature_notes(self.measurement, self.draws)

    def truth(self, experiment: Experiment) -> Truth:
        """The retrained models and their measurements.

        Raises:
            ValueError: there are fewer than three subsets, they show nothing, or ``repeats`` exceeds their number.
        """
        train = experiment.data.load().train
        selections = self.subsets.selections(train)
        if len(selections) < MIN_SUBSETS:
            message = f"a correlation over subsets needs at least {MIN_SUBSETS}"
            raise FieldError(self, "subsets", message, f"{len(selections)} subsets")
        check_variation(self, self.subsets.masks(train))
        if self.seeds == 1:
            whole(self, "repeats", least=0, most=len(selections))
        return self.truth_on(experiment, selections, self.repeats if self.seeds == 1 else 0)

    def truth_on(self, experiment: Experiment, selections: Sequence[Selection], repeats: int = 0) -> Truth:
        """The models that are trained on ``selections``, the first ``repeats`` of them once more, and their measurements."""
        return Truth(
            trained=experiment.training,
            selections=selections,
            seeds=[experiment.seed + 1 + seed for seed in range(self.seeds)],
            repeats=repeats,
            steps=self.steps,
            draws=self.draws,
            role="measurement",
            mode=self.mode.choose(experiment.training.outline, experiment.shape, experiment.trainer),
            precision=self.precision,
            execution=experiment.execution,
            keep_models=self.keep_models,
        )

    @staticmethod
    def under(model: Trained, measured: Measured) -> Measured:
        """The same measurement under another model, such as the explained one."""
        return replace(measured, model=model)

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap of all rows of the benchmark."""
        return Bootstrap(self.resamples, self.seed)

    def ceiling(self, replicates: np.ndarray, subsets: int) -> Estimate | None:
        """The noise ceiling of the LDS over ``subsets``, in per cent, from ``replicates [K', Q, M']``; None for K' = 1."""
        return ceiling_of(replicates, self.bootstrap, self.seeds, subsets)


def ceiling_of(replicates: np.ndarray, bootstrap: Bootstrap, seeds: int, subsets: int, axis: str = SUBSETS) -> Estimate | None:
    """The noise ceiling of the LDS with a mean over ``seeds`` trainings, in per cent, from ``replicates [K', Q, M']``.

    None for K' = 1. ``axis`` names what the M' measurements belong to, if not subsets.
    """
    return None if len(replicates) == 1 else noise_ceiling(replicates, bootstrap, seeds, subsets, axis).scaled(PERCENT)


def levels(ceiling: Estimate | None) -> Levels:
    """The reference levels of LDS in per cent."""
    return Levels(random=0.0, ceiling=None if ceiling is None else ceiling.value)
