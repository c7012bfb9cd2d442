"""Gradient norms over timesteps and over training (ReTrac §4.2, app. A: figures 1-3 and 8-10, Algorithm 1, the trend)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from attribution.checks import whole
from attribution.estimators import Estimator
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.norm_study import NormSettings, NormStudy, common_checkpoints
from experiments.benchmarks.timestep_bias_rows import DIRECTION, EXPLAINED
from experiments.benchmarks.variants import require_replay
from experiments.metrics.bootstrap import RESAMPLES
from experiments.models.experiment import Experiment
from experiments.report.report import Report

NAME = "gradient_norms"


@dataclass(frozen=True, kw_only=True)
class GradientNormTrends(Benchmark):
    """How gradient norms depend on the timestep, at each checkpoint of the estimators, and how this changes during training.

    ``NormSettings`` says what the numbers mean. The rows give, for each checkpoint, how much of the norms' variance the timestep
    explains, Spearman's correlation of an example's norms with the timestep, and Algorithm 1. The figure of single curves shows the
    training image at position ``example`` (None: one of the correlated ones). Estimators contribute nothing but their checkpoints.
    """

    examples: int = 2000
    timesteps: int = 50
    correlated: int = 50
    example: int | None = None
    resamples: int = RESAMPLES
    pretrained: str | None = None
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return self._study(experiment, estimators).nodes

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        study = self._study(experiment, estimators)
        bias = study.bias(get)
        study.report(bias, int(bias.columns[study.correlated[0]]) if self.example is None else self.example, get, report)
        if len(bias.steps) > 1:
            report.add(bias.convergence_rows())
            trends = [row for row in report.rows if row.metric in (EXPLAINED, DIRECTION) and row.minus is None]
            trends = [row for row in trends if row.settings["checkpoint"] in bias.steps]
            losses = get(experiment.recorded).losses
            timesteps, log_snr = bias.curves.timestep[0, 0], experiment.diffusion.process.log_snr
            report.figure("norm_trend", figures.norm_trend(trends, bias.steps, timesteps, bias.profiles, losses, log_snr))

    def _study(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> NormStudy:
        """The study of norms; the settings are checked early, before anything is trained."""
        self._settings.check(self, experiment)
        if self.example is not None:
            whole(self, "example", 0, len(experiment.data.load().train) - 1)
        checkpoints = common_checkpoints(list(require_replay(estimators, NAME).items()), NAME)
        return NormStudy(experiment=experiment, checkpoints=checkpoints, settings=self._settings, benchmark=NAME)

    @cached_property
    def _settings(self) -> NormSettings:
        return NormSettings.of(self)
