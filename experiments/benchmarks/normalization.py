"""Guided normalization at several strengths, from TracIn to ReTrac (ReTrac, appendix B and figure 11)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from attribution.checks import FieldError, listed, number, whole
from attribution.estimators import Estimator, Guided
from attribution.estimators.guided import SETTING
from attribution.estimators.scores import Scores
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks import distinct
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.source_precision import has_two_sources, precision_rows, source_queries
from experiments.benchmarks.variants import Variant, computed, scores_of, subject_of, variants_of
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.distinct import random_sets
from experiments.models.experiment import Experiment
from experiments.report.attributions import Attributions
from experiments.report.report import Report
from experiments.report.row import Row, Subject

BENCHMARK = "normalization"


@dataclass(frozen=True, kw_only=True)
class Normalization(QueryBenchmark):
    """Distinct shares, and on data of two sources the precision of tracing, against the strength λ of guided normalization.

    Guided estimators are evaluated at all ``strengths``; the figure of proponents shows the strengths in their settings. Other
    estimators are references: every strength is compared with each of them. ``queries``, ``n``, ``k``, ``sets``, ``influential``,
    ``rows`` and ``shown`` are as in ``Targeted``. If the training images have two labels, these are two sources, and precision@k is
    the share of the top k that are from the query's source, for the queries of each source.
    """

    strengths: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    n: int = 16
    k: Sequence[int] = (10, 50)
    sets: int = 1000
    seed: int = 0
    influential: float = 0.1
    rows: int = 16
    shown: int = 5

    def __post_init__(self):
        super().__post_init__()
        listed(self, "strengths", partial(number, least=0, most=1))
        if len(set(self.strengths)) < max(2, len(self.strengths)):
            raise FieldError(self, "strengths", "give two or more different numbers from 0 to 1")
        for name in ("rows", "shown"):
            whole(self, name, least=1)

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._scores(experiment, estimators).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = self._scores(experiment, estimators)
        scores = computed(nodes, get)
        train, rows = get(experiment.train), []
        for kind, queries in self.queries.items():
            images = get(queries.node(experiment))
            guided, references, columns = [], [], []
            for name, estimator in estimators.items():
                values, node = scores[kind, name], nodes[kind, name]
                if isinstance(estimator, Guided):
                    subject = subject_of(name, estimator, node, get)
                    guided += _at(estimator, self.strengths, values, subject)
                    columns += _at(estimator, sorted(estimator.strengths, reverse=True), values, subject)
                else:
                    variants = [v for v in variants_of(name, estimator, node, values, get) if v.all_timesteps]
                    references += variants
                    columns += variants
            rows += report.add(self._rows(kind, guided, references, images, train))
            figure = figures.side_by_side(
                images,
                train,
                {v.label: v.scores.values for v in columns},
                range(min(self.rows, len(images))),
                self.shown,
                distinct.boxes(columns, self.shown, self.influential),
                distinct.box_caption(self.shown, self.influential),
            )
            report.figure(f"side_by_side_{kind}", figure)
            report.attribute(Attributions(kind, images, train, {v.label: v.scores.values for v in columns}))
        rows = [row for row in rows if row.minus is None]
        for k in self.k:
            for name, metric in ((f"distinct_share_{k}", f"distinct_share@{k}"), (f"tracing_{k}", f"precision@{k}")):
                if shown := [row for row in rows if row.metric == metric]:
                    report.figure(f"{name}_over_strength", self._curve(shown))

    def _rows(
        self, kind: str, guided: Sequence[Variant], references: Sequence[Variant], images: Images, train: Images
    ) -> list[Row]:
        """Distinct shares and precisions, and their differences: every guided variant minus every reference."""
        variants = [*references, *guided]
        differences = [(g, r) for r, g in itertools.product(range(len(references)), range(len(references), len(variants)))]
        sets, rows = random_sets(len(images), self.n, self.sets, self.seed), []
        for k in self.k:
            rows += distinct.share_rows(variants, sets, k, benchmark=BENCHMARK, queries=kind, differences=differences)
        sources, bootstrap = np.unique(train.label), Bootstrap(seed=self.seed)
        if has_two_sources(train):
            for source in sources[np.isin(sources, images.label)].tolist():
                rows += precision_rows(
                    variants,
                    np.flatnonzero(images.label == source),
                    train.label == source,
                    self.k,
                    bootstrap,
                    benchmark=BENCHMARK,
                    queries=source_queries(kind, source),
                    differences=differences,
                )
        return rows

    def _curve(self, rows: Sequence[Row]) -> Figure:
        """The figure of one metric over λ, with a linear axis because λ lies in [0, 1]."""
        figure = figures.curve(rows, SETTING, "λ, strength of guided normalization")
        for panel in figure.axes:
            panel.set_xscale("linear")
            panel.set_xlim(min(self.strengths) - 0.05, max(self.strengths) + 0.05)
            panel.set_xticks(self.strengths, [f"{strength:g}" for strength in self.strengths])
        return figure

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], Node[Scores]]:
        """The scores of all estimators; the settings are checked first, before anything is trained."""
        if not any(isinstance(estimator, Guided) for estimator in estimators.values()):
            raise ValueError(
                f"benchmark=normalization has {', '.join(estimators)}: it needs guided normalization; choose "
                "estimator=guided, or add guided to benchmark.compare"
            )
        distinct.check(self, experiment)
        return scores_of(experiment, estimators, self.queries)


def _at(estimator: Guided, strengths: Sequence[float], scores: Scores, subject: Subject) -> list[Variant]:
    """The variants of a guided estimator at each of ``strengths``."""
    return [
        Variant(replace(subject, settings={SETTING: strength}), estimator.at_strength(scores, strength)) for strength in strengths
    ]
