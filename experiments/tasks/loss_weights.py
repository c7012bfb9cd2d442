"""``task=loss_weights``: at which timesteps the measurements that are weighted losses look (K-FAC paper, fig. 18)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from omegaconf import DictConfig

from attribution.diffusion import NoiseSchedule, noise_schedule
from experiments import figures
from experiments.figures.weights import weights_by_timestep
from experiments.tasks.lab import lab

_LAST = (10, 100)
"""The last timesteps of all stretches but the last."""


def loss_weights(config: DictConfig) -> None:
    """Draws how much each timestep counts, and reports the share of the total in stretches of them; nothing is trained."""
    with lab(config) as run:
        schedule = noise_schedule(run.experiment.diffusion.process, "task=loss_weights")
        row = {"benchmark": "loss_weights", "estimator": "none", "low": None, "high": None}
        run.report.add({**row, **share} for share in weight_shares(schedule))
        run.report.figure("loss_weights", figures.loss_weights(schedule))


def weight_shares(schedule: NoiseSchedule) -> Iterator[dict[str, Any]]:
    """For each measurement and stretch of timesteps [first, last] the share of Σ_t w_t that lies there, as fields of a row.

    A share is of the weights of the square error, of which ``elbo`` has none at t = 1.
    """
    ends = [*(last for last in _LAST if last < schedule.T), schedule.T]
    for name, weights in weights_by_timestep(schedule).items():
        for first, last in zip([1, *(end + 1 for end in ends)], ends, strict=False):
            share = np.nansum(weights[first - 1 : last]) / np.nansum(weights)
            yield {"metric": f"weight_share[{first},{last}]", "swept": {"measurement": name}, "value": float(share)}
