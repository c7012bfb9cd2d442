"""Targeted attribution (ReTrac §6.2, table 1, figure 6): does every query get its own proponents, or all the same?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks import distinct
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, is_whole, pairs, scores_of, variants_of
from experiments.metrics import common as metrics
from experiments.models.experiment import Experiment
from experiments.queries.choices import Queries
from experiments.report.report import Report


@dataclass(frozen=True, kw_only=True)
class Targeted(Benchmark):
    """Share of distinct examples among the top k of n queries, over many sets of n distinct queries from a pool.

    ``queries`` are the pools by kind. ``influential``: an example among the top ``shown`` of more than this share of the pool
    is generally influential (boxed in the figures, which show ``shown`` proponents of the first ``rows`` queries).
    """

    queries: Mapping[str, Queries]
    n: int = 16
    k: Sequence[int] = (10, 50, 100)
    sets: int = 1000
    seed: int = 0
    influential: float = 0.1
    rows: int = 8
    shown: int = 6

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._scores(experiment, estimators).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = self._scores(experiment, estimators)
        scores = dict(zip(nodes, get.many(list(nodes.values())), strict=True))
        train = get(experiment.train)
        for kind, queries in self.queries.items():
            node = queries.node(experiment)
            variants = [
                variant
                for name, estimator in estimators.items()
                for variant in variants_of(name, estimator, nodes[kind, name], scores[kind, name])
            ]
            sets = metrics.random_sets(len(get(node)), self.n, self.sets, self.seed)
            report.add({"benchmark": "targeted", "queries": kind, **row} for row in self._rows(variants, sets))
            whole = [v for v in variants if v.whole]
            report.figure(
                f"proponents_{kind}",
                figures.proponents(
                    get(node),
                    train,
                    {v.label: v.scores.values for v in whole},
                    rows=range(min(self.rows, len(get(node)))),
                    top=self.shown,
                    boxed=distinct.boxes(whole, self.shown, self.influential),
                    boxed_means=distinct.boxed_means(self.shown, self.influential),
                ),
            )
        rows = [row for row in report.rows if row.get("random") is not None]
        report.figure("distinct_share", figures.distinct_share([row for row in rows if is_whole(row.get("swept") or {})]))
        sweep_figures(report, rows)

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], Node[Scores]]:
        self._check(experiment)
        return scores_of(experiment, estimators, self.queries)

    def _check(self, experiment: Experiment) -> None:
        """Before anything is trained: what would fail at the end."""
        distinct.check(experiment, self.queries, self.n, self.k, self.sets, self.seed)
        if self.shown < 1 or self.rows < 1:
            raise ValueError(f"benchmark.shown={self.shown}, benchmark.rows={self.rows}: both must be at least 1")

    def _rows(self, variants: Sequence[Variant], sets: np.ndarray) -> Iterator[dict[str, Any]]:
        for k in self.k:
            shares = [metrics.distinct_share(metrics.top_k(v.scores.values, k), sets) for v in variants]
            yield from distinct.share_rows(variants, shares, k, self.n)
            for a, b in pairs(variants):
                yield distinct.difference_row(variants[a], variants[b], (shares[a], shares[b]), k, self.n)
        for variant in variants:
            if variant.scores.halves is not None:
                reliability = metrics.bootstrap_mean(metrics.split_half_spearman(variant.scores.halves), seed=self.seed)
                yield {**variant.row, "metric": "split_half_spearman", **reliability._asdict()}
