"""Values at chosen timesteps, which stand evenly however far apart they are."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures.mappings import differing_settings
from experiments.figures.style import COLORS, DPI, INK, MARKERS, WIDEST, legend, plain_frame, series_label
from experiments.report.tables import REFERENCES

_STEP, _APART, _SPREAD = 0.62, 0.5, 0.5
"""Inches between timesteps; in such steps, what is kept before a place that is no timestep, and over which series spread."""

Timestep = int | str
Row = Mapping[str, Any]


def by_timestep(rows: Sequence[Row], x: str, x_name: str, value_name: str) -> Figure:
    """Values with intervals at each timestep, a panel for each kind of queries; series stand beside each other.

    Rows hold the timestep as ``x`` in ``swept``. What is none there ("all") stands apart behind them, and no line leads to it. The
    ``ceiling`` of a timestep is a line over its place, ``random`` one all across. A value of None leaves a gap.
    """
    settings = [{name: value for name, value in chosen.items() if name != x} for chosen in differing_settings(rows)]
    labels = [series_label(row["estimator"], others) for row, others in zip(rows, settings, strict=True)]
    names, kinds = list(dict.fromkeys(labels)), list(dict.fromkeys(row.get("queries") for row in rows)) or [None]
    places = _places(list(dict.fromkeys(row["swept"][x] for row in rows)))
    panel = max(3.6, 0.9 + _STEP * (len(places) + _APART))
    down, across = (1, len(kinds)) if 0.6 + len(kinds) * panel <= WIDEST else (len(kinds), 1)
    figure = Figure((min(WIDEST, 0.6 + across * panel), 0.6 + 3.4 * down), dpi=DPI, layout="constrained")
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, kind in zip(grid.flat, kinds, strict=True):
        here = [(row, label) for row, label in zip(rows, labels, strict=True) if row.get("queries") == kind]
        for rank, name in enumerate(names):
            aside = _SPREAD * ((rank + 0.5) / len(names) - 0.5)
            _series(axes, {row["swept"][x]: row for row, label in here if label == name}, places, aside, name, rank)
        _levels(axes, {row["swept"][x]: row for row, _ in here}, places)
        axes.set_xticks(list(places.values()), [str(t) for t in places])
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        axes.set_xlabel(x_name)
        plain_frame(axes)
    for axes in grid[:, 0]:
        axes.set_ylabel(value_name)
    legend(figure, figure.axes, [*names, *REFERENCES.values()])
    return figure


def _places(asked: Sequence[Timestep]) -> dict[Timestep, float]:
    """Where each stands: timesteps in their order, then what is none."""
    numbers, others = sorted(t for t in asked if isinstance(t, int)), [t for t in asked if isinstance(t, str)]
    return {t: i + _APART * isinstance(t, str) for i, t in enumerate([*numbers, *others])}


def _series(axes: Axes, rows: Mapping[Timestep, Row], places: Mapping[Timestep, float], aside: float, name: str, rank: int) -> None:
    look: dict[str, Any] = {"color": COLORS[rank % len(COLORS)], "marker": MARKERS[rank % len(MARKERS)], "markersize": 5}
    style = ("-", "--", ":")[rank // len(COLORS) % 3]
    known = {t: rows[t] for t in places if t in rows and rows[t]["value"] is not None}
    joined = [t for t in known if isinstance(t, int)]
    axes.plot([places[t] + aside for t in joined], [known[t]["value"] for t in joined], style, linewidth=1.4, label=name, **look)
    apart = [t for t in known if isinstance(t, str)]
    axes.plot([places[t] + aside for t in apart], [known[t]["value"] for t in apart], linestyle="none", **look)
    for t, row in known.items():
        if None not in (row["low"], row["high"]):
            axes.plot([places[t] + aside] * 2, [row["low"], row["high"]], color=look["color"], linewidth=1.2)


def _levels(axes: Axes, rows: Mapping[Timestep, Row], places: Mapping[Timestep, float]) -> None:
    for t, row in rows.items():
        if row.get("ceiling") is not None:
            axes.hlines(row["ceiling"], places[t] - 0.4, places[t] + 0.4, INK, linewidth=1.4, label=REFERENCES["ceiling"])
    for level in {row["random"] for row in rows.values() if row.get("random") is not None}:
        axes.axhline(level, color=INK, linestyle="--", linewidth=1.1, label=REFERENCES["random"])
