"""Precision by source (ReTrac §6.1), as several benchmarks report it: the rows of one source's queries."""

from collections.abc import Iterator, Sequence

import numpy as np

from attribution.images import Images
from experiments.benchmarks.compare import compare
from experiments.benchmarks.variants import Variant
from experiments.metrics import precision as metrics
from experiments.metrics.bootstrap import SHARE_LIMITS, Bootstrap
from experiments.metrics.ranking import top_k
from experiments.report.row import Levels, Row


def has_two_sources(train: Images) -> bool:
    """Whether the training images have two labels, which are then taken as their sources."""
    return len(np.unique(train.label)) == 2


def precision_rows(
    variants: Sequence[Variant],
    rows: np.ndarray,
    in_source: np.ndarray,
    k: Sequence[int],
    bootstrap: Bootstrap,
    *,
    benchmark: str,
    queries: str,
    differences: Sequence[tuple[int, int]] | None = None,
) -> Iterator[Row]:
    """Precision@k of each variant and of the differences, for each ``k``.

    Args:
        rows: the rows of the scores that belong to the queries of one source.
        in_source: which training images are of that source, bool ``[N]``.
        queries: the kind of queries and the source.
    """
    tops = [top_k(variant.scores.values[rows], max(k)) for variant in variants]
    for number in k:
        yield from compare(
            [variant.subject for variant in variants],
            [bootstrap.mean(metrics.source_precision(top, in_source, number), limits=SHARE_LIMITS) for top in tops],
            benchmark=benchmark,
            metric=f"precision@{number}",
            queries=queries,
            levels=Levels(random=metrics.random_precision(in_source), maximum=metrics.maximum_precision(in_source, number)),
            about={"k": number, "queries_n": len(rows)},
            differences=differences,
        )


def source_queries(kind: str, source: str | int) -> str:
    """The name that rows give to the queries of one source; an integer is the label of a source without a name."""
    return f"{kind} source {source}" if isinstance(source, int) else f"{kind} {source}"
