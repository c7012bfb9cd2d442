"""Scores of training images for queries, as a report shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from attribution.images import Images


@dataclass(frozen=True, eq=False)
class Attributions:
    """The scores of several estimators for the same queries.

    ``kind`` is the kind of ``queries``, Q images, such as "validation"; ``train`` has N images. ``scores`` has the scores
    τ ``[Q, N]`` of each estimator, by its label. ``noise``, of those with replicates of draws: half the width of the 95 % interval
    of each score, ``[Q, N]``.
    """

    kind: str
    queries: Images
    train: Images
    scores: Mapping[str, np.ndarray]
    noise: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        """Raises ValueError: scores have another shape than ``[Q, N]``."""
        expected = len(self.queries), len(self.train)
        for label, scores in self.scores.items():
            if scores.shape != expected:
                raise ValueError(f"the scores of {label} have the shape {scores.shape}: {expected} for these queries and images")
