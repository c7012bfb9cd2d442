"""Figures of a report. Each function returns a matplotlib ``Figure`` and touches no global state.

Benchmarks and tasks use ``from experiments import figures``: every figure and the classes of its arguments are re-exported here.
"""

from experiments.figures.bars import bars, distinct_share
from experiments.figures.boxes import boxes
from experiments.figures.changes import Changes, changes
from experiments.figures.checkpoint_parts import checkpoint_parts
from experiments.figures.chosen_ranks import ranks_of_chosen
from experiments.figures.compression import compression
from experiments.figures.distance_to_t_max import Influential, distance_to_t_max
from experiments.figures.effects import Effects, effects
from experiments.figures.group_matrices import group_matrices
from experiments.figures.heatmap import matrix
from experiments.figures.influences import proponents
from experiments.figures.linearization import linearization
from experiments.figures.loss_weights import loss_weights
from experiments.figures.noise_axis import log_snr_axis
from experiments.figures.norm_trend import norm_trend
from experiments.figures.norms import Curve, Scatter, algorithm_1, norm_curves, norms_by_timestep
from experiments.figures.panels import panels
from experiments.figures.rank_rises import rank_rises
from experiments.figures.regenerated import regenerated
from experiments.figures.scaling import scaling
from experiments.figures.scatter_matrix import scatter_matrix
from experiments.figures.side_by_side import side_by_side
from experiments.figures.sparse_timesteps import sparse_timesteps
from experiments.figures.sweep import curve
from experiments.figures.thumbnails import grid
from experiments.figures.timesteps import by_timestep
from experiments.figures.tracing import over_k, ranked
from experiments.figures.training import training_curve

__all__ = [
    "Changes",
    "Curve",
    "Effects",
    "Influential",
    "Scatter",
    "algorithm_1",
    "bars",
    "boxes",
    "by_timestep",
    "changes",
    "checkpoint_parts",
    "compression",
    "curve",
    "distance_to_t_max",
    "distinct_share",
    "effects",
    "grid",
    "group_matrices",
    "linearization",
    "log_snr_axis",
    "loss_weights",
    "matrix",
    "norm_curves",
    "norm_trend",
    "norms_by_timestep",
    "over_k",
    "panels",
    "proponents",
    "rank_rises",
    "ranked",
    "ranks_of_chosen",
    "regenerated",
    "scaling",
    "scatter_matrix",
    "side_by_side",
    "sparse_timesteps",
    "training_curve",
]
