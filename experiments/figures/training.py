"""The curve of a training run."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.figures.style import COLORS, DPI, FAINT, RED, plain_frame


def training_curve(
    steps: Sequence[int] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    learning_rate: Sequence[float] | np.ndarray,
    checkpoints: Sequence[int] = (),
    used: Sequence[int] = (),
) -> Figure:
    """Loss per step, raw and smoothed, on a logarithmic axis; the learning rate on a second axis; checkpoints as marks.

    ``checkpoints`` are the steps of all recorded checkpoints, ``used`` the steps of those that an estimator uses.
    """
    steps, loss = np.asarray(steps), np.asarray(loss, dtype=np.float64)
    figure = Figure((8, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, loss, color=COLORS[0], alpha=0.25, linewidth=0.7, label="loss")
    window = max(1, len(loss) // 50)
    axes.plot(steps, _moving_mean(loss, window), color=COLORS[0], linewidth=1.6, label=f"loss, mean of {window} steps")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    rate = axes.twinx()
    rate.plot(steps, np.asarray(learning_rate), color=COLORS[1], linewidth=1.2, label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    bottom = axes.get_xaxis_transform()
    for places, height, color, label in ((checkpoints, 0.05, FAINT, "checkpoint"), (used, 1.0, RED, "checkpoint in use")):
        if len(places):
            axes.vlines(places, 0, height, color, linewidth=1, alpha=0.8, transform=bottom, label=label)
    plain_frame(axes)
    rate.spines["top"].set_visible(False)
    marks = [handle for side in (axes, rate) for handle in side.get_legend_handles_labels()[0]]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=9, frameon=False)
    return figure


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The centered mean over ``window`` values, or over fewer at the ends."""
    if not len(values):
        return values
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")
