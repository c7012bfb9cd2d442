"""Predicted and actual changes of the loss when training images are removed (K-FAC influence, figs. 15 and 16)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images.bins import ALL
from attribution.measurements import LossAtT, Measure
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.subset_benchmark import SubsetBenchmark
from experiments.benchmarks.variants import Variant, variants_of
from experiments.metrics import lds as metrics
from experiments.metrics.bootstrap import SHARE_LIMITS
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.report.row import Row, Subject

BENCHMARK = "predicted_change"
INCREASES = "share_of_increases"
RETRAINED = Subject("retrained models")

Target = int | str
"""A timestep, or ``ALL`` for the benchmark's measurement."""


@dataclass(frozen=True, kw_only=True)
class PredictedChange(SubsetBenchmark):
    """How the measurement of queries changes from the explained model to those of subsets, and what scores predict for it.

    The prediction is ``(1/N) Σ_{i∉S} τ[q, i]``, which has the unit of the measurement for influence functions; for other estimators
    only its sign counts. The rows have the share of pairs of a query and a subset with a predicted, and with an actual, increase:
    for ``measurement``, and for the loss at each of ``timesteps``. The actual change is a mean over training seeds.
    """

    timesteps: Sequence[int] = ()

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        scores = [node for _, node in self._scores(experiment, estimators).values()]
        return [*scores, *(node for nodes in self._measured(experiment).values() for node in nodes)]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        scores, measured = self._scores(experiment, estimators), self._measured(experiment)
        removed, truth = self.subsets.removed(get(experiment.train)), self.truth(experiment)
        for kind in self.queries:
            panels: dict[str, list[figures.Changes]] = {}
            for target in self._targets(experiment):
                before, *after = measured[kind, target]
                actual = truth.measured(after, get).mean(0) - get(before).values[:, None]  # [Q, M]
                variants = self._variants(kind, target, estimators, scores, get)
                predicted = [metrics.predicted(v.scores.values, removed) / removed.shape[1] for v in variants]
                report.add(self._rows(kind, target, variants, predicted, actual))
                name = "measurement" if target == ALL else f"loss at t = {target}"
                for variant, prediction in zip(variants, predicted, strict=True):
                    panels.setdefault(variant.label, []).append(figures.Changes(name, prediction, actual))
            for label, changes in panels.items():
                title = f"{label}, {kind} queries under models of {len(removed)} subsets"
                report.figure(f"changes_{kind}_{label}".replace(" ", "_"), figures.changes(changes, title))

    def _rows(
        self, kind: str, target: Target, variants: Sequence[Variant], predicted: Sequence[np.ndarray], actual: np.ndarray
    ) -> Iterator[Row]:
        for subject, change in [*zip((v.subject for v in variants), predicted, strict=True), (RETRAINED, actual)]:
            increases = (change > 0).astype(np.float64)
            yield Row(
                benchmark=BENCHMARK,
                metric=INCREASES,
                queries=kind,
                subject=subject,
                estimate=self.bootstrap.mean(increases, ("queries", "subsets"), limits=SHARE_LIMITS).estimate(),
                swept={"measured_t": target},
                about={"subsets": change.shape[1], "seeds": self.seeds, "n": len(change)},
            )

    def _variants(
        self,
        kind: str,
        target: Target,
        estimators: Mapping[str, Estimator],
        scores: Mapping[tuple[str, Target, str], tuple[Estimator, Node[Scores]]],
        get: Get,
    ) -> list[Variant]:
        found = []
        for name in estimators:
            estimator, node = scores[kind, target, name]
            found += [variant for variant in variants_of(name, estimator, node, get(node), get) if variant.all_timesteps]
        return found

    def _targets(self, experiment: Experiment) -> dict[Target, Measure]:
        """The measures whose changes are predicted.

        Raises:
            FieldError: a timestep is not of the schedule.
        """
        process = experiment.diffusion.process
        if not all(1 <= t <= process.T for t in self.timesteps):
            raise FieldError(self, "timesteps", f"give timesteps of 1..{process.T}")
        return {ALL: self.measurement, **{t: LossAtT(process, t) for t in self.timesteps}}

    def _scores(
        self, experiment: Experiment, estimators: Mapping[str, Estimator]
    ) -> dict[tuple[str, Target, str], tuple[Estimator, Node[Scores]]]:
        """Each estimator of each measure, and its scores, by kind of queries, timestep and name."""
        scores = {}
        for kind, queries in self.queries.items():
            images = queries.node(experiment)
            for target, measure in self._targets(experiment).items():
                for name, estimator in estimators.items():
                    measuring = estimator.measuring(measure)
                    scores[kind, target, name] = measuring, measuring.scores(experiment.attributed, experiment.train, images)
        return scores

    def _measured(self, experiment: Experiment) -> dict[tuple[str, Target], list[Measured]]:
        """The measurements under the explained model and then under the retrained ones, by kind of queries and timestep."""
        truth, measured = self.truth(experiment), {}
        for kind, queries in self.queries.items():
            images = queries.node(experiment)
            for target, measure in self._targets(experiment).items():
                measure.subject(images)
                nodes = truth.nodes(measure, images)
                measured[kind, target] = [self.under(experiment.trained, nodes[0]), *nodes]
        return measured
