"""Linear datamodeling score (Park et al. 2023): do scores predict what retraining on subsets does to a query?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.draws import DrawScheme
from attribution.estimators import Estimator
from attribution.measurements import Measure
from attribution.node import Get, Node
from attribution.scores import Scores
from attribution.training.modes import Mode
from experiments import figures
from experiments.benchmarks import lds_metrics, metrics
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.lds_metrics import Resamples
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, is_whole, scores_of, variants_of
from experiments.experiment import Experiment
from experiments.measuring import Measured
from experiments.queries import Queries
from experiments.report import Report
from experiments.subsets import Subsets
from experiments.truth import Truth

METRIC = "lds_%"
BEST = "lds_%_held_out_damping"
PERCENT = 100


@dataclass(frozen=True, kw_only=True)
class LDS(Benchmark):
    """Spearman's correlation over subsets between Σ_{i∉S} τ[q, i] and the measurement of q under models trained on S.

    Each subset is trained on with ``seeds`` training seeds for ``steps`` steps (None: for as many epochs as the model itself);
    ``measurement`` is the target, a mean over ``draws``, and need not be the estimators' own. Reported are the mean over queries
    with an interval (bootstrap over subsets and queries), for the dampings asked for and for the one that is best on the other
    half of the subsets, and exact retraining as an estimator and the noise ceiling: from all subsets if there are two seeds or
    more, from the first ``repeats``, which get a seed more, if there is one.
    """

    queries: Mapping[str, Queries]
    subsets: Subsets
    seeds: int
    repeats: int
    steps: int | None
    measurement: Measure
    draws: DrawScheme
    mode: Mode
    resamples: int = 1000
    seed: int = 0
    rows: int = 4
    shown: int = 6

    def __post_init__(self):
        for name in ("seeds", "steps", "resamples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"benchmark.{name}={getattr(self, name)}: must be at least 1")
        if self.repeats != 0 and self.repeats < 3:
            raise ValueError(f"benchmark.repeats={self.repeats}: give 0, or the at least 3 subsets that a correlation needs")

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        measured = [node for nodes in self._measured(experiment).values() for node in nodes]
        return [*scores_of(experiment, estimators, self.queries).values(), *measured]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        get.many(self.nodes(experiment, estimators))  # one list, which processes divide
        nodes, truth = scores_of(experiment, estimators, self.queries), self._truth(experiment)
        scores = dict(zip(nodes, get.many(list(nodes.values())), strict=True))
        of_kind = self._measured(experiment)
        train = get(experiment.train)
        removed = self.subsets.removed(train)
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
            values = {v.label: v.scores.values for v in variants if v.whole}
            report.figure(
                f"proponents_{kind}", figures.proponents(images, train, values, range(min(self.rows, len(images))), self.shown)
            )
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
        mean, resamples, repeated = measured.mean(0), self._resamples(measured), len(replicates) > 1
        ceiling = {"ceiling": PERCENT * lds_metrics.noise_ceiling(replicates, self.seeds)} if repeated else {}
        common = {"metric": METRIC, "subsets": len(removed), "seeds": self.seeds, **ceiling}
        predictions = [lds_metrics.predicted(variant.scores.values, removed) for variant in variants]
        for variant, prediction in zip(variants, predictions, strict=True):
            quartiles = np.percentile(lds_metrics.per_query(prediction, mean), [25, 50, 75])
            estimate = _percent(lds_metrics.lds(prediction, mean, resamples))
            yield {**variant.row, **common, **estimate, "quartiles_of_queries": PERCENT * quartiles}
        if repeated:
            estimate = _percent(lds_metrics.retraining(replicates, self._resamples(replicates)))
            yield {"estimator": "exact retraining", **common, "subsets": replicates.shape[2], "seeds": len(replicates), **estimate}
        for variant, prediction in list(zip(variants, predictions, strict=True))[1:]:
            if variant.whole:
                estimate = _percent(lds_metrics.difference(predictions[0], prediction, mean, resamples))
                yield {"estimator": f"{variants[0].label} − {variant.label}", "metric": METRIC, **estimate}

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

    def _resamples(self, measured: np.ndarray) -> Resamples:
        _, Q, M = measured.shape
        return Resamples.draw(M, Q, self.resamples, self.seed)

    def _measured(self, experiment: Experiment) -> dict[str, list[Measured]]:
        truth = self._truth(experiment)
        return {kind: truth.nodes(self.measurement, queries.node(experiment)) for kind, queries in self.queries.items()}

    def _truth(self, experiment: Experiment) -> Truth:
        train = experiment.data.load().train
        selections = self.subsets.selections(train)
        share = sum(len(selection) for selection in selections) / len(selections) / len(train)
        return Truth(
            record=experiment.record,
            selections=selections,
            seeds=[experiment.seed + 1 + seed for seed in range(self.seeds)],
            repeats=self.repeats if self.seeds == 1 else 0,
            steps=self.steps or round(share * experiment.trainer.steps),
            draws=self.draws,
            mode=self.mode,
            execution=experiment.execution,
        )


def _percent(estimate: metrics.Estimate) -> dict[str, float]:
    return {name: PERCENT * value for name, value in estimate._asdict().items()}
