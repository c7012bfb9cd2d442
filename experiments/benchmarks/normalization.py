"""How strongly to normalize (ReTrac, appendix B and figure 11): from ReTrac by guided normalization to TracIn."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from attribution.checks import listed, number, whole
from attribution.estimators import Estimator, Guided
from attribution.estimators.guided import SETTING
from attribution.estimators.scores import Scores
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks import distinct
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.variants import Variant, scores_of, variants_of
from experiments.figures.mappings import mappings
from experiments.metrics import common as metrics
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.report.report import Report

TWO_SOURCES = 2


@dataclass(frozen=True, kw_only=True)
class Normalization(Benchmark):
    """Distinct shares, and on data of two sources the precision of tracing, against the strength λ of guided normalization.

    Guided estimators are judged at all ``strengths``, at their own in the figure of proponents; others are levels beside them.
    ``queries``, ``n``, ``k``, ``sets``, ``influential``, ``rows``, ``shown``: as in ``Targeted``. Two labels among the training
    images are two sources: precision@k is then the share of the top k that are of the query's own source, for queries of each.
    """

    queries: Mapping[str, Queries]
    strengths: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    n: int = 16
    k: Sequence[int] = (10, 50)
    sets: int = 1000
    seed: int = 0
    influential: float = 0.1
    rows: int = 16
    shown: int = 5

    def __post_init__(self):
        listed("benchmark.strengths", self.strengths, partial(number, least=0, most=1))
        if len(set(self.strengths)) < max(2, len(self.strengths)):
            raise ValueError(f"benchmark.strengths={list(self.strengths)}: give two or more different numbers from 0 to 1")
        for name in ("rows", "shown"):
            whole(f"benchmark.{name}", getattr(self, name), 1)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._scores(experiment, estimators).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = self._scores(experiment, estimators)
        scores = dict(zip(nodes, get.many(list(nodes.values()), "scores"), strict=True))
        train = get(experiment.train)
        for kind, queries in self.queries.items():
            images = get(queries.node(experiment))
            guided, levels, columns = [], [], []
            for name, estimator in estimators.items():
                found, origin = scores[kind, name], nodes[kind, name]
                own = [variant for variant in variants_of(name, estimator, origin, found) if variant.whole]
                if isinstance(estimator, Guided):
                    guided += _at(name, estimator, self.strengths, found, origin.fingerprint)
                    columns += _at(name, estimator, sorted(estimator.strengths, reverse=True), found, origin.fingerprint)
                else:
                    levels += own
                    columns += own
            sets = metrics.random_sets(len(images), self.n, self.sets, self.seed)
            rows = [*self._shares(guided, levels, sets), *self._precisions(guided, levels, images, train)]
            report.add({"benchmark": "normalization", "queries": kind, **row} for row in rows)
            figure = figures.side_by_side(
                images,
                train,
                {v.label: v.scores.values for v in columns},
                range(min(self.rows, len(images))),
                self.shown,
                distinct.boxes(columns, self.shown, self.influential),
                distinct.boxed_means(self.shown, self.influential),
            )
            report.figure(f"side_by_side_{kind}", figure)
        rows = [row for row in mappings(report.rows) if row["benchmark"] == "normalization" and "−" not in row["estimator"]]
        for k in self.k:
            for name, metric in ((f"distinct_share_{k}", f"distinct_share@{k}"), (f"tracing_{k}", f"precision@{k} of")):
                if some := [row for row in rows if row["k"] == k and row["metric"].startswith(metric)]:
                    report.figure(f"{name}_over_strength", self._curve(some))

    def _curve(self, rows: Sequence[Mapping[str, Any]]) -> Figure:
        figure = figures.curve(rows, SETTING, "λ, strength of guided normalization")
        for panel in figure.axes:  # λ is a share: no logarithm
            panel.set_xscale("linear")
            panel.set_xlim(min(self.strengths) - 0.05, max(self.strengths) + 0.05)
            panel.set_xticks(self.strengths, [f"{strength:g}" for strength in self.strengths])
        return figure

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], Node[Scores]]:
        """After what would fail at the end was checked, before anything is trained."""
        if not any(isinstance(estimator, Guided) for estimator in estimators.values()):
            raise ValueError(
                f"benchmark=normalization has {', '.join(estimators)}: it is about guided normalization; choose "
                "estimator=guided, or have guided in benchmark.compare"
            )
        distinct.check(experiment, self.queries, self.n, self.k, self.sets, self.seed)
        return scores_of(experiment, estimators, self.queries)

    def _shares(self, guided: Sequence[Variant], levels: Sequence[Variant], sets: np.ndarray) -> Iterator[dict[str, Any]]:
        variants = [*levels, *guided]
        for k in self.k:
            shares = [metrics.distinct_share(metrics.top_k(v.scores.values, k), sets) for v in variants]
            yield from distinct.share_rows(variants, shares, k, self.n)
            for (level, below), (variant, share) in _pairs(levels, guided, shares):
                yield distinct.difference_row(variant, level, (share, below), k, self.n)

    def _precisions(
        self, guided: Sequence[Variant], levels: Sequence[Variant], queries: Images, train: Images
    ) -> Iterator[dict[str, Any]]:
        sources = np.unique(train.label)
        if len(sources) != TWO_SOURCES:
            return
        for source in sources[np.isin(sources, queries.label)].tolist():
            asked, own = queries.label == source, train.label == source
            for k in self.k:
                metric = {"metric": f"precision@{k} of source {source}", "k": k}
                found = [own[metrics.top_k(v.scores.values[asked], k)].mean(1) for v in [*levels, *guided]]
                reference = {"random": float(own.mean()), "maximum": min(1.0, float(own.sum()) / k)}
                for variant, precision in zip([*levels, *guided], found, strict=True):
                    estimate = metrics.bootstrap_mean(precision, seed=self.seed)
                    yield {**variant.row, **metric, **estimate._asdict(), **reference}
                for (level, below), (variant, precision) in _pairs(levels, guided, found):
                    estimate = metrics.bootstrap_mean(precision - below, seed=self.seed)
                    label, origins = f"{variant.label} − {level.label}", [variant.origin, level.origin]
                    yield {"estimator": label, **metric, **estimate._asdict(), "scores": origins}


def _pairs(
    levels: Sequence[Variant], guided: Sequence[Variant], values: Sequence[np.ndarray]
) -> Iterator[tuple[tuple[Variant, np.ndarray], tuple[Variant, np.ndarray]]]:
    """Every level with every guided variant, each with its own of the ``values``, those of levels first."""
    yield from itertools.product(
        zip(levels, values[: len(levels)], strict=True), zip(guided, values[len(levels) :], strict=True)
    )  # fmt: skip


def _at(name: str, estimator: Guided, strengths: Sequence[float], scores: Scores, origin: str) -> list[Variant]:
    return [Variant(name, {SETTING: strength}, estimator.at_strength(scores, strength), origin) for strength in strengths]
