"""The weight of each timestep in measurements that are weighted losses."""

import numpy as np
import torch
from matplotlib.figure import Figure

from attribution.diffusion import DDPM
from attribution.measurements import elbo
from experiments.figures.noise_axis import log_snr_axis
from experiments.figures.style import COLORS, DPI, INK, plain_frame

_DESCRIPTIONS = {
    "loss": "training loss",
    "elbo": "ELBO (small variance), without its decoder term at t = 1",
    "elbo_weighted": "loss with the ELBO's weights (variance β)",
}


def weights_by_timestep(process: DDPM) -> dict[str, np.ndarray]:
    """The weight of the output's squared error at t in each measurement, float64 ``[T]``, t = 1 first, relative to its mean.

    The weight of ``elbo`` at t = 1 is NaN, because its term there is the decoder's log-probability; its mean is over t >= 2.
    """
    weighted = {
        "loss": process.weight(torch.arange(1, process.T + 1), torch.float64).numpy(),
        "elbo": elbo.loss_weights(process, elbo.small_variances(process.schedule)),
        "elbo_weighted": elbo.loss_weights(process, process.schedule.betas),
    }
    weighted["elbo"][0] = np.nan
    return {name: weights / np.nanmean(weights) for name, weights in weighted.items()}


def loss_weights(process: DDPM) -> Figure:
    """The weight of the squared error at each timestep in a measurement, relative to its mean over t (K-FAC influence, fig. 18).

    Curves are labeled by the names of ``measurement=``; ``elbo`` begins at t = 2.
    """
    t = np.arange(1, process.T + 1)
    figure = Figure((7, 4.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    looks = ((INK, "--"), (COLORS[0], "-"), (COLORS[5], ":"))
    for (name, weights), (color, style) in zip(weights_by_timestep(process).items(), looks, strict=True):
        known = np.isfinite(weights)
        axes.plot(t[known], weights[known], style, color=color, linewidth=2, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("diffusion timestep t")
    log_snr_axis(axes, process.log_snr)
    axes.set_ylabel("weight of the squared error,\nrelative to its mean over t")
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    labels = [f"{name} – {_DESCRIPTIONS[name]}" for name in lines]
    figure.legend(list(lines.values()), labels, loc="outside lower center", fontsize=9, frameon=False)
    plain_frame(axes)
    return figure
