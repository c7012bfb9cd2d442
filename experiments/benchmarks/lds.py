"""Linear datamodeling score (Park et al. 2023): do scores predict what retraining on subsets does to a query?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.checks import whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.compare import compare
from experiments.benchmarks.retrained import PERCENT, RETRAINING, SubsetBenchmark
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, scores_of, variants_of
from experiments.metrics import lds as metrics
from experiments.metrics.bootstrap import Bootstrap
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

BENCHMARK = "lds"
METRIC = "lds_%"
HELD_OUT = "lds_%_held_out_damping"


@dataclass(frozen=True)
class Measurements:
    """Of one kind of queries: ``measured [K, Q, M]``, ``replicates [K', Q, M']``; ``removed [M, N]``, the weights taken away."""

    measured: np.ndarray
    replicates: np.ndarray
    removed: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The target of the predictions, ``[Q, M]``."""
        return self.measured.mean(0)


@dataclass(frozen=True, kw_only=True)
class LDS(SubsetBenchmark):
    """Spearman's correlation over subsets between Σ_{i∉S} τ[q, i] and the measurement of q under models trained on S.

    The rows are means over queries with bootstrap intervals over subsets and queries: at the chosen dampings, and at the damping
    that is best on the other half of the subsets. Exact retraining as an estimator and the noise ceiling are from all subsets if
    there are two seeds or more, otherwise from those that are repeated. The figures show ``rows`` queries, each with ``shown``
    proponents.
    """

    rows: int = 4
    shown: int = 6

    def __post_init__(self):
        super().__post_init__()
        for name in ("rows", "shown"):
            whole(f"benchmark.{name}", getattr(self, name), 1)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        measured = [node for nodes in self._measured(experiment).values() for node in nodes]
        return [*scores_of(experiment, estimators, self.queries).values(), *measured]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes, truth = scores_of(experiment, estimators, self.queries), self.truth(experiment)
        scores = dict(zip(nodes, get.many(list(nodes.values())), strict=True))
        measured = self._measured(experiment)
        train = get(experiment.train)
        removed, bootstrap = self.subsets.removed(train), self.bootstrap
        values, held_out, table = [], [], []
        for kind, queries in self.queries.items():
            of_kind = Measurements(truth.measured(measured[kind], get), truth.replicates(measured[kind], get), removed)
            variants = [
                variant
                for name, estimator in estimators.items()
                for variant in variants_of(name, estimator, nodes[kind, name], scores[kind, name])
            ]
            images = get(queries.node(experiment))
            predictions = np.stack([metrics.predicted(variant.scores.values, removed) for variant in variants])
            per_query = PERCENT * metrics.per_query(predictions, of_kind.mean)
            values += report.add(self._rows(kind, variants, predictions, per_query, of_kind, bootstrap))
            for name in estimators:
                held_out += report.add(self._held_out(kind, name, nodes[kind, name], scores[kind, name], of_kind, bootstrap))
            table += _table(kind, images.index, variants, per_query)
            shown = {v.label: v.scores.values for v in variants if v.all_timesteps}
            report.figure(
                f"proponents_{kind}", figures.proponents(images, train, shown, range(min(self.rows, len(images))), self.shown)
            )
        report.table("lds_of_queries", table)
        values = [row for row in values if row.minus is None]
        bars = [row for row in [*values, *held_out] if row.subject.all_timesteps]
        report.figure("lds", figures.bars(bars, "LDS, %"))
        sweep_figures(report, values)

    def _rows(
        self,
        kind: str,
        variants: Sequence[Variant],
        predictions: np.ndarray,
        per_query: np.ndarray,
        of_kind: Measurements,
        bootstrap: Bootstrap,
    ) -> Iterator[Row]:
        """``predictions [P, Q, M]`` and their LDS ``per_query [P, Q]`` in per cent, of each variant."""
        levels = Levels(ceiling=self.ceiling(of_kind.replicates))
        values = metrics.lds(predictions, of_kind.mean[None], bootstrap) * PERCENT
        quartiles = np.percentile(per_query, [25, 50, 75], axis=1).T
        yield from compare(
            [variant.subject for variant in variants],
            [values[p, 0] for p in range(len(variants))],
            benchmark=BENCHMARK,
            metric=METRIC,
            queries=kind,
            levels=levels,
            about={"subsets": len(of_kind.removed), "seeds": self.seeds},
            about_each=[{"quartiles_of_queries": of_variant} for of_variant in quartiles],
        )
        if len(of_kind.replicates) > 1:
            seeds, _, subsets = of_kind.replicates.shape
            yield Row(
                benchmark=BENCHMARK,
                metric=METRIC,
                queries=kind,
                subject=Subject(RETRAINING),
                estimate=(metrics.retraining(of_kind.replicates[:, None], bootstrap) * PERCENT)[0, 0].estimate(),
                levels=levels,
                about={"subsets": subsets, "seeds": seeds},
            )

    def _held_out(
        self, kind: str, name: str, node: Node[Scores], scores: Scores, of_kind: Measurements, bootstrap: Bootstrap
    ) -> Iterator[Row]:
        """The LDS at the damping that is best on the other half of the subsets, for scores with several dampings."""
        if "damping" not in scores.axes:
            return
        fixed = {axis: values[-1] if axis == "draws" else values[0] for axis, values in scores.axes.items() if axis != "damping"}
        dampings = list(scores.axes["damping"])
        sweep = np.stack([metrics.predicted(scores.at(damping=d, **fixed).values, of_kind.removed) for d in dampings])
        value, chosen = metrics.cross_validated(sweep, of_kind.mean, bootstrap)
        yield Row(
            benchmark=BENCHMARK,
            metric=HELD_OUT,
            queries=kind,
            subject=Subject(name, scores=node.fingerprint),
            estimate=(value * PERCENT).estimate(),
            about={"dampings_chosen": [dampings[i] for i in chosen]},
        )

    def _measured(self, experiment: Experiment) -> dict[str, list[Measured]]:
        """By kind of queries, the measurements under all retrained models."""
        truth = self.truth(experiment)
        return {kind: truth.nodes(self.measurement, queries.node(experiment)) for kind, queries in self.queries.items()}


def _table(kind: str, index: np.ndarray, variants: Sequence[Variant], per_query: np.ndarray) -> Iterator[dict[str, object]]:
    """A line of the CSV for the LDS of every query under every variant."""
    for variant, values in zip(variants, per_query.tolist(), strict=True):
        for query, value in zip(index.tolist(), values, strict=True):
            yield {"queries": kind, "query": query, "estimator": variant.label, METRIC: value}
