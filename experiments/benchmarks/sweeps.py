"""Figures that every benchmark draws where settings were swept: curves over numbers, matrices over pairs of bins of timesteps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import figures
from experiments.benchmarks.variants import is_whole
from experiments.report.report import Report
from experiments.report.tables import differing_settings

LEAST = 3
"""Values that make a curve."""

Row = Mapping[str, Any]


def sweep_figures(report: Report, rows: Sequence[Row]) -> None:
    """A figure ``over_SETTING`` for each numeric setting with at least three values, and ``bins_..`` where rows are of bins."""
    whole = [row for row in rows if is_whole(row.get("swept") or {})]
    names = dict.fromkeys(name for row in whole for name in row.get("swept") or {})
    for name in names:
        values = [row["swept"][name] for row in whole if name in (row.get("swept") or {})]
        if all(isinstance(value, int | float) for value in values) and len(set(values)) >= LEAST:
            report.figure(f"over_{name.rpartition('.')[2]}", figures.curve(whole, name))
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row, settings in zip(rows, differing_settings(rows), strict=True):
        if "query_bin" in (row.get("swept") or {}):
            others = [f"{name.rpartition('.')[2]}={value}" for name, value in settings.items() if not name.endswith("_bin")]
            groups.setdefault((row["estimator"], row.get("queries") or "", row["metric"], *others), []).append(row)
    for (estimator, queries, metric, *others), group in groups.items():
        _bins(report, " ".join([estimator, *others]), queries, metric, group)


def _bins(report: Report, name: str, queries: str, metric: str, rows: Sequence[Row]) -> None:
    labels = list(dict.fromkeys(row["swept"]["query_bin"] for row in rows))
    values = np.full((len(labels), len(labels)), np.nan)
    for row in rows:
        if row["value"] is not None:
            values[labels.index(row["swept"]["query_bin"]), labels.index(row["swept"]["train_bin"])] = row["value"]
    title = f"{name}, {queries} queries: {metric.replace('_', ' ')}"
    figure = figures.matrix(
        values, labels, labels, title, metric.replace("_", " "), False, "timesteps of the query", "timesteps of the training image"
    )
    report.figure(f"bins_{queries}_{name}_{metric}".replace(" ", "_"), figure)
