"""Queries with their proponents and opponents, as several benchmarks report them: in a figure, and on the page of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attribution.images import Images
from experiments import figures
from experiments.report.attributions import Attributions
from experiments.report.report import Report


def report_proponents(
    report: Report,
    kind: str,
    queries: Images,
    train: Images,
    scores: Mapping[str, np.ndarray],
    rows: Sequence[int],
    noise: Mapping[str, np.ndarray] | None = None,
    **look: Any,
) -> None:
    """Draw ``rows`` of the queries as ``proponents_KIND``, and add all queries to the page.

    ``scores`` are τ ``[Q, N]`` by the label of the estimator, ``noise`` half the widths of their intervals, and ``look`` further
    arguments of :func:`figures.proponents`.
    """
    report.attribute(Attributions(kind, queries, train, scores, noise or {}))
    report.figure(f"proponents_{kind}", figures.proponents(queries, train, scores, rows, noise=noise, **look))
