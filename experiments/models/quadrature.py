"""Given timesteps, such as evenly spaced ones, as a quadrature of a measurement: they are biased where its weights vary much."""

import numpy as np

from attribution.images.draws import DrawScheme
from attribution.measurements import Measure

TOLERANCE = 0.02
"""The relative error of the mean weight above which a note is due; the measurement itself may be off by several times as much."""


def quadrature_notes(measure: Measure, draws: DrawScheme) -> list[str]:
    """A line to print if ``draws`` are far off as a mean over all timesteps; known before training."""
    proposal = measure.proposal()
    timesteps = draws.given_timesteps(proposal.T)
    if timesteps is None:
        return []
    ratio = float(proposal.size[np.array(timesteps) - 1].mean() / proposal.size.mean())
    if abs(ratio - 1) <= TOLERANCE:
        return []
    return [
        f"note: {type(draws).__name__} draws ({len(timesteps)} timesteps) are badly off for the measurement "
        f"{type(measure).__name__}, whose mean weight there is {ratio:.2f} times that over all {proposal.T} timesteps. "
        "Stratified draws are unbiased: draws@benchmark.draws=stratified (datamodels: draws@estimator.measurement_draws=stratified)"
    ]
