"""Do models of different training images agree about which samples are likely (K-FAC influence, fig. 17)?"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from attribution.checks import whole
from attribution.estimators import Estimator
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.subset_benchmark import SubsetBenchmark
from experiments.metrics.agreement import pearson_agreement, spearman_agreement
from experiments.metrics.correlation import pearson, spearman
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

BENCHMARK = "agreement"
WITH_ALL, OF_SUBSETS = Subject("all images and a subset"), Subject("two subsets")
STATISTICS = {"pearson": pearson_agreement, "spearman": spearman_agreement}


@dataclass(frozen=True, kw_only=True)
class Agreement(SubsetBenchmark):
    """The correlation over queries between a measurement under two models, of all pairs of models.

    The models are the explained one and those of ``subsets`` with the first training seed. A correlation near 1 says that the
    measurement depends on the query alone: no training image can be important for it. The figure has the first ``shown`` subsets.
    The scores of estimators do not enter.
    """

    shown: int = 4

    def __post_init__(self):
        super().__post_init__()
        whole(self, "shown", least=2)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return [node for nodes in self._measured(experiment).values() for node in nodes]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        for kind, nodes in self._measured(experiment).items():
            values = np.stack([costs.values for costs in get.many(nodes, "measuring")])  # [1 + M, Q], all images first
            report.add(self._rows(kind, values))
            shown = values[: 1 + self.shown]
            names = ["all images", *(f"subset {k}" for k in range(1, len(shown)))]
            title = f"{type(self.measurement).__name__} (larger is worse) of {values.shape[1]} {kind} queries under two models"
            report.figure(f"agreement_{kind}", figures.scatter_matrix(shown, names, title, {"r": pearson, "ρ": spearman}))

    def _rows(self, kind: str, values: np.ndarray) -> Iterator[Row]:
        pairs = np.array(list(itertools.combinations(range(len(values)), 2)))
        for subject, chosen in ((WITH_ALL, pairs[pairs[:, 0] == 0]), (OF_SUBSETS, pairs[pairs[:, 0] > 0])):
            for metric, agreement in STATISTICS.items():
                yield Row(
                    benchmark=BENCHMARK,
                    metric=metric,
                    queries=kind,
                    subject=subject,
                    estimate=agreement(values[chosen[:, 0]], values[chosen[:, 1]], self.bootstrap).estimate(),
                    levels=Levels(maximum=1.0),
                    about={"pairs": len(chosen), "n": values.shape[1]},
                )

    def _measured(self, experiment: Experiment) -> dict[str, list[Measured]]:
        """The measurements by kind of queries: under the model of all images, then under those of the subsets."""
        truth, measured = self.truth(experiment), {}
        for kind, queries in self.queries.items():
            images = queries.node(experiment)
            self.measurement.subject(images)
            of_subsets = truth.nodes(self.measurement, images)[: len(truth.selections)]
            measured[kind] = [self.under(experiment.trained, of_subsets[0]), *of_subsets]
        return measured
