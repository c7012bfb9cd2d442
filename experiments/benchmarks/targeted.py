"""Targeted attribution (ReTrac §6.2, table 1, figure 6): does every query have its own proponents, or do all share them?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from attribution.checks import whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks import distinct
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.compare import compare
from experiments.benchmarks.proponents import report_proponents
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, computed, scores_of, variants_for
from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap
from experiments.metrics.correlation import split_half_spearman
from experiments.metrics.distinct import random_sets
from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.row import Levels, Row


@dataclass(frozen=True, kw_only=True)
class Targeted(QueryBenchmark):
    """The share of distinct examples among the top k of n queries, over many sets of n distinct queries from a pool.

    ``queries`` are the pools by kind. An example among the top ``shown`` of more than the share ``influential`` of the pool is
    generally influential: it has a box in the figures, which show ``shown`` proponents of the first ``rows`` queries.
    """

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
        scores = computed(nodes, get)
        train, shares = get(experiment.train), []
        for kind, queries in self.queries.items():
            node = queries.node(experiment)
            variants = variants_for(kind, estimators, nodes, scores, get)
            shares += report.add(self._shares(variants, random_sets(len(get(node)), self.n, self.sets, self.seed), kind))
            report.add(self._reliability(variants, kind))
            shown = [v for v in variants if v.all_timesteps]
            report_proponents(
                report,
                kind,
                get(node),
                train,
                {v.label: v.scores.values for v in shown},
                rows=range(min(self.rows, len(get(node)))),
                top=self.shown,
                boxed=distinct.boxes(shown, self.shown, self.influential),
                box_caption=distinct.box_caption(self.shown, self.influential),
            )
        levels = [row for row in shares if row.minus is None]
        report.figure("distinct_share", figures.distinct_share([row for row in levels if row.subject.all_timesteps]))
        sweep_figures(report, levels)

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], Node[Scores]]:
        self._check(experiment)
        return scores_of(experiment, estimators, self.queries)

    def _check(self, experiment: Experiment) -> None:
        """Check the settings before anything is trained."""
        distinct.check(self, experiment)
        for name in ("shown", "rows"):
            whole(self, name, least=1)

    def _shares(self, variants: Sequence[Variant], sets: np.ndarray, kind: str) -> Iterator[Row]:
        for k in self.k:
            yield from distinct.share_rows(variants, sets, k, benchmark="targeted", queries=kind)

    def _reliability(self, variants: Sequence[Variant], kind: str) -> list[Row]:
        """How well scores from one half of the query draws agree with those from the other."""
        bootstrap = Bootstrap(seed=self.seed)
        reliability = [(v.subject, split_half_spearman(v.scores.halves)) for v in variants if v.scores.halves is not None]
        return compare(
            [subject for subject, _ in reliability],
            [bootstrap.mean(values, limits=CORRELATION_LIMITS) for _, values in reliability],
            benchmark="targeted",
            metric="split_half_spearman",
            queries=kind,
            levels=Levels(random=0.0, maximum=1.0),
        )
