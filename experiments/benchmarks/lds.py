"""Linear datamodeling score (Park et al. 2023): do scores predict what retraining on subsets does to a query?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.checks import whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.retrained import SubsetBenchmark
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, is_whole, pairs, scores_of, variants_of
from experiments.metrics import common as metrics
from experiments.metrics import lds as lds_metrics
from experiments.models.experiment import Experiment
from experiments.models.measured import Measured
from experiments.report.report import Report

METRIC = "lds_%"
BEST = "lds_%_held_out_damping"
PERCENT = 100


@dataclass(frozen=True, kw_only=True)
class LDS(SubsetBenchmark):
    """Spearman's correlation over subsets between Σ_{i∉S} τ[q, i] and the measurement of q under models trained on S.

    Reported are the mean over queries with an interval (bootstrap over subsets and queries), for the dampings asked for and for the
    one that is best on the other half of the subsets, and exact retraining as an estimator and the noise ceiling: from all subsets
    if there are two seeds or more, else from those that are repeated. The figures show ``rows`` queries, each with ``shown``
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
        of_kind = self._measured(experiment)
        train = get(experiment.train)
        removed, of_queries = self.subsets.removed(train), []
        for kind, queries in self.queries.items():
            measured, replicates = truth.measured(of_kind[kind], get), truth.replicates(of_kind[kind], get)
            variants = [
                variant
                for name, estimator in estimators.items()
                for variant in variants_of(name, estimator, nodes[kind, name], scores[kind, name])
            ]
            report.add({"benchmark": "lds", "queries": kind, **row} for row in self._rows(variants, measured, replicates, removed))
            report.add(
                {"benchmark": "lds", "queries": kind, **row}
                for name in estimators
                for row in self._held_out(name, nodes[kind, name], scores[kind, name], measured, removed)
            )
            images = get(queries.node(experiment))
            for variant in variants:
                lds = lds_metrics.per_query(lds_metrics.predicted(variant.scores.values, removed), measured.mean(0))
                of_queries += [
                    {"queries": kind, "query": query, "estimator": variant.label, METRIC: PERCENT * value}
                    for query, value in zip(images.index.tolist(), lds.tolist(), strict=True)
                ]
            values = {v.label: v.scores.values for v in variants if v.whole}
            report.figure(
                f"proponents_{kind}", figures.proponents(images, train, values, range(min(self.rows, len(images))), self.shown)
            )
        report.table("lds_of_queries", of_queries)
        rows = [
            row
            for row in report.rows
            if row["benchmark"] == "lds" and row["metric"] in (METRIC, BEST) and "−" not in row["estimator"]
        ]
        report.figure("lds", figures.bars([row for row in rows if is_whole(row.get("swept") or {})], "LDS, %"))
        sweep_figures(report, [row for row in rows if row["metric"] == METRIC])

    def _rows(
        self, variants: Sequence[Variant], measured: np.ndarray, replicates: np.ndarray, removed: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        mean, resamples, repeated = measured.mean(0), self.resamples_of(measured), len(replicates) > 1
        ceiling = {"ceiling": PERCENT * lds_metrics.noise_ceiling(replicates, self.seeds)} if repeated else {}
        common = {"metric": METRIC, "subsets": len(removed), "seeds": self.seeds, **ceiling}
        predictions = [lds_metrics.predicted(variant.scores.values, removed) for variant in variants]
        for variant, prediction in zip(variants, predictions, strict=True):
            quartiles = np.percentile(lds_metrics.per_query(prediction, mean), [25, 50, 75])
            estimate = _percent(lds_metrics.lds(prediction, mean, resamples))
            yield {**variant.row, **common, **estimate, "quartiles_of_queries": PERCENT * quartiles}
        if repeated:
            estimate = _percent(lds_metrics.retraining(replicates, self.resamples_of(replicates)))
            yield {"estimator": "exact retraining", **common, "subsets": replicates.shape[2], "seeds": len(replicates), **estimate}
        for a, b in pairs(variants):
            estimate = _percent(lds_metrics.difference(predictions[a], predictions[b], mean, resamples))
            about = {"metric": METRIC, "scores": [variants[a].origin, variants[b].origin]}
            yield {"estimator": f"{variants[a].label} − {variants[b].label}", **about, **estimate}

    def _held_out(
        self, name: str, node: Node[Scores], scores: Scores, measured: np.ndarray, removed: np.ndarray
    ) -> Iterator[dict[str, Any]]:
        if "damping" not in scores.axes:
            return
        fixed = {axis: values[-1] if axis == "draws" else values[0] for axis, values in scores.axes.items() if axis != "damping"}
        dampings = list(scores.axes["damping"])
        sweep = np.stack([lds_metrics.predicted(scores.at(damping=d, **fixed).values, removed) for d in dampings])
        estimate, chosen = lds_metrics.cross_validated(sweep, measured.mean(0), self.resamples, self.seed)
        row = {"estimator": name, "metric": BEST, **_percent(estimate), "scores": node.fingerprint}
        yield {**row, "dampings_chosen": [dampings[i] for i in chosen]}

    def _measured(self, experiment: Experiment) -> dict[str, list[Measured]]:
        truth = self.truth(experiment)
        return {kind: truth.nodes(self.measurement, queries.node(experiment)) for kind, queries in self.queries.items()}


def _percent(estimate: metrics.Estimate) -> dict[str, float]:
    return {name: PERCENT * value for name, value in estimate._asdict().items()}
