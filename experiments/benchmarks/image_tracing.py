"""Image tracing (ReTrac §6.1, figures 4, 5, 12, 13, 16): are the proponents of an image from the image's own source?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from attribution.checks import listed, whole
from attribution.estimators import Estimator
from attribution.estimators.scores import Scores
from attribution.images import Images
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.compare import compare
from experiments.benchmarks.proponents import report_proponents
from experiments.benchmarks.source_precision import precision_rows, source_queries
from experiments.benchmarks.sweeps import sweep_figures
from experiments.benchmarks.variants import Variant, computed, scores_of, variants_for
from experiments.metrics.bootstrap import SHARE_LIMITS, Bootstrap
from experiments.metrics.estimate import exact_share
from experiments.metrics.precision import auroc, first_rank, random_first_rank
from experiments.models.experiment import Experiment
from experiments.queries.by_source import OfEachSource, check_sources
from experiments.queries.pixel_classifier import UNKNOWN, PixelClassifier
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

BENCHMARK = "image_tracing"
SHARE = "own source among the top k"


@dataclass(frozen=True, kw_only=True)
class ImageTracing(QueryBenchmark):
    """The share of the top k proponents that are from the query's source, for the queries of each source, over k.

    ``sources`` names the labels of the training set. A query without a label, such as a generated one, gets the label that a
    classifier of pixels predicts; the classifier's recall on held-out images is reported. The figures show ``rows`` queries of each
    source with ``shown`` proponents; proponents from another source have a box. Further figures show, for the same queries, the
    training images of other sources with the largest scores and their ranks.
    """

    sources: Mapping[int, str]
    k: Sequence[int] = (1, 5, 20, 100)
    seed: int = 0
    rows: int = 4
    shown: int = 6

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return list(self._scores(experiment, estimators).values())

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        nodes = self._scores(experiment, estimators)
        scores = computed(nodes, get)
        train, classifier, bootstrap = get(experiment.train), PixelClassifier(get(experiment.train)), Bootstrap(seed=self.seed)
        precisions = []
        for kind, queries in self.queries.items():
            node = queries.node(experiment)
            images, pool = get(node), get(node.pool if isinstance(node, OfEachSource) else node)
            labels = classifier.labels(images)
            if (unlabeled := pool.label == UNKNOWN).any():
                recall = classifier.recall(experiment.data.load().validation)
                report.add(self._classified(kind, classifier.labels(pool)[unlabeled], recall, train))
            variants = variants_for(kind, estimators, nodes, scores, get)
            for label, source in self.sources.items():
                rows = np.flatnonzero(labels == label)
                if not len(rows):
                    print(f"{kind} queries: no query out of {len(labels)} comes from source {source}; skipping {source}")
                    continue
                name, in_source = source_queries(kind, source), train.label == label
                at_k = precision_rows(variants, rows, in_source, self.k, bootstrap, benchmark=BENCHMARK, queries=name)
                precisions += report.add(at_k)
                report.add(_auroc_rows(variants, rows, in_source, bootstrap, name))
                report.add(_first_rank_rows(variants, rows, ~in_source, bootstrap, name))
                self._proponents(report, f"{kind}_{source}", images, train, variants, rows, label)
        precisions = [row for row in precisions if row.minus is None]
        shown = [row for row in precisions if row.subject.all_timesteps]
        report.figure("precision", figures.over_k(shown, SHARE))
        sweep_figures(report, precisions)

    def _classified(self, kind: str, labels: np.ndarray, recall: Mapping[int, np.ndarray], train: Images) -> Iterator[Row]:
        """How many images without a label the classifier assigns to each source, and how often it is right on held-out images."""
        for label, source in self.sources.items():
            shared = {"benchmark": BENCHMARK, "queries": kind, "subject": Subject(f"classified as {source} by pixels")}
            about = {"n": len(labels), "share_of_training": float((train.label == label).mean())}
            yield Row(metric="share_of_images", estimate=exact_share(labels == label), about=about, **shared)
            if label in recall:
                yield Row(
                    metric="recall_on_held_out",
                    estimate=exact_share(recall[label]),
                    levels=Levels(random=1 / len(self.sources)),
                    about={"n": len(recall[label])},
                    **shared,
                )

    def _proponents(
        self, report: Report, name: str, images: Images, train: Images, variants: Sequence[Variant], rows: np.ndarray, label: int
    ) -> None:
        """Report the proponents of the queries of one source; the figure has the first ``self.rows`` of them."""
        shown = {v.label: np.asarray(v.scores.values)[rows] for v in variants if v.all_timesteps}
        others = np.flatnonzero(train.label != label).tolist()
        images, drawn = images.take(rows), range(min(self.rows, len(rows)))
        report_proponents(
            report,
            name,
            images,
            train,
            shown,
            rows=drawn,
            top=self.shown,
            neutral=0,
            boxed=dict.fromkeys(shown, others),
            box_caption=f"not of the query's source, {self.sources[label]}",
        )
        foreign = figures.ranks_of_chosen(images, train, shown, drawn, others, self.shown)
        report.figure(f"other_sources_{name}", foreign)

    def _scores(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[tuple[str, str], Node[Scores]]:
        self._check(experiment.data.load().train)
        return scores_of(experiment, estimators, self.queries)

    def _check(self, train: Images) -> None:
        """Check the settings before anything is trained."""
        check_sources(self.sources, train)
        listed(self, "k", partial(whole, least=1, most=len(train)))  # of the training images
        for name in ("rows", "shown"):
            whole(self, name, least=1)


def _auroc_rows(
    variants: Sequence[Variant], rows: np.ndarray, in_source: np.ndarray, bootstrap: Bootstrap, queries: str
) -> list[Row]:
    """The AUROC of scores as detectors of the query's source, for the queries in ``rows``."""
    return compare(
        [variant.subject for variant in variants],
        [bootstrap.mean(auroc(variant.scores.values[rows], in_source), limits=SHARE_LIMITS) for variant in variants],
        benchmark=BENCHMARK,
        metric="auroc",
        queries=queries,
        levels=Levels(random=0.5, maximum=1.0),
        about={"queries_n": len(rows)},
    )


def _first_rank_rows(
    variants: Sequence[Variant], rows: np.ndarray, others: np.ndarray, bootstrap: Bootstrap, queries: str
) -> list[Row]:
    """The rank of the first training image of another source, for the queries in ``rows``."""
    return compare(
        [variant.subject for variant in variants],
        [bootstrap.mean(first_rank(variant.scores.values[rows], others)) for variant in variants],
        benchmark=BENCHMARK,
        metric="first_rank_of_other_source",
        queries=queries,
        levels=Levels(random=random_first_rank(others), maximum=float(len(others) - others.sum() + 1)),
        about={"queries_n": len(rows)},
    )
