"""The timestep-induced norm bias (ReTrac §4.2, app. A): gradient norms depend on the timestep, and scores on the norms."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from attribution.checks import whole
from attribution.estimators import Estimator
from attribution.estimators.retiming import AtRandom, Retimed, Timing
from attribution.estimators.scores import Scores
from attribution.estimators.training_trajectory import TrajectoryEstimator
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.norm_study import NormSettings, NormStudy, common_checkpoints
from experiments.benchmarks.timestep_bias_rows import BENCHMARK, RANDOM, T_MAX
from experiments.benchmarks.variants import require_replay, scores_of, subject_of
from experiments.metrics.bootstrap import RESAMPLES
from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.row import Row


@dataclass(frozen=True, kw_only=True)
class TimestepBias(QueryBenchmark):
    """How gradient norms depend on the timestep, and how scores depend on these norms, at the estimators' checkpoints.

    The first is ``benchmark=gradient_norms``, whose settings these are. For each estimator the rows also give the correlation of
    its scores with the norms, the example among the top ``k`` of the most queries, and by how many ranks of |τ| the ``manipulated``
    examples with scores nearest 0 rise if they are given t_max, or a random timestep, instead of the timestep that they were
    trained at.
    """

    DRAW_GROUPS = False

    examples: int = 2000
    timesteps: int = 50
    correlated: int = 50
    manipulated: int = 500
    k: int = 10
    resamples: int = RESAMPLES
    pretrained: str | None = None
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        study, replaying = self._study(experiment, estimators)
        scores = scores_of(experiment, estimators, self.queries)
        return [*scores.values(), *study.nodes, *self._retimed(study, replaying).values()]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        study, replaying = self._study(experiment, estimators)
        bias, train = study.bias(get), get(experiment.train)
        study.report(bias, int(bias.columns[study.correlated[0]]), get, report)
        nodes, retimed = scores_of(experiment, estimators, self.queries), self._retimed(study, replaying)
        rises: list[Row] = []
        for kind in self.queries:
            subjects = {name: subject_of(name, estimator, nodes[kind, name], get) for name, estimator in estimators.items()}
            scores = {name: get(nodes[kind, name]) for name in estimators}
            changed = {(name, timing): get(retimed[kind, name, timing]) for name in estimators for timing in (T_MAX, RANDOM)}
            report.add(bias.score_rows(scores, subjects, kind))
            rises += report.add(bias.rise_rows(scores, changed, subjects, self.manipulated, kind))
            for name, subject in subjects.items():
                row, example = bias.most_frequent_row(subject, scores[name], train, self.k, kind)
                report.add([row])
                report.figure(f"influential_{kind}_{name}", study.curve_figure(bias, example, get))
        report.figure("rank_rise", figures.rank_rises([row for row in rises if row.minus is None]))

    def _retimed(self, study: NormStudy, estimators: Mapping[str, TrajectoryEstimator]) -> dict[tuple[str, str, str], Node[Scores]]:
        """Scores as if the examples had been trained at other timesteps, by kind of queries, estimator and timing."""
        timings: dict[str, Timing] = {T_MAX: study.largest, RANDOM: AtRandom(self.seed)}
        trained, pool = study.experiment.recorded, study.pool
        records = {name: Retimed.of(trained, pool, study.checkpoints, timing) for name, timing in timings.items()}
        return {
            (kind, name, timing): estimator.scores(record, pool, queries.node(study.experiment))
            for timing, record in records.items()
            for kind, queries in self.queries.items()
            for name, estimator in estimators.items()
        }

    def _study(
        self, experiment: Experiment, estimators: Mapping[str, Estimator]
    ) -> tuple[NormStudy, dict[str, TrajectoryEstimator]]:
        """The study of norms, and the estimators; the settings are checked early, before anything is trained."""
        self._settings.check(self, experiment)
        whole(self, "manipulated", least=1)
        whole(self, "k", 1, len(experiment.data.load().train))
        replaying = require_replay(estimators, BENCHMARK)
        checkpoints = common_checkpoints(list(replaying.items()), BENCHMARK)
        return NormStudy(experiment=experiment, checkpoints=checkpoints, settings=self._settings, benchmark=BENCHMARK), replaying

    @cached_property
    def _settings(self) -> NormSettings:
        return NormSettings.of(self)
