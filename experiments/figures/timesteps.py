"""Values at chosen timesteps, at even distances whatever the timesteps are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.intervals import draw_interval, draw_level, name_intervals
from experiments.figures.noise_axis import log_snr_labels
from experiments.figures.style import COLORS, DPI, LINES, MARKERS, WIDEST, legend, plain_frame, series_label
from experiments.report.row import Row
from experiments.report.tables import REFERENCES, differing_settings

_STEP = 0.62
"""Inches between neighboring timesteps."""
_GAP, _SPREAD = 0.5, 0.5
"""In units of ``_STEP``: the additional space before "all", and the width over which the series of a timestep spread."""

Timestep = int | str
"""A timestep, or "all"."""


def by_timestep(rows: Sequence[Row], x: str, x_name: str, value_name: str, log_snr: np.ndarray) -> Figure:
    """Values with intervals at each timestep, a panel for each kind of queries; series are side by side.

    Rows have the timestep in their setting ``x``. Text instead of a timestep ("all") is placed apart, after the timesteps, not
    joined by a line. The ``ceiling`` of a timestep is a line over its position, ``random`` a line across. An unknown value leaves a
    gap. ``log_snr [T]`` is that of t = 1..T.
    """
    settings = [{name: value for name, value in differing.items() if name != x} for differing in differing_settings(rows)]
    labels = [series_label(row.estimator, others) for row, others in zip(rows, settings, strict=True)]
    names, kinds = list(dict.fromkeys(labels)), list(dict.fromkeys(row.queries for row in rows)) or [None]
    places = _places(list(dict.fromkeys(row.settings[x] for row in rows)))
    panel = max(3.6, 0.9 + _STEP * (len(places) + _GAP))
    down, across = (1, len(kinds)) if 0.6 + len(kinds) * panel <= WIDEST else (len(kinds), 1)
    figure = Figure((min(WIDEST, 0.6 + across * panel), 0.6 + 3.4 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, kind in zip(grid.flat, kinds, strict=True):
        in_panel = [(row, label) for row, label in zip(rows, labels, strict=True) if row.queries == kind]
        for rank, name in enumerate(names):
            offset = _SPREAD * ((rank + 0.5) / len(names) - 0.5)
            _series(axes, {row.settings[x]: row for row, label in in_panel if label == name}, places, offset, name, rank)
        name_intervals(axes, [row.estimate for row, _ in in_panel])
        _levels(axes, {row.settings[x]: row for row, _ in in_panel}, places)
        axes.set_xticks(list(places.values()), [str(t) for t in places])
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        axes.set_xlabel(x_name)
        plain_frame(axes)
        log_snr_labels(axes, log_snr, {t: place for t, place in places.items() if isinstance(t, int)})
    for axes in grid[:, 0]:
        axes.set_ylabel(value_name)
    legend(figure, figure.axes, [*names, *REFERENCES.values()])
    return figure


def _places(timesteps: Sequence[Timestep]) -> dict[Timestep, float]:
    """The position of each: timesteps in ascending order, then texts."""
    numbers, texts = sorted(t for t in timesteps if isinstance(t, int)), [t for t in timesteps if isinstance(t, str)]
    return {t: i + _GAP * isinstance(t, str) for i, t in enumerate([*numbers, *texts])}


def _series(
    axes: Axes, rows: Mapping[Timestep, Row], places: Mapping[Timestep, float], offset: float, name: str, rank: int
) -> None:
    look: dict[str, Any] = {"color": COLORS[rank % len(COLORS)], "marker": MARKERS[rank % len(MARKERS)], "markersize": 5}
    line = LINES[rank // len(COLORS) % len(LINES)]
    known = {t: rows[t].estimate for t in places if t in rows and math.isfinite(rows[t].estimate.value)}
    joined = [t for t in known if isinstance(t, int)]
    axes.plot([places[t] + offset for t in joined], [known[t].value for t in joined], line, linewidth=1.4, label=name, **look)
    apart = [t for t in known if isinstance(t, str)]
    axes.plot([places[t] + offset for t in apart], [known[t].value for t in apart], linestyle="none", **look)
    for t, estimate in known.items():
        draw_interval(axes, places[t] + offset, estimate, color=look["color"], linewidth=1.2)


def _levels(axes: Axes, rows: Mapping[Timestep, Row], places: Mapping[Timestep, float]) -> None:
    for t, row in rows.items():
        if (ceiling := row.levels.ceiling) is not None:
            draw_level(axes, "ceiling", ceiling, (places[t] - 0.4, places[t] + 0.4), linestyle="-", linewidth=1.4)
    for random in {row.levels.random for row in rows.values() if row.levels.random is not None}:
        draw_level(axes, "random", random)
