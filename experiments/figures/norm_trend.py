"""The trend of gradient norms over timesteps in the course of training (ReTrac, app. A.1)."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.figures.intervals import draw_interval, name_intervals
from experiments.figures.noise_axis import log_snr_axis
from experiments.figures.style import COLORS, DPI, FAINT, INK, MARKERS, legend, plain_frame
from experiments.report.row import Row

_BLOCKS = 100
"""The number of block means in the curve of the loss."""


def norm_trend(
    rows: Sequence[Row],
    steps: Sequence[int],
    timesteps: np.ndarray,
    profiles: np.ndarray,
    losses: np.ndarray,
    log_snr: np.ndarray,
) -> Figure:
    """Three panels: norms over timesteps by checkpoint, the strength of the trend over training, and the loss.

    Args:
        rows: numbers with the checkpoint in their setting ``checkpoint``, a series for each metric.
        steps: the S checkpoints, ascending.
        timesteps: the compared timesteps ``[K]``.
        profiles: norms at these, divided by their mean, ``[S, K]``.
        losses: the loss of every training step.
        log_snr: that of t = 1..T, ``[T]``.
    """
    figure = Figure((13.0, 3.6), dpi=DPI, layout="constrained")
    curves, trend, loss = figure.subplots(1, 3)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(steps)))
    for place, (step, profile) in enumerate(zip(steps, profiles, strict=True)):
        name = f"checkpoint {step}" if place in (0, len(steps) - 1) else None
        curves.plot(timesteps, profile, color=shades[place], linewidth=1.5, label=name)
    curves.axhline(1, color=FAINT, linewidth=0.8)
    curves.set(xlabel="timestep", ylabel="median norm / its mean over timesteps", yscale="log")
    _plain_logarithms(curves)
    log_snr_axis(curves, log_snr)
    for rank, metric in enumerate(dict.fromkeys(row.metric for row in rows)):
        _series(trend, [row for row in rows if row.metric == metric], metric.replace("_", " "), rank)
    trend.axhline(0, color=FAINT, linewidth=0.8)
    name_intervals(trend, [row.estimate for row in rows])
    trend.set(xlabel="training step of the checkpoint", ylabel="trend of norms with the timestep")
    blocks = np.array_split(np.asarray(losses, np.float64), min(_BLOCKS, len(losses)))
    ends = np.cumsum([len(block) for block in blocks])
    loss.plot(ends, [block.mean() for block in blocks], color=INK, linewidth=1.4)
    for step in steps:
        loss.axvline(step, color=FAINT, linewidth=0.6, linestyle=":")
    loss.set(xlabel="training step", ylabel="training loss", yscale="log")
    _plain_logarithms(loss)
    for axes in (curves, trend, loss):
        plain_frame(axes)
    legend(figure, figure.axes)
    return figure


def _plain_logarithms(axes: Axes) -> None:
    """Label a logarithmic axis at 1, 2 and 5 times powers of ten, without exponents."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _series(axes: Axes, rows: Sequence[Row], name: str, rank: int) -> None:
    color, at = COLORS[rank], [row.settings["checkpoint"] for row in rows]
    axes.plot(at, [row.estimate.value for row in rows], marker=MARKERS[rank], color=color, linewidth=1.5, markersize=5, label=name)
    for x, row in zip(at, rows, strict=True):
        draw_interval(axes, x, row.estimate, color=color, linewidth=1.2)
