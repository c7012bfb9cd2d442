"""Targeted attribution (ReTrac §6.2, table 1, figure 6): does every query get its own proponents, or all the same?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.estimators import Estimator
from attribution.node import Get, Node
from attribution.scores import Scores
from experiments import figures
from experiments.benchmarks import metrics
from experiments.benchmarks.base import Benchmark
from experiments.experiment import Experiment
from experiments.queries import Queries
from experiments.report import Report


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
        self._check(experiment)
        nodes = self._scores(experiment, estimators)
        scores = dict(zip(nodes, get.many(list(nodes.values())), strict=True))
        train = get(experiment.train)
        for kind, queries in self.queries.items():
            node = queries.node(experiment)
            of_kind = {name: scores[kind, name] for name in estimators}
            origin = {name: nodes[kind, name].fingerprint for name in estimators}
            sets = metrics.random_sets(len(get(node)), self.n, self.sets, self.seed)
            report.add({"benchmark": "targeted", "queries": kind, **row} for row in self._rows(of_kind, sets, origin))
            tops = {name: metrics.top_k(s.values, min(self.shown, len(train))) for name, s in of_kind.items()}
            report.figure(
                f"proponents_{kind}",
                figures.proponents(
                    get(node),
                    train,
                    {name: s.values for name, s in of_kind.items()},
                    rows=range(min(self.rows, len(get(node)))),
                    top=self.shown,
                    boxed={name: set(metrics.generally_influential(top, self.influential)) for name, top in tops.items()},
                    boxed_means=f"generally influential: in the top {self.shown} of more than {self.influential:.0%} of the pool",
                ),
            )
        report.figure("distinct_share", figures.distinct_share([row for row in report.rows if row["benchmark"] == "targeted"]))

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], Node[Scores]]:
        return {
            (kind, name): estimator.scores(experiment.record, experiment.train, queries.node(experiment))
            for kind, queries in self.queries.items()
            for name, estimator in estimators.items()
        }

    def _check(self, experiment: Experiment) -> None:
        """Before anything is trained: what would fail at the end."""
        n = len(experiment.data.load().train)
        for k in self.k:
            if not 1 <= k <= n:
                raise ValueError(f"benchmark.k has {k}, but there are {n} training examples: set benchmark.k within 1..{n}")

    def _rows(self, scores: Mapping[str, Scores], sets: np.ndarray, origin: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        first = next(iter(scores))
        examples = scores[first].values.shape[1]
        for k in self.k:
            shares = {name: metrics.distinct_share(metrics.top_k(s.values, k), sets) for name, s in scores.items()}
            for name, share in shares.items():
                yield {
                    "estimator": name,
                    "metric": f"distinct_share@{k}",
                    **metrics.over_sets(share)._asdict(),
                    "random": metrics.random_distinct_share(examples, self.n, k),
                    "maximum": metrics.maximum_distinct_share(examples, self.n, k),
                    "k": k,
                    "n": self.n,
                    "scores": origin[name],
                }
            for name in list(shares)[1:]:
                difference = metrics.paired_difference(shares[first], shares[name])
                metric = f"distinct_share@{k}"
                yield {"estimator": f"{first} − {name}", "metric": metric, **difference._asdict(), "k": k, "n": self.n}
        for name, s in scores.items():
            if s.halves is not None:
                reliability = metrics.bootstrap_mean(metrics.split_half_spearman(s.halves), seed=self.seed)
                yield {"estimator": name, "metric": "split_half_spearman", **reliability._asdict(), "scores": origin[name]}
