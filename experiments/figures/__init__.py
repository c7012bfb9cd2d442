"""Figures of a report. Each function returns a matplotlib ``Figure`` and touches no global state."""

from experiments.figures.bars import bars, distinct_share
from experiments.figures.fidelity import compression
from experiments.figures.heatmap import matrix
from experiments.figures.influences import proponents
from experiments.figures.sweep import curve
from experiments.figures.thumbnails import grid
from experiments.figures.training import training_curve
from experiments.figures.weights import loss_weights

__all__ = ["bars", "compression", "curve", "distinct_share", "grid", "loss_weights", "matrix", "proponents", "training_curve"]
