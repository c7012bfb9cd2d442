"""The log-SNR of timesteps, as a second axis at the top of a panel."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

_APART = 0.07
"""The smallest distance between two labels, in widths of the panel."""


def log_snr_axis(axes: Axes, log_snr: np.ndarray) -> None:
    """Label a panel whose horizontal axis is the timestep by round values of ``log_snr [T]``, that of t = 1..T."""
    known = np.isfinite(log_snr)
    t, values = np.arange(1, len(log_snr) + 1)[known], log_snr[known]
    low, high = sorted(axes.get_xlim())
    left, right = _scaled(axes, low), _scaled(axes, high)
    shown = values[(t >= low) & (t <= high)]
    if not len(shown):
        return
    round_values = MaxNLocator(7, steps=[1, 2, 2.5, 4, 5, 10]).tick_values(shown.min(), shown.max())
    ticks: dict[float, float] = {}
    for value in round_values[(round_values >= shown.min()) & (round_values <= shown.max())][::-1]:
        place = float(np.interp(-value, -values, t))  # log-SNR falls with t
        if all(abs(_scaled(axes, place) - _scaled(axes, other)) >= _APART * (right - left) for other in ticks):
            ticks[place] = value
    _label(axes, {place: f"{value:g}" for place, value in ticks.items()})


def log_snr_labels(axes: Axes, log_snr: np.ndarray, places: Mapping[int, float]) -> None:
    """Label a panel with timesteps at ``places`` by their values of ``log_snr [T]``, that of t = 1..T."""
    # Adding 0 makes 0 of -0, which rounding makes of small negative values.
    _label(axes, {place: f"{round(float(log_snr[t - 1]), 1) + 0:.1f}" for t, place in places.items()})


def _scaled(axes: Axes, x: float) -> float:
    """The position of x on the axis, which may be logarithmic."""
    return float(axes.transScale.transform((x, 1.0))[0])


def _label(axes: Axes, labels: Mapping[float, str]) -> None:
    axis = axes.secondary_xaxis("top")
    axis.set_xticks(list(labels), [label.replace("-", "−").replace("inf", "∞") for label in labels.values()])
    axis.tick_params(labelsize=8, length=3)
    axis.tick_params(which="minor", length=0)  # those of a logarithmic axis below
    axis.spines["top"].set_visible(False)
    axis.set_xlabel("log-SNR", fontsize=8, labelpad=2)
