"""Measures of an image under a model: training losses and query measurements have one type, a cost per draw."""

from attribution.measurements.base import Inputs, Measure
from attribution.measurements.elbo import Elbo, ElboWeighted
from attribution.measurements.journey import JourneyLoss
from attribution.measurements.loss import Loss, LossAtT
from attribution.measurements.outputs import Interpolated, OutputMean, OutputNorm, SquareNorm
from attribution.measurements.sampling_trajectory import TrajectoryLikelihood

__all__ = [
    "Elbo",
    "ElboWeighted",
    "Inputs",
    "Interpolated",
    "JourneyLoss",
    "Loss",
    "LossAtT",
    "Measure",
    "OutputMean",
    "OutputNorm",
    "SquareNorm",
    "TrajectoryLikelihood",
]
