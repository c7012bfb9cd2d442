"""``task=speed``: ratios of times to the plain forward and backward pass of the same draws, in one process (docs/speed.md)."""

from experiments.speed.curvature import curvature_speed
from experiments.speed.features import feature_speed
from experiments.speed.gradients import draws_speed, gradient_speed
from experiments.speed.retraining import retraining_speed
from experiments.speed.scoring import scoring_speed
from experiments.speed.timing import seconds_per_pass

__all__ = [
    "curvature_speed",
    "draws_speed",
    "feature_speed",
    "gradient_speed",
    "retraining_speed",
    "scoring_speed",
    "seconds_per_pass",
]
