"""``task=loss_weights``: the weight of each timestep in measurements that are weighted losses (K-FAC influence, fig. 18)."""

from collections.abc import Iterator

import numpy as np
from omegaconf import DictConfig

from attribution.diffusion import DDPM, as_ddpm
from experiments import figures
from experiments.figures.loss_weights import weights_by_timestep
from experiments.metrics.estimate import Estimate
from experiments.report.row import Row, Subject
from experiments.tasks.run_context import run_context

_LAST = (10, 100)
"""The last timestep of each range, except the final range."""


def loss_weights(config: DictConfig) -> None:
    """Draw the weight of each timestep, and report the share of the total weight in ranges of timesteps. Trains nothing."""
    with run_context(config) as run:
        process = as_ddpm(run.experiment.diffusion.process, "task=loss_weights")
        run.report.add(weight_shares(process))
        run.report.figure("loss_weights", figures.loss_weights(process))


def weight_shares(process: DDPM) -> Iterator[Row]:
    """For each measurement and range of timesteps [first, last], the share of Σ_t w_t in the range.

    The weights are those of the squared error of the network's output; ``elbo`` has none at t = 1.
    """
    ends = [*(last for last in _LAST if last < process.T), process.T]
    for name, weights in weights_by_timestep(process).items():
        for first, last in zip([1, *(end + 1 for end in ends)], ends, strict=False):
            share = float(np.nansum(weights[first - 1 : last]) / np.nansum(weights))
            yield Row(
                benchmark="loss_weights",
                metric=f"weight_share[{first},{last}]",
                subject=Subject("none"),
                estimate=Estimate(share),
                swept={"measurement": name},
            )
