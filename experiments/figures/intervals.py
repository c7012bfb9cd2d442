"""Intervals and reference levels, drawn alike in all figures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.figures.style import INK
from experiments.metrics.estimate import Estimate
from experiments.report.interval_kinds import common_kind
from experiments.report.tables import REFERENCES

LEVELS = {"random": "--", "maximum": ":", "ceiling": "-."}
"""The line style of each field of ``Levels``."""


def name_intervals(axes: Axes, estimates: Sequence[Estimate], **look: Any) -> None:
    """Say in the legend what the intervals are: a line without data."""
    if (name := common_kind(estimates)) is not None:
        axes.plot([], [], **{"color": INK, "linewidth": 1.4, "label": name, **look})


def draw_interval(
    axes: Axes,
    place: float,
    estimate: Estimate,
    *,
    horizontal: bool = False,
    scale: Callable[[float], float] = float,
    **look: Any,
) -> None:
    """Draw the interval as a line at ``place`` on the other axis. ``scale`` maps a number to its position on the axis."""
    if not estimate.has_interval:
        return
    ends, places = [scale(estimate.low), scale(estimate.high)], [place, place]
    axes.plot(*((ends, places) if horizontal else (places, ends)), **{"color": INK, "linewidth": 1.4, **look})


def draw_band(axes: Axes, places: Sequence[float] | None, estimates: Sequence[Estimate], color: str, alpha: float) -> None:
    """Draw intervals as a band over ``places``, or a single interval across the axes if that is None."""
    if places is None:
        (estimate,) = estimates
        if estimate.has_interval:
            axes.axhspan(estimate.low, estimate.high, color=color, alpha=alpha, linewidth=0)
        return
    low, high = [estimate.low for estimate in estimates], [estimate.high for estimate in estimates]
    axes.fill_between(places, low, high, color=color, alpha=alpha, linewidth=0)


def draw_level(
    axes: Axes,
    level: str,
    value: float | Sequence[float],
    places: Sequence[float] | None = None,
    *,
    vertical: bool = False,
    **look: Any,
) -> None:
    """Draw a reference level, a field of ``Levels``: one number across the axes, or a number at each of ``places``.

    A single ``value`` with ``places`` is a line over them; ``vertical`` draws a line across from bottom to top.
    """
    style = {"color": INK, "linestyle": LEVELS[level], "linewidth": 1.2, "label": REFERENCES[level], **look}
    if places is not None:
        axes.plot(places, np.broadcast_to(value, len(places)), **style)
    elif vertical:
        axes.axvline(float(np.asarray(value)), **style)
    else:
        axes.axhline(float(np.asarray(value)), **style)
