"""What benchmarks that retrain on subsets share: the settings of the retrained models."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attribution.checks import whole
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.retraining.modes import Mode
from experiments.benchmarks.base import Benchmark
from experiments.metrics.lds import Resamples
from experiments.models.experiment import Experiment
from experiments.models.subsets import Subsets
from experiments.models.truth import Truth
from experiments.queries.choices import Queries


@dataclass(frozen=True, kw_only=True)
class SubsetBenchmark(Benchmark):
    """Judges by models trained on ``subsets``, with ``seeds`` training seeds each, for ``steps`` steps.

    ``steps``: None is for as many epochs as the explained model. ``repeats``: so many of the subsets get another seed; counts
    only where ``seeds`` is 1. ``measurement``: the target, a mean over ``draws``, which need not be the estimators' own. Intervals
    are from ``resamples`` bootstrap resamples of subsets and queries.
    """

    queries: Mapping[str, Queries]
    subsets: Subsets
    seeds: int
    repeats: int
    steps: int | None
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        for name in ("seeds", "resamples"):
            whole(f"benchmark.{name}", getattr(self, name), 1)
        if self.steps is not None:
            whole("benchmark.steps", self.steps, 1)
        whole("benchmark.repeats", self.repeats, 0)
        if 0 < self.repeats < 3:
            raise ValueError(f"benchmark.repeats={self.repeats}: give 0, or the at least 3 subsets that a correlation needs")

    def truth(self, experiment: Experiment) -> Truth:
        """The retrained models and what they measure. Raises ValueError: more subsets to repeat than there are."""
        selections = self.subsets.selections(experiment.data.load().train)
        if self.seeds == 1:
            whole("benchmark.repeats", self.repeats, 0, len(selections))
        return Truth(
            record=experiment.record,
            selections=selections,
            seeds=[experiment.seed + 1 + seed for seed in range(self.seeds)],
            repeats=self.repeats if self.seeds == 1 else 0,
            steps=self.steps,
            draws=self.draws,
            mode=self.mode,
            execution=experiment.execution,
        )

    def resamples_of(self, measured: np.ndarray) -> Resamples:
        """For ``measured [.., Q, M]``."""
        *_, Q, M = measured.shape
        return Resamples.draw(M, Q, self.resamples, self.seed)
