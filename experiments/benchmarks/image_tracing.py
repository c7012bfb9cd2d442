"""Image tracing (ReTrac §6.1, figures 4, 5, 13): are an image's proponents from the source that the image is from?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from attribution.checks import listed, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, is_whole, scores_of, variants_of
from experiments.figures.mappings import mappings
from experiments.metrics import common as metrics
from experiments.metrics import precision as tracing_metrics
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.queries.by_source import OfEachSource, check_sources
from experiments.queries.pixel_classifier import UNKNOWN, PixelClassifier, share
from experiments.report.report import Report

SHARE = "own source among the top k"


@dataclass(frozen=True, kw_only=True)
class ImageTracing(Benchmark):
    """Share of the top k proponents that are of the query's own source, for the queries of each source, over k.

    ``sources`` names the labels of the training set. Queries without a label, as generated ones, are of the source that a
    classifier sees in their pixels; how often it is right on held-out images is reported. ``rows`` queries of each source are
    shown with ``shown`` proponents, those of another source boxed.
    """

    queries: Mapping[str, Queries]
    sources: Mapping[int, str]
    k: Sequence[int] = (1, 5, 20, 100)
    seed: int = 0
    rows: int = 4
    shown: int = 6

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._scores(experiment, estimators).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = self._scores(experiment, estimators)
        scores = dict(zip(nodes, get.many(list(nodes.values()), "scores"), strict=True))
        train, classifier = get(experiment.train), PixelClassifier(get(experiment.train))
        for kind, queries in self.queries.items():
            node = queries.node(experiment)
            images, pool = get(node), get(node.pool if isinstance(node, OfEachSource) else node)
            labels = classifier.labels(images)
            if (pool.label == UNKNOWN).any():
                told, recall = classifier.labels(pool)[pool.label == UNKNOWN], classifier.recall(experiment.data.load().validation)
                report.add(self._told(kind, told, recall, train))
            variants = [
                variant
                for name, estimator in estimators.items()
                for variant in variants_of(name, estimator, nodes[kind, name], scores[kind, name])
            ]
            for label, source in self.sources.items():
                chosen = np.flatnonzero(labels == label)
                if not len(chosen):
                    print(f"{kind} queries: none of {len(labels)} is of the source {source}, which is left out")
                    continue
                common = {"benchmark": "image_tracing", "queries": f"{kind} {source}", "queries_n": len(chosen)}
                report.add({**common, **row} for row in self._rows(variants, chosen, train.label == label))
                self._proponents(report, f"{kind}_{source}", images, train, variants, chosen, label)
        rows = [row for row in mappings(report.rows) if row.get("k") is not None and row.get("random") is not None]
        report.figure("precision", figures.over_k([row for row in rows if is_whole(row.get("swept") or {})], SHARE))
        sweep_figures(report, rows)

    def _rows(self, variants: Sequence[Variant], chosen: np.ndarray, own: np.ndarray) -> Iterator[dict[str, Any]]:
        """``chosen``: the rows of the scores with the queries of one source; ``own [N]``: the training images of that source."""
        values = [variant.scores.values[chosen] for variant in variants]
        tops = [metrics.top_k(v, max(self.k)) for v in values]
        measured = [
            (
                {"metric": f"precision@{k}", "k": k},
                [tracing_metrics.precision(top, own, k) for top in tops],
                {"random": tracing_metrics.random_precision(own), "maximum": tracing_metrics.maximum_precision(own, k)},
            )
            for k in self.k
        ]
        measured.append(({"metric": "auroc"}, [tracing_metrics.auroc(v, own) for v in values], {"random": 0.5, "maximum": 1.0}))
        for metric, of_queries, levels in measured:
            for variant, queries in zip(variants, of_queries, strict=True):
                yield {**variant.row, **metric, **metrics.bootstrap_mean(queries, seed=self.seed)._asdict(), **levels}
            for variant, queries in list(zip(variants, of_queries, strict=True))[1:]:
                if variant.whole:
                    difference = metrics.bootstrap_mean(of_queries[0] - queries, seed=self.seed)
                    label = f"{variants[0].label} − {variant.label}"
                    yield {"estimator": label, **metric, **difference._asdict(), "scores": [variants[0].origin, variant.origin]}

    def _told(
        self, kind: str, told: np.ndarray, recall: Mapping[int, Mapping[str, Any]], train: Images
    ) -> Iterator[dict[str, Any]]:
        for label, source in self.sources.items():
            row = {"benchmark": "image_tracing", "queries": kind, "estimator": f"told to be {source}, by pixels"}
            training = float((train.label == label).mean())
            yield {**row, "metric": "share_of_images", **share(told == label), "share_of_training": training}
            if label in recall:
                yield {**row, "metric": "recall_on_held_out", **recall[label], "random": 1 / len(self.sources)}

    def _proponents(
        self, report: Report, name: str, images: Images, train: Images, variants: Sequence[Variant], chosen: np.ndarray, label: int
    ) -> None:
        whole = {v.label: v.scores.values for v in variants if v.whole}
        others = np.flatnonzero(train.label != label).tolist()
        figure = figures.proponents(
            images,
            train,
            whole,
            rows=chosen[: self.rows].tolist(),
            top=self.shown,
            neutral=0,
            boxed=dict.fromkeys(whole, others),
            boxed_means=f"not of the query's source, {self.sources[label]}",
        )
        report.figure(f"proponents_{name}", figure)

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], Node[Scores]]:
        self._check(experiment.data.load().train)
        return scores_of(experiment, estimators, self.queries)

    def _check(self, train: Images) -> None:
        """Before anything is trained: what would fail at the end."""
        check_sources(self.sources, train)
        listed("benchmark.k", self.k, partial(whole, least=1, most=len(train)))  # of the training images
        for name in ("rows", "shown"):
            whole(f"benchmark.{name}", getattr(self, name), 1)
