"""LDS by timestep (K-FAC influence, figs. 11, 12): do scores for the loss at t predict what retraining does to the loss at t'?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images.bins import ALL
from attribution.measurements import LossAtT, Measure
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.lds_timestep_rows import METRIC, PERCENT, Predictor, Timestep, of_difference, of_shape, of_targets
from experiments.benchmarks.retrained import SubsetBenchmark
from experiments.benchmarks.variants import variants_of
from experiments.metrics import lds as lds_metrics
from experiments.metrics.lds_grids import Grid
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report

RETRAINING = "exact retraining"

ByTimestep = Mapping[Timestep, tuple[Estimator, Node[Scores]]]
"""An estimator as it measures at each timestep, and its scores."""


@dataclass(frozen=True, kw_only=True)
class TimestepLDS(SubsetBenchmark):
    """LDS (``benchmark=lds``) of every pair: scores for the loss at t predict the retrained models' loss at t'.

    Besides ``timesteps`` there is "all": as a prediction the estimator's own measurement, as a target ``measurement``. The
    retrained models are those of ``benchmark=lds`` with the same settings. A row is a target; its ``by_predicted`` is the whole
    column of the matrix. An estimator that asks for no measurement predicts the same for every target.
    """

    timesteps: Sequence[int]

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        scores = [node for by_t in self._scores(experiment, estimators).values() for _, node in by_t.values()]
        return [*scores, *(node for nodes in self._measured(experiment).values() for node in nodes)]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        scores, targets, truth = self._scores(experiment, estimators), self._measured(experiment), self.truth(experiment)
        removed = self.subsets.removed(get(experiment.train))
        labels = [*self.timesteps, ALL]
        for kind in self.queries:
            measured = np.stack([truth.measured(targets[kind, t], get) for t in labels], 1)  # [K, T, Q, M]
            replicates = np.stack([truth.replicates(targets[kind, t], get) for t in labels], 1)  # [K', T, Q, M']
            predictors = [p for name in estimators for p in self._predictors(name, scores[kind, name], get, removed, measured)]
            levels, all_of_them = self._levels(measured, replicates), [*predictors, *self._retraining(replicates)]
            rows = [row for predictor in predictors for row in of_targets(predictor, levels)]
            for oracle in all_of_them[len(predictors) :]:
                rows += of_targets(oracle, self._levels(replicates, replicates))
            for other in predictors[1:]:
                rows += of_difference(predictors[0], other)
            report.add({"benchmark": "lds_timesteps", "queries": kind, **row} for row in rows)
            shapes = [row for predictor in all_of_them for row in of_shape(predictor)]
            report.add({"benchmark": "lds_timesteps_shape", "queries": kind, **row} for row in shapes)
            for predictor in all_of_them:
                if predictor.measures:
                    report.figure(f"lds_{kind}_{predictor.label}".replace(" ", "_"), _matrix(predictor, kind))
        rows = [row for row in report.rows if row["metric"] == METRIC and "−" not in row["estimator"]]
        report.figure("lds_by_timestep", figures.by_timestep(rows, "measured_t", "timestep of the loss", "LDS, %"))

    def _predictors(
        self, name: str, scores: ByTimestep, get: Get, removed: np.ndarray, measured: np.ndarray
    ) -> Iterator[Predictor]:
        by_t = [variants_of(name, estimator, node, get(node)) for estimator, node in scores.values()]
        for variants in zip(*by_t, strict=True):
            first = variants[0]
            if first.whole:
                predictions = np.stack([lds_metrics.predicted(variant.scores.values, removed) for variant in variants])
                grid = Grid.of(predictions, measured.mean(0), self.resamples_of(measured))
                origins = {t: variant.origin for t, variant in zip(scores, variants, strict=True)}
                measures = len(set(origins.values())) > 1
                settings = {setting: value for setting, value in first.settings.items() if value != ALL}
                yield Predictor(name, settings, first.label, origins, grid, measures)

    def _retraining(self, replicates: np.ndarray) -> list[Predictor]:
        if len(replicates) == 1:
            return []
        grid = Grid.retraining(replicates, self.resamples_of(replicates))
        return [Predictor(RETRAINING, {}, RETRAINING, dict.fromkeys([*self.timesteps, ALL]), grid, True)]

    def _levels(self, measured: np.ndarray, replicates: np.ndarray) -> list[dict[str, Any]]:
        """By target: what LDS with ``measured`` is to be held against, and how much that is."""
        known = {"random": 0.0, "subsets": measured.shape[3], "seeds": len(measured)}
        if len(replicates) == 1:
            return [known] * measured.shape[1]
        ceilings = [lds_metrics.noise_ceiling(some, self.seeds) for some in replicates.swapaxes(0, 1)]
        return [{**known, "ceiling": PERCENT * ceiling} for ceiling in ceilings]

    def _losses(self, experiment: Experiment) -> dict[Timestep, Measure]:
        """The loss at each timestep.

        Raises:
            ValueError: no timestep, one that the schedule does not have, or not in ascending order, in which neighbours are.
        """
        process, asked = experiment.diffusion.process, self.timesteps
        listed = isinstance(asked, Sequence) and not isinstance(asked, str) and len(asked) > 0
        if not listed or not all(isinstance(t, int) and 1 <= t <= process.T for t in asked) or list(asked) != sorted(set(asked)):
            raise ValueError(
                f"benchmark.timesteps={asked}: give a list of timesteps, at least one of 1..{process.T}, ascending, each once"
            )
        return {t: LossAtT(process, t) for t in asked}

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], ByTimestep]:
        """By (kind of queries, estimator)."""
        losses, found = self._losses(experiment), {}
        for kind, queries in self.queries.items():
            images = queries.node(experiment)
            for name, estimator in estimators.items():
                by_t = {**{t: estimator.measuring(loss) for t, loss in losses.items()}, ALL: estimator}
                found[kind, name] = {t: (how, how.scores(experiment.record, experiment.train, images)) for t, how in by_t.items()}
        return found

    def _measured(self, experiment: Experiment) -> dict[tuple[str, Timestep], list[Measured]]:
        """By (kind of queries, timestep): the target under every retrained model."""
        truth, targets, found = self.truth(experiment), {**self._losses(experiment), ALL: self.measurement}, {}
        for kind, queries in self.queries.items():
            images = queries.node(experiment)
            self.measurement.subject(images)
            found |= {(kind, t): truth.nodes(measure, images) for t, measure in targets.items()}
        return found


def _matrix(predictor: Predictor, kind: str) -> Any:
    names, title = [str(t) for t in predictor.timesteps], f"{predictor.label}, {kind} queries: LDS, %"
    grid = PERCENT * predictor.grid.values
    return figures.matrix(grid, names, names, title, "LDS, %", False, "predicted: loss at t", "measured: loss at t'")
