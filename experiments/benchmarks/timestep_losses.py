"""The loss of the trained model at chosen timesteps: has it converged at all of them (K-FAC influence, app. G.7)?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attribution.checks import FieldError, whole
from attribution.estimators import Estimator
from attribution.images.draws import DrawScheme
from attribution.measurements import LossAtT
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.metrics.bootstrap import RESAMPLES, Bootstrap
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.report.row import Row, Subject

BENCHMARK = "timestep_losses"


@dataclass(frozen=True, kw_only=True)
class TimestepLosses(QueryBenchmark):
    """The mean loss over queries at each of ``timesteps``, over the noises of ``draws``; no scores enter.

    Intervals are from ``resamples`` bootstrap resamples of the queries.
    """

    timesteps: Sequence[int]
    draws: DrawScheme
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        whole(self, "resamples", least=1)
        self.draws.refuse_lists("a measurement")
        self.draws.refuse_sides("n is the number of draws of every query")

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._measured(experiment).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        bootstrap, measured = Bootstrap(self.resamples, self.seed), self._measured(experiment)
        losses = dict(zip(measured, get.many(list(measured.values()), "measuring"), strict=True))
        rows = report.add(
            Row(
                benchmark=BENCHMARK,
                metric="loss",
                queries=kind,
                subject=Subject("trained model"),
                estimate=bootstrap.mean(values.values).estimate(),
                swept={"t": t},
                about={"n": len(values.values), "steps": experiment.trainer.steps},
            )
            for (kind, t), values in losses.items()
        )
        figure = figures.curve(rows, "t", "timestep")
        for panel in [panel for panel in figure.axes if panel.axison]:
            figures.log_snr_axis(panel, experiment.diffusion.process.log_snr)
        report.figure("timestep_losses", figure)

    def _measured(self, experiment: Experiment) -> dict[tuple[str, int], Measured]:
        """The loss of every query at every timestep.

        Raises:
            FieldError: there is no timestep, or one is not of the schedule.
        """
        process = experiment.diffusion.process
        if not self.timesteps or not all(1 <= t <= process.T for t in self.timesteps):
            raise FieldError(self, "timesteps", f"give at least one timestep of 1..{process.T}")
        return {
            (kind, t): Measured(
                model=experiment.trained,
                images=queries.node(experiment),
                measure=LossAtT(process, t),
                draws=self.draws,
                execution=experiment.execution,
            )
            for kind, queries in self.queries.items()
            for t in self.timesteps
        }
