"""What compressing query gradients costs (K-FAC influence, fig. 6): correlation with the uncompressed scores against the ratio."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attribution.estimators import Estimator
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.scores import Scores
from attribution.gradients.compression import Compression, Uncompressed
from attribution.nodes import Get, Node
from experiments import figures
from experiments.benchmarks.base import Benchmark
from experiments.benchmarks.variants import Variant, variants_of
from experiments.figures.mappings import mappings
from experiments.metrics import common as metrics
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.report.report import Report

HOW = ("compression", "kind", "ratio")


@dataclass(frozen=True, kw_only=True)
class CompressionFidelity(Benchmark):
    """Each estimator under each of ``compressions``, beside itself without.

    They share the queries' gradients, and as many of them a pass over the training set as ``estimator.query_batch`` allows.
    """

    queries: Mapping[str, Queries]
    compressions: Sequence[Compression]
    seed: int = 0

    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        return [node for *_, node in self._runs(experiment, estimators)]

    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        runs = list(self._runs(experiment, estimators))
        references: dict[tuple[str, str], list[Variant]] = {}
        scores = get.many([node for *_, node in runs])
        for (kind, name, estimator, node), found in zip(runs, scores, strict=True):
            variants = variants_of(name, estimator, node, found)
            if isinstance(estimator.compression, Uncompressed):
                references[kind, name] = variants
                continue
            basis = get(estimator.curvature.basis(experiment.record, experiment.train, estimator.flips))
            shapes = [values.shape for values in basis.values.values()]
            ratio = sum(map(Uncompressed().size, shapes)) / sum(map(estimator.compression.size, shapes))
            how = {"compression": estimator.compression.label, "kind": estimator.compression.kind, "ratio": round(ratio, 2)}
            for variant, reference in zip(variants, references[kind, name], strict=True):
                for row in self._rows(variant, reference):
                    swept = {**variant.settings, **how}
                    report.add([{"benchmark": "compression", "queries": kind, **row, "swept": swept}])
        drawn = [
            {**row, **row["swept"], "swept": {n: v for n, v in row["swept"].items() if n not in HOW}}
            for row in mappings(report.rows)
        ]
        report.figure("compression", figures.compression(drawn))

    def _rows(self, variant: Variant, reference: Variant) -> Iterator[dict[str, Any]]:
        for metric in (metrics.pearson, metrics.spearman):
            agreement = metric(variant.scores.values, reference.scores.values)
            estimate = metrics.bootstrap_mean(agreement, seed=self.seed)
            yield {**variant.row, "metric": metric.__name__, **estimate._asdict()}

    def _runs(
        self, experiment: Experiment, estimators: Mapping[str, Estimator]
    ) -> Iterator[tuple[str, str, KFACInfluence, Node[Scores]]]:
        for kind, queries in self.queries.items():
            for name, estimator in estimators.items():
                if not isinstance(estimator, KFACInfluence):
                    raise ValueError(
                        f"benchmark=compression: estimator={name} does not compress; choose kfac, ekfac or balanced_kfac"
                    )
                for compression in (Uncompressed(), *self.compressions):
                    compressed = replace(estimator, compression=compression)
                    yield kind, name, compressed, compressed.scores(experiment.record, experiment.train, queries.node(experiment))
