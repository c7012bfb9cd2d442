"""Fewer timesteps on the query side (ReTrac §5.1, app. E, tables 3-5): how near do scores stay to those from all of them?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from attribution.checks import listed, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.estimators.trajectory import TrajectoryEstimator
from attribution.images import Images
from attribution.images.draws import DrawScheme, Even, Fixed, Uniform
from attribution.nodes import Get, Node
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.timestep_bias import replaying_only
from experiments.figures.mappings import mappings
from experiments.figures.sparse import sparse_timesteps
from experiments.metrics import common as metrics
from experiments.metrics import precision as tracing_metrics
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.report.report import Report
from experiments.speed.queries import query_seconds
from experiments.speed.timing import quotient

NAME = "sparse_timesteps"
ALL = "all"
SPEARMAN, FASTER = "spearman_with_all", "times_faster"
SOURCES = 2


@dataclass(frozen=True, kw_only=True)
class SparseTimesteps(Benchmark):
    """Each estimator with ``n`` even timesteps, with the one timestep ``fixed``, and with one random timestep for each query.

    Its draws alone are replaced. Reported are Spearman's correlation over training examples with the scores from all T timesteps,
    a mean over queries; how many times faster the query side is than with all T (``repeats`` rounds of all, in turns, of the first
    query); and for data of two labels the share of the top ``k`` proponents that have the query's. ``noises`` at each timestep.
    """

    queries: Mapping[str, Queries]
    n: Sequence[int] = (50, 100, 200)
    fixed: int = 500
    noises: int = 1
    k: int = 200
    repeats: int = 5
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._scores(experiment, self._checked(experiment, estimators)).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        replaying = self._checked(experiment, estimators)
        nodes, train = self._scores(experiment, replaying), get(experiment.train)
        schemes = list(self._schemes(experiment.diffusion.process.T))
        for kind, queries in self.queries.items():
            images = get(queries.node(experiment))
            scores = {(name, scheme): get(nodes[kind, name, scheme]) for name in replaying for scheme in schemes}
            rows = [*self._agreement(scores, list(replaying), schemes)]
            if len(np.unique(train.label)) == SOURCES:
                rows += self._precision(scores, list(replaying), schemes, train, images)
            origins = {(name, scheme): nodes[kind, name, scheme].fingerprint for name in replaying for scheme in schemes}
            report.add(
                {"benchmark": NAME, "queries": kind, "scores": origins.get((row["estimator"], row["swept"]["timesteps"])), **row}
                for row in rows
            )
        for name, estimator in replaying.items():
            report.add({"benchmark": NAME, "estimator": name, **row} for row in self._times(experiment, estimator, get))
        shown = [row for row in mappings(report.rows) if row["benchmark"] == NAME and "−" not in row["estimator"]]
        report.figure(NAME, sparse_timesteps(shown, SPEARMAN, FASTER))

    def _agreement(
        self, scores: Mapping[tuple[str, str], Scores], names: Sequence[str], schemes: Sequence[str]
    ) -> Iterator[dict[str, Any]]:
        found = {(name, scheme): metrics.spearman(of.values, scores[name, ALL].values) for (name, scheme), of in scores.items()}
        for name in names:
            halves = scores[name, ALL].halves
            assert halves is not None  # T is at least 2
            level = {"random": 0.0, "maximum": 1.0, "ceiling": float(_whole(metrics.split_half_spearman(halves)).mean())}
            for scheme in schemes[1:]:
                yield {**_row(name, SPEARMAN, scheme), **self._mean(found[name, scheme]), **level}
        for name in names[1:]:
            for scheme in schemes[1:]:
                difference = self._mean(found[names[0], scheme] - found[name, scheme])
                yield {**_row(f"{names[0]} − {name}", SPEARMAN, scheme), **difference}

    def _precision(
        self,
        scores: Mapping[tuple[str, str], Scores],
        names: Sequence[str],
        schemes: Sequence[str],
        train: Images,
        images: Images,
    ) -> Iterator[dict[str, Any]]:
        """Share of the top k that have the query's label, for the queries of each label."""
        for label in np.unique(train.label).tolist():
            chosen, own = np.flatnonzero(images.label == label), train.label == label
            if not len(chosen):
                continue
            metric = f"precision@{self.k}_of_label_{label}"
            levels = {"random": tracing_metrics.random_precision(own), "maximum": tracing_metrics.maximum_precision(own, self.k)}
            found = {
                key: tracing_metrics.precision(metrics.top_k(of.values[chosen], self.k), own, self.k) for key, of in scores.items()
            }
            for (name, scheme), shares in found.items():
                yield {**_row(name, metric, scheme), **self._mean(shares), **levels, "queries_n": len(chosen)}
            for name in names:
                for scheme in schemes[1:]:
                    difference = self._mean(found[name, ALL] - found[name, scheme])
                    yield {**_row(name, metric, f"{ALL} − {scheme}"), **difference}
            for name in names[1:]:
                for scheme in schemes:
                    difference = self._mean(found[names[0], scheme] - found[name, scheme])
                    yield {**_row(f"{names[0]} − {name}", metric, scheme), **difference}

    def _times(self, experiment: Experiment, estimator: TrajectoryEstimator, get: Get) -> Iterator[dict[str, Any]]:
        """The median of the rounds' ratios, with their quartiles; ``maximum``: the ratio of the numbers of passes.

        Measured anew by every run: how busy the machine is belongs in no store.
        """
        schemes = self._schemes(experiment.diffusion.process.T)
        queries = next(iter(self.queries.values())).node(experiment)
        seconds = query_seconds(estimator, experiment.record, queries, schemes, self.repeats, get)
        for name in list(schemes)[1:]:
            row = quotient(seconds[ALL], seconds[name])
            times = {"seconds": row.pop("reference_seconds"), "seconds_with_all": row.pop("seconds")}
            most = schemes[ALL].count / schemes[name].count
            yield {"metric": FASTER, "swept": {"timesteps": name}, **row, **times, "maximum": most}

    def _mean(self, values: np.ndarray) -> dict[str, float]:
        return metrics.bootstrap_mean(values, seed=self.seed)._asdict()

    def _schemes(self, T: int) -> dict[str, DrawScheme]:
        """All T timesteps first."""
        return {
            ALL: Even(T, self.noises, self.seed),
            **{f"{n} even": Even(n, self.noises, self.seed) for n in sorted(self.n, reverse=True)},
            f"only {self.fixed}": Fixed((self.fixed,), self.noises, self.seed),
            "1 random": Uniform(1, self.seed),
        }

    def _scores(
        self, experiment: Experiment, estimators: Mapping[str, TrajectoryEstimator]
    ) -> dict[tuple[str, str, str], Node[Scores]]:
        """By kind of queries, estimator and scheme."""
        return {
            (kind, name, scheme): replace(estimator, draws=draws).scores(
                experiment.record, experiment.train, queries.node(experiment)
            )
            for kind, queries in self.queries.items()
            for name, estimator in estimators.items()
            for scheme, draws in self._schemes(experiment.diffusion.process.T).items()
        }

    def _checked(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, TrajectoryEstimator]:
        """Before anything is trained: what would fail at the end."""
        T, train = experiment.diffusion.process.T, experiment.data.load().train
        listed("benchmark.n", self.n, partial(whole, least=1, most=T - 1))
        whole("benchmark.fixed", self.fixed, 1, T)
        if len(np.unique(train.label)) == SOURCES:
            whole("benchmark.k", self.k, 1, len(train))
        for name in ("noises", "repeats"):
            whole(f"benchmark.{name}", getattr(self, name), 1)
        if not self.queries:
            raise ValueError("benchmark.queries is empty: give at least one kind of queries")
        return replaying_only(estimators, NAME)


def _row(estimator: str, metric: str, timesteps: str) -> dict[str, Any]:
    return {"estimator": estimator, "metric": metric, "swept": {"timesteps": timesteps}}


def _whole(reliability: np.ndarray) -> np.ndarray:
    """What two independent wholes would agree in, from the agreement of halves: 2 r / (1 + r) (Spearman-Brown)."""
    return 2 * reliability / (1 + reliability)
