"""Gradient norms against the timestep (ReTrac §4.2 and app. A, figures 1-3 and 7-10)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from attribution.images import Images
from experiments.figures.noise_axis import log_snr_axis
from experiments.figures.style import COLORS, DPI, FAINT, INK, RED, grid_shape, legend, plain_frame
from experiments.figures.thumbnails import caption, picture
from experiments.metrics.timestep_bias import Correlation

GREEN = COLORS[2]
_PICTURE = 1.0
"""The width of a picture's caption in inches."""


@dataclass(frozen=True)
class Scatter:
    """A panel with the norms ``norm [n]`` of examples at their timesteps ``[n]``; ``positions [n]`` in the training set."""

    title: str
    timestep: np.ndarray
    norm: np.ndarray
    positions: np.ndarray


@dataclass(frozen=True)
class Curve:
    """The norms ``[K]`` of an example and of ``others [P, K]`` over ``timesteps [K]``; it was trained at ``t_train``."""

    title: str
    timesteps: np.ndarray
    norm: np.ndarray
    others: np.ndarray
    t_train: int


def norms_by_timestep(panels: Sequence[Scatter], log_snr: np.ndarray, train: Images, stretches: int) -> Figure:
    """Norm against timestep with a dot for each example, and the means in equal intervals (ReTrac, figs. 2, 8 and 10).

    The examples with the largest and the smallest norm are marked, and shown below each panel. ``log_snr [T]`` is that of t = 1..T.
    """
    T = len(log_snr)
    across, down = grid_shape(len(panels))
    figure = Figure((max(7.0, 0.6 + 3.6 * across), 4.6 * down), dpi=DPI, layout="constrained")
    outer = figure.add_gridspec(down, across)
    first: Axes | None = None
    plots = []
    for place, panel in enumerate(panels):
        inner = outer[divmod(place, across)].subgridspec(2, 2, height_ratios=(4, 1.2))
        axes = first = figure.add_subplot(inner[0, :], sharey=first)
        plots.append(axes)
        axes.scatter(panel.timestep, panel.norm, s=6, color=COLORS[0], alpha=0.45, linewidth=0, label="training image")
        stretch = (panel.timestep - 1) * min(stretches, T) // T
        stretches_present = np.unique(stretch)
        middles = [panel.timestep[stretch == s].mean() for s in stretches_present]
        means = [panel.norm[stretch == s].mean() for s in stretches_present]
        axes.plot(middles, means, color=INK, linewidth=1.8, label="mean in interval")
        for column, (name, color, row) in enumerate(
            (("largest", RED, int(panel.norm.argmax())), ("smallest", GREEN, int(panel.norm.argmin())))
        ):
            marker = {"s": 70, "facecolors": "none", "edgecolors": color, "linewidths": 2, "zorder": 4}
            axes.scatter(panel.timestep[row], panel.norm[row], label=f"{name} norm", **marker)
            position = int(panel.positions[row])
            text = f"{name}: {caption(train, position, _PICTURE)}\nt = {panel.timestep[row]}"
            picture(figure.add_subplot(inner[1, column]), train, position, text, color)
        _axis(axes, log_snr, leftmost=place % across == 0)
        axes.set_title(panel.title, fontsize=11)
    legend(figure, plots)
    return figure


def norm_curves(panels: Sequence[Curve], log_snr: np.ndarray, image: Images) -> Figure:
    """One example's norm over timesteps at its recorded noise, next to those of others (ReTrac, figs. 3, 7 and 9).

    ``image`` is the example alone. The median of the others and the range of 80 % of them are gray. ``log_snr [T]`` is that of
    t = 1..T.
    """
    across, down = grid_shape(len(panels))
    figure = Figure((max(7.0, 1.9 + 3.4 * across), 0.5 + 3.2 * down), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(down, across + 1, width_ratios=(1.2, *[3.4] * across))
    picture(figure.add_subplot(grid[0, 0]), image, 0, caption(image, 0, _PICTURE), INK)
    first: Axes | None = None
    plots = []
    for place, panel in enumerate(panels):
        line, column = divmod(place, across)
        axes = first = figure.add_subplot(grid[line, column + 1], sharey=first)
        plots.append(axes)
        low, middle, high = np.percentile(panel.others, [10, 50, 90], axis=0)
        axes.fill_between(panel.timesteps, low, high, color="#d9d9d9", linewidth=0, label="80 % of all examples")
        axes.plot(panel.timesteps, middle, color=FAINT, linewidth=1.4, linestyle="--", label="their median")
        axes.plot(panel.timesteps, panel.norm, color=COLORS[0], linewidth=1.6, label="this example")
        axes.axvline(panel.t_train, color=RED, linewidth=1.6, label="timestep it was trained at")
        peak = int(panel.norm.argmax())
        axes.plot(panel.timesteps[peak], panel.norm[peak], "v", color=INK, markersize=8, linestyle="none", label="t_max")
        _axis(axes, log_snr, leftmost=column == 0)
        axes.set_title(f"{panel.title}: t_train = {panel.t_train}, t_max = {panel.timesteps[peak]}", fontsize=9)
    legend(figure, plots)
    return figure


def algorithm_1(steps: Sequence[int], correlations: Sequence[Correlation], examples: int) -> Figure:
    """Rank of the norm among all ``examples`` against |t_max − t_train|, with the line, for each checkpoint (ReTrac, fig. 1)."""
    across, down = grid_shape(len(steps))
    figure = Figure((max(7.0, 0.6 + 3.4 * across), 0.5 + 3.2 * down), dpi=DPI, layout="constrained")
    plots = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for axes, step, result in zip(plots.flat, steps, correlations, strict=False):
        axes.plot(
            result.distance, result.rank, "o", color=COLORS[0], markersize=4, alpha=0.7, linestyle="none", label="training image"
        )
        ends = np.array([0, result.distance.max()])
        axes.plot(ends, result.intercept + result.slope.value * ends, color=RED, linewidth=1.6, label="least squares")
        spearman = f"ρ = {result.rho.value:.2f} [{result.rho.low:.2f}, {result.rho.high:.2f}], p = {result.p:.1g}"
        slope = f"slope {result.slope.value:.2f} [{result.slope.low:.2f}, {result.slope.high:.2f}]"
        axes.set_title(f"checkpoint {step}\n{spearman}\n{slope}".replace("-", "−"), fontsize=9)
        axes.set_xlabel("|t_max − t_train|")
        axes.set_ylim(1 - 0.03 * examples, 1.03 * examples)
        plain_frame(axes)
    for axes in plots[:, 0]:
        axes.set_ylabel("rank of the norm (1: the largest)")
    for axes in plots.flat[len(steps) :]:
        axes.set_axis_off()
    legend(figure, figure.axes)
    return figure


class _Plain(LogFormatter):
    """Labels without powers of ten, at the ticks that matplotlib labels."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _axis(axes: Axes, log_snr: np.ndarray, leftmost: bool) -> None:
    T = len(log_snr)
    axes.set_yscale("log")
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted(_Plain(minor_thresholds=(1.5, 0.5)))
    if leftmost:
        axes.set_ylabel("norm of the loss's gradient")
    axes.set_xlim(1 - 0.02 * T, 1.02 * T)
    axes.set_xlabel("timestep")
    plain_frame(axes)
    log_snr_axis(axes, log_snr)
    axes.tick_params(which="both", labelleft=leftmost)
    axes.tick_params(which="minor", labelsize=8)
