"""Figures of a report. Each function returns a matplotlib ``Figure`` and touches no global state."""

from experiments.figures.bars import bars, distinct_share
from experiments.figures.compression import compression
from experiments.figures.heatmap import matrix
from experiments.figures.influences import proponents
from experiments.figures.loss_weights import loss_weights
from experiments.figures.regenerated import regenerated
from experiments.figures.side_by_side import side_by_side
from experiments.figures.sweep import curve
from experiments.figures.thumbnails import grid
from experiments.figures.timesteps import by_timestep
from experiments.figures.tracing import over_k, ranked
from experiments.figures.training import training_curve

__all__ = [
    "bars",
    "by_timestep",
    "compression",
    "curve",
    "distinct_share",
    "grid",
    "loss_weights",
    "matrix",
    "over_k",
    "proponents",
    "ranked",
    "regenerated",
    "side_by_side",
    "training_curve",
]
