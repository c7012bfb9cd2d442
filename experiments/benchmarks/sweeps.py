"""Figures of swept settings, which benchmarks share: curves over numbers, matrices over pairs of bins of timesteps."""

from collections.abc import Sequence

import numpy as np

from experiments import figures
from experiments.report.report import Report
from experiments.report.row import Row
from experiments.report.tables import differing_settings

MIN_VALUES = 3
"""The fewest values that make a curve."""


def sweep_figures(report: Report, rows: Sequence[Row]) -> None:
    """Draw a figure ``over_SETTING`` for each numeric setting with at least three values, and ``bins_..`` for rows of bins.

    ``rows`` are rows of the report, without differences.
    """
    all_timesteps = [row for row in rows if row.subject.all_timesteps]
    for name in dict.fromkeys(name for row in all_timesteps for name in row.settings):
        values = [row.settings[name] for row in all_timesteps if name in row.settings]
        if all(isinstance(value, int | float) for value in values) and len(set(values)) >= MIN_VALUES:
            metrics = {row.metric for row in all_timesteps if name in row.settings}
            swept = [row for row in all_timesteps if row.metric in metrics]
            report.figure(f"over_{name.rpartition('.')[2]}", figures.curve(swept, name))
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row, settings in zip(rows, differing_settings(rows), strict=True):
        if "query_bin" in row.settings:
            others = [f"{name.rpartition('.')[2]}={value}" for name, value in settings.items() if not name.endswith("_bin")]
            groups.setdefault((row.estimator, row.queries or "", row.metric, *others), []).append(row)
    for (estimator, queries, metric, *others), group in groups.items():
        _bins(report, " ".join([estimator, *others]), queries, metric, group)


def _bins(report: Report, name: str, queries: str, metric: str, rows: Sequence[Row]) -> None:
    """Draw the matrix of one metric of one estimator over pairs of bins."""
    labels = list(dict.fromkeys(row.settings["query_bin"] for row in rows))
    values = np.full((len(labels), len(labels)), np.nan)
    for row in rows:
        values[labels.index(row.settings["query_bin"]), labels.index(row.settings["train_bin"])] = row.estimate.value
    title = f"{name}, {queries} queries: {metric.replace('_', ' ')}"
    figure = figures.matrix(
        values,
        labels,
        labels,
        title,
        metric.replace("_", " "),
        symmetric=False,
        row_name="timesteps of the query",
        column_name="timesteps of the training image",
    )
    report.figure(f"bins_{queries}_{name}_{metric}".replace(" ", "_"), figure)
