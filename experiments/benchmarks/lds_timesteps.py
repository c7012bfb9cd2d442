"""LDS by timestep (K-FAC influence, figs. 11, 12): do scores for the loss at t predict what retraining does to the loss at t'?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.figure import Figure

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images.bins import ALL
from attribution.measurements import LossAtT, Measure
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks import lds_timestep_rows as rows
from experiments.benchmarks.lds_timestep_rows import METRIC, Predictor, Target, Timestep
from experiments.benchmarks.subset_benchmark import RETRAINING, SubsetBenchmark, levels
from experiments.benchmarks.variants import variants_of
from experiments.metrics import lds as metrics
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.estimate import PERCENT, Estimate
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.report.row import Row

ByTimestep = Mapping[Timestep, tuple[Estimator, Node[Scores]]]
"""By timestep: an estimator that measures the loss there, and its scores."""


@dataclass(frozen=True, kw_only=True)
class TimestepLDS(SubsetBenchmark):
    """LDS (``benchmark=lds``) of every pair: scores for the loss at t predict the retrained models' loss at t'.

    The entry "all" means the estimator's own measurement for predictions, and ``measurement`` for targets. The retrained models are
    those of ``benchmark=lds`` with the same settings. A row is about one target; its ``by_predicted`` is the whole column of the
    matrix. An estimator without a measurement predicts the same for every target. ``predictors`` are further measures by name, such
    as the square norm of the output, whose scores predict every target.
    """

    timesteps: Sequence[int]
    predictors: Mapping[str, Measure] = field(default_factory=dict)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        scores = [node for by_t in self._scores(experiment, estimators).values() for _, node in by_t.values()]
        return [*scores, *(node for nodes in self._measured(experiment).values() for node in nodes)]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        scores, targets, truth = self._scores(experiment, estimators), self._measured(experiment), self.truth(experiment)
        removed, bootstrap = self.subsets.removed(get(experiment.train)), self.bootstrap
        labels, by_target = [*self.timesteps, ALL], []
        for kind in self.queries:
            measured = np.stack([truth.measured(targets[kind, t], get) for t in labels], 1)  # [K, T, Q, M]
            replicates = np.stack([truth.replicates(targets[kind, t], get) for t in labels], 1)  # [K', T, Q, M']
            mean = measured.mean(0)
            predictors = [
                p for name in estimators for p in _predictors(name, scores[kind, name], labels, get, removed, mean, bootstrap)
            ]
            exact = self._retraining(replicates, bootstrap)
            ceilings = [self.ceiling(replicates[:, t], len(removed)) for t in range(len(labels))]
            by_target += report.add(self._rows(kind, predictors, exact, ceilings, measured, replicates))
            report.add(rows.rows_of_ceilings(labels, _targets(ceilings, replicates), ceilings, kind))
            predictors += exact
            report.add(row for predictor in predictors for row in rows.rows_of_shape(predictor, kind))
            for predictor in predictors:
                if predictor.depends_on_target:
                    name = f"lds_{kind}_{predictor.subject().label}"
                    report.figure(name.replace(" ", "_"), _matrix(predictor, kind))
        shown = [row for row in by_target if row.metric == METRIC and row.minus is None]
        log_snr = experiment.diffusion.process.log_snr
        report.figure("lds_by_timestep", figures.by_timestep(shown, "measured_t", "timestep of the loss", "LDS, %", log_snr))

    def _rows(
        self,
        kind: str,
        predictors: Sequence[Predictor],
        exact: Sequence[Predictor],
        ceilings: Sequence[Estimate | None],
        measured: np.ndarray,
        replicates: np.ndarray,
    ) -> Iterator[Row]:
        """The rows of every target, of estimators, of exact retraining and of differences."""
        for predictor in predictors:
            yield from rows.rows_of_targets(predictor, _targets(ceilings, measured), kind)
        for predictor in exact:
            yield from rows.rows_of_targets(predictor, _targets(ceilings, replicates), kind)
        yield from rows.rows_of_differences(predictors, kind)

    def _retraining(self, replicates: np.ndarray, bootstrap: Bootstrap) -> list[Predictor]:
        """Exact retraining as a predictor; none if every subset is trained on only once."""
        if len(replicates) == 1:
            return []
        grid = metrics.retraining(replicates, bootstrap) * PERCENT
        labels = [*self.timesteps, ALL]
        return [Predictor(RETRAINING, {}, dict.fromkeys(labels), labels, grid, True)]

    def _losses(self, experiment: Experiment) -> dict[Timestep, Measure]:
        """The loss at each timestep.

        Raises:
            ValueError: there is no timestep, one is not of the schedule, or they are not in ascending order.
        """
        process, steps = experiment.diffusion.process, self.timesteps
        if not steps or not all(1 <= t <= process.T for t in steps) or list(steps) != sorted(set(steps)):
            raise FieldError(self, "timesteps", f"give at least one timestep of 1..{process.T}, in ascending order, each once")
        return {t: LossAtT(process, t) for t in steps}

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], ByTimestep]:
        """The scores by (kind of queries, estimator) and timestep."""
        losses, scores = self._losses(experiment), {}
        for kind, queries in self.queries.items():
            images = queries.node(experiment)
            for name, estimator in estimators.items():
                by_t = {**{t: estimator.measuring(loss) for t, loss in losses.items()}, ALL: estimator}
                by_t |= {measure: estimator.measuring(of_network) for measure, of_network in self.predictors.items()}
                scores[kind, name] = {t: (e, e.scores(experiment.attributed, experiment.train, images)) for t, e in by_t.items()}
        return scores

    def _measured(self, experiment: Experiment) -> dict[tuple[str, Timestep], list[Measured]]:
        """The target under every retrained model, by (kind of queries, timestep)."""
        truth, targets, measured = self.truth(experiment), {**self._losses(experiment), ALL: self.measurement}, {}
        for kind, queries in self.queries.items():
            images = queries.node(experiment)
            self.measurement.subject(images)
            measured |= {(kind, t): truth.nodes(measure, images) for t, measure in targets.items()}
        return measured


def _targets(ceilings: Sequence[Estimate | None], measured: np.ndarray) -> list[Target]:
    """The levels and counts of each target of ``measured [K, T, Q, M]``."""
    seeds, _, _, subsets = measured.shape
    return [Target(levels(ceiling), subsets, seeds) for ceiling in ceilings]


def _predictors(
    name: str,
    scores: ByTimestep,
    timesteps: Sequence[Timestep],
    get: Get,
    removed: np.ndarray,
    measured: np.ndarray,
    bootstrap: Bootstrap,
) -> Iterator[Predictor]:
    """A predictor of ``measured [T, Q, M]`` for each variant of an estimator's scores of all timesteps."""
    by_t = [variants_of(name, estimator, node, get(node), get) for estimator, node in scores.values()]
    for variants in zip(*by_t, strict=True):
        if variants[0].all_timesteps:
            predictions = np.stack([metrics.predicted(variant.scores.values, removed) for variant in variants])
            fingerprints = {t: variant.subject.scores for t, variant in zip(scores, variants, strict=True)}
            settings = {setting: value for setting, value in variants[0].subject.settings.items() if value != ALL}
            grid = metrics.lds(predictions, measured, bootstrap) * PERCENT
            depends, effort = len(set(fingerprints.values())) > 1, variants[-1].subject.effort
            yield Predictor(name, settings, fingerprints, timesteps, grid, depends, effort)


def _matrix(predictor: Predictor, kind: str) -> Figure:
    """The heat map of a predictor's grid."""
    names, title = [str(t) for t in predictor.timesteps], f"{predictor.subject().label}, {kind} queries: LDS, %"
    predictions = [str(prediction).replace("_", " ") for prediction in predictor.predictions]
    values = predictor.grid.value
    return figures.matrix(
        values,
        predictions,
        names,
        title,
        "LDS, %",
        symmetric=False,
        row_name="predicted: loss at t",
        column_name="measured: loss at t'",
    )
