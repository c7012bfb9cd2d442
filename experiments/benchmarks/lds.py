"""Linear datamodeling score (Park et al. 2023): do scores predict what retraining on subsets does to a query?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.nodes import Get, Node
from experiments.benchmarks.draw_noise import noise_bands
from experiments.benchmarks.layer_weights import report_layer_weights
from experiments.benchmarks.lds_report import BENCHMARK, LDSInputs, LDSReport, Measurements
from experiments.benchmarks.proponents import report_proponents
from experiments.benchmarks.selection import Selection, Selective
from experiments.benchmarks.subset_benchmark import MIN_SUBSETS, SubsetBenchmark, levels
from experiments.benchmarks.variants import Variant, computed, scores_of, subject_of, variants_for
from experiments.metrics import lds as metrics
from experiments.metrics.estimate import PERCENT
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.report.row import Row

APART = 10_000
"""The distance of the seeds of trainings of the explained model; retrained models and ensembles have seeds between them."""
HELD_OUT_SUBSETS = "lds_%_held_out_subsets"


@dataclass(frozen=True, kw_only=True)
class LDS(SubsetBenchmark, Selective):
    """Spearman's correlation over subsets between Σ_{i∉S} τ[q, i] and the measurement of q under models trained on S.

    The rows are means over queries with intervals over subsets and queries: at the chosen dampings, at the damping that is best on
    the other half of the subsets, and, as papers report it, at the one that is best on all subsets. Scores that are not finite have
    NaN. Exact retraining as an estimator and the noise ceiling are computed from all
    subsets if ``seeds`` is at least 2, and from the repeated ones otherwise. The figures show ``rows`` queries, each with ``shown``
    proponents. Scores with replicates (``estimator.draws.replicates``) have intervals over their draws too, and the table
    ``expected_lds`` says what other numbers of draws would give.

    ``trainings``: how many times the explained model is trained, with the seeds seed, seed + 10,000, seed + 20,000, ... All are
    scored for the same queries; LDS at the chosen dampings are means over them, with intervals over trainings too.
    """

    rows: int = 4
    shown: int = 6
    trainings: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("rows", "shown", "trainings"):
            whole(self, name, least=1)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        measured = [node for nodes in self._measured(experiment).values() for node in nodes]
        scores = [node for nodes in self._trainings(experiment, estimators) for node in nodes.values()]
        return [*scores, *measured]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        train, result = get(experiment.train), LDSReport(report, self.bootstrap)
        for inputs in self.inputs(experiment, estimators, get):
            result.add(inputs)
            shown = {v.label: v.scores.values for v in inputs.variants if v.all_timesteps and np.isfinite(v.scores.values).all()}
            first = range(min(self.rows, len(inputs.queries)))
            noise = noise_bands([v for v in inputs.variants if v.label in shown])
            report_proponents(report, inputs.kind, inputs.queries, train, shown, first, noise, top=self.shown)
        result.close()
        report_layer_weights(report, estimators, self._trainings(experiment, estimators)[0], get)

    def inputs(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get) -> Iterator[LDSInputs]:
        """What the LDS of each kind of queries is computed from."""
        trainings, truth = self._trainings(experiment, estimators), self.truth(experiment)
        of_trainings = [computed(nodes, get) for nodes in trainings]
        nodes, scores = trainings[0], of_trainings[0]
        retrained = self._measured(experiment)
        removed = self.subsets.removed(get(experiment.train))
        for kind, queries in self.queries.items():
            swept = [
                Variant(subject_of(name, estimator, nodes[kind, name], get), scores[kind, name])
                for name, estimator in estimators.items()
                if (kind, name) in nodes and "damping" in scores[kind, name].axes
            ]
            measured, replicates = truth.measured(retrained[kind], get), truth.replicates(retrained[kind], get)
            variants, *others = (variants_for(kind, estimators, *of, get) for of in zip(trainings, of_trainings, strict=True))
            again = {first.label: further for first, *further in zip(variants, *others, strict=True) if further}
            images, measurements = get(queries.node(experiment)), Measurements(measured, replicates, removed)
            yield LDSInputs(kind, images, variants, swept, measurements, again)

    def check_selection(self, experiment: Experiment) -> None:
        count = len(self.truth(experiment).selections)
        if count < 2 * MIN_SUBSETS:
            message = f"a search selects on half of the subsets and reports the other half, which needs at least {2 * MIN_SUBSETS}"
            raise FieldError(self, "subsets", message, f"{count} subsets")

    def selection(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get) -> Selection:
        """Return the LDS of the first kind of queries on the even subsets, and rows of its variant on the odd ones.

        If the estimator has several variants, it is the one with the largest LDS on the even subsets.
        """
        name, estimator = next(iter(estimators.items()))
        nodes, truth = scores_of(experiment, {name: estimator}, self.queries), self.truth(experiment)
        scores, retrained = computed(nodes, get), self._measured(experiment)
        removed = self.subsets.removed(get(experiment.train))
        even = metrics.folds(len(removed)) == 0
        best, value, rows = 0, 0.0, []
        for number, kind in enumerate(self.queries):
            variants = [v for v in variants_for(kind, {name: estimator}, nodes, scores, get) if v.all_timesteps]
            predictions = np.stack([metrics.predicted(variant.scores.values, removed) for variant in variants])
            target = truth.measured(retrained[kind], get).mean(0)
            if number == 0:
                selecting = PERCENT * metrics.per_query(predictions[..., even], target[:, even]).mean(1)
                best, value = int(selecting.argmax()), float(selecting.max())
            held_out = metrics.lds(predictions[best, None][..., ~even], target[None][..., ~even], self.bootstrap) * PERCENT
            rows.append(
                Row(
                    benchmark=BENCHMARK,
                    metric=HELD_OUT_SUBSETS,
                    queries=kind,
                    subject=variants[best].subject,
                    estimate=held_out[0, 0].estimate(),
                    levels=levels(self.ceiling(truth.replicates(retrained[kind], get), int((~even).sum()))),
                    about={
                        "subsets": int((~even).sum()),
                        "seeds": self.seeds,
                        "held_out": "odd subsets: 1, 3, 5, ...",
                        "selected_on": f"even subsets, {next(iter(self.queries))} queries",
                        "selection_lds_%": value,
                    },
                )
            )
        return Selection(value, rows)

    def _trainings(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[dict[tuple[str, str], Node[Scores]]]:
        """The scores of every training of the explained model, by kind of queries and estimator."""
        members = [APART * i for i in range(self.trainings)]
        try:
            experiment.attributed.member(members[-1])
        except ValueError as error:
            raise FieldError(self, "trainings", "the explained model is given and cannot be trained again: set 1") from error
        return [scores_of(experiment, estimators, self.queries, member) for member in members]

    def _measured(self, experiment: Experiment) -> dict[str, list[Measured]]:
        """The measurements under all retrained models, by kind of queries."""
        truth = self.truth(experiment)
        return {kind: truth.nodes(self.measurement, queries.node(experiment)) for kind, queries in self.queries.items()}
