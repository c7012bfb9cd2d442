"""Compression of query gradients (K-FAC influence, fig. 6): correlation with the uncompressed scores against the ratio."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from attribution.estimators import Estimator
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.scores import Scores
from attribution.gradients.compression import Compression, Uncompressed
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import QueryBenchmark
from experiments.benchmarks.compare import compare
from experiments.benchmarks.variants import Variant, variants_of
from experiments.metrics.bootstrap import CORRELATION_LIMITS, Bootstrap
from experiments.metrics.correlation import pearson, spearman
from experiments.models.experiment import Experiment
from experiments.report.report import Report
from experiments.report.row import Levels, Row

COMPRESSION = ("compression", "kind", "ratio")
"""The settings by which rows name a compression: its name, the name of its family, bytes before over bytes after."""

Compressed = tuple[str, str, float]
"""Values of ``COMPRESSION``."""


@dataclass(frozen=True, kw_only=True)
class CompressionFidelity(QueryBenchmark):
    """Each estimator with each of ``compressions``, compared with itself without compression.

    All compressions share the queries' gradients, and the passes over the training set if their queries fit into memory together.
    """

    compressions: Sequence[Compression]
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return [node for *_, node in self._runs(experiment, estimators)]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        runs = list(self._runs(experiment, estimators))
        references: dict[tuple[str, str], list[Variant]] = {}
        compressed: dict[tuple[str, Compressed], list[tuple[Variant, Variant]]] = {}
        for (kind, name, estimator, node), scores in zip(runs, get.many([node for *_, node in runs]), strict=True):
            variants = variants_of(name, estimator, node, scores, get)
            if isinstance(estimator.compression, Uncompressed):
                references[kind, name] = variants
                continue
            values = estimator.compression.label, estimator.compression.kind, _ratio(estimator, experiment, get)
            pairs = zip(variants, references[kind, name], strict=True)
            compressed.setdefault((kind, values), []).extend(pairs)
        bootstrap, rows = Bootstrap(seed=self.seed), []
        for (kind, values), pairs in compressed.items():
            rows += report.add(_rows(pairs, kind, values, bootstrap))
        shown = [row for row in rows if row.minus is None]
        report.figure("compression", figures.compression(shown))

    def _runs(
        self, experiment: Experiment, estimators: Mapping[str, Estimator]
    ) -> Iterator[tuple[str, str, KFACInfluence, Node[Scores]]]:
        """The kind of queries, the estimator's name, the estimator with one compression, and its scores."""
        for kind, queries in self.queries.items():
            for name, estimator in estimators.items():
                if not isinstance(estimator, KFACInfluence):
                    raise ValueError(
                        f"benchmark=compression: estimator={name} is not K-FAC influence; choose kfac, ekfac or balanced_kfac"
                    )
                for compression in (Uncompressed(), *self.compressions):
                    compressed = replace(estimator, compression=compression)
                    scores = compressed.scores(experiment.attributed, experiment.train, queries.node(experiment))
                    yield kind, name, compressed, scores


def _ratio(estimator: KFACInfluence, experiment: Experiment, get: Get) -> float:
    """Bytes of a query's gradients before compression over bytes after."""
    basis = get(estimator.curvature.basis(experiment.attributed, experiment.train, estimator.flips))
    shapes = [values.shape for values in basis.values.values()]
    return round(sum(map(Uncompressed().size, shapes)) / sum(map(estimator.compression.size, shapes)), 2)


def _rows(pairs: Sequence[tuple[Variant, Variant]], kind: str, values: Compressed, bootstrap: Bootstrap) -> Iterator[Row]:
    """The correlations of scores under one compression with the uncompressed scores, of all estimators."""
    for metric in (pearson, spearman):
        yield from compare(
            [variant.subject for variant, _ in pairs],
            [
                bootstrap.mean(metric(variant.scores.values, reference.scores.values), limits=CORRELATION_LIMITS)
                for variant, reference in pairs
            ],
            benchmark="compression",
            metric=metric.__name__,
            queries=kind,
            levels=Levels(random=0.0, maximum=1.0),
            swept=dict(zip(COMPRESSION, values, strict=True)),
        )
