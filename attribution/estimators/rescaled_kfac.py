"""Rescaled influence (RIF; Rubinstein & Hopkins, NeurIPS 2025, "Rescaled Influence Functions: Accurate Data Attribution in High
Dimension").

Influence functions ask what an infinitesimal weight of z changes, and underestimate what removing z does: without z the curvature
is smaller too. RIF takes the Newton step of the removal of each image alone, and adds up these steps for several images:

    τ_RIF[q, z] = τ[q, z] / (1 - h(z)),    h the leverage of z

For a loss of one output at one draw this is exact for a quadratic loss; ``leverage`` says what h is for several outputs and draws.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from attribution.checks import FieldError
from attribution.curvature.kfac import KroneckerCurvature
from attribution.estimators.balance import Balance
from attribution.estimators.influence import GRID, KFACInfluence
from attribution.estimators.layers import AllLayers, Layers, refuse_layers
from attribution.estimators.leverage import Leverages
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedEstimator
from attribution.gradients.compression import Compression, Uncompressed
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.influence", "attribution.estimators.leverage", "attribution.estimators.scores")

HIGHEST = 0.9
"""The largest leverage that counts, so that no score grows more than tenfold: K-FAC's leverages can be above 1."""


@dataclass(frozen=True, kw_only=True)
class RescaledKFAC(ShardedEstimator):
    """Influence over 1 - h(z). The settings are those of ``KFACInfluence``, with K-FAC or EK-FAC as the curvature.

    Leverages come from all draws, also where scores come from groups of them.
    """

    NAME = "RescaledKFAC"
    VERSION = 1
    REPLICATED = ("query", "train")

    curvature: KroneckerCurvature
    damping: float | Sequence[float] = 1e-8
    balance: Balance | None = None
    flips: bool = False
    compression: Compression = field(default_factory=Uncompressed)
    layers: Layers = field(default_factory=AllLayers)

    def __post_init__(self):
        self.draws.refuse_lists("a leverage", replicates=True)
        refuse_layers(self, "a leverage")
        if not isinstance(self.curvature, KroneckerCurvature):
            raise FieldError(self, "curvature", "leverages need Kronecker factors: choose kfac or ekfac")
        _ = self.influence  # checks the other settings

    @property
    def influence(self) -> KFACInfluence:
        """Influence before it is rescaled."""
        return KFACInfluence(**{one.name: getattr(self, one.name) for one in fields(KFACInfluence)})

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        return RescaledScores(self.influence.scores(trained, train, queries), self.leverages(trained, train))

    def leverages(self, trained: Trained, train: ImageSet) -> Leverages:
        """The leverages of the training images, at the dampings at which scores are stored."""
        draws = self.draws.side("train")
        draws = replace(draws, replicates=1) if draws.replicates > 1 else draws  # pyright: ignore[reportCallIssue, reportArgumentType]
        dampings = tuple(sorted({*GRID, *self.influence.dampings}))
        # Leverages are those of training losses, whatever is measured of the queries.
        stored = replace(self.influence, draws=draws, damping=dampings, measurement=trained.objective)
        return Leverages(stored, trained, train)

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return self.influence.requested()


@dataclass(frozen=True)
class RescaledScores(Node[Scores]):
    """The scores of ``influence`` over 1 - h, at every damping."""

    NAME = "RescaledScores"
    VERSION = 1
    TITLE = "rescaled influence"
    ARTIFACT = Scores

    influence: Node[Scores]
    leverages: Leverages

    def cost(self) -> Cost:
        size = self.influence.cost().disk
        return Cost(memory=2 * size, disk=size)

    def passes(self, get: Get) -> float:
        return self.influence.passes(get) + self.leverages.passes(get)

    def compute(self, get: Get) -> Scores:
        scores = get(self.influence)
        factor = factors(self.leverages, scores.axes["damping"], get)

        def rescaled(values: np.ndarray) -> np.ndarray:
            return (values * factor.reshape(len(factor), *[1] * (values.ndim - 2), -1)).astype(np.float32)

        cross = None if scores.cross is None else rescaled(scores.cross)
        return replace(scores, values=rescaled(scores.values), cross=cross)


def factors(leverages: Leverages, dampings: Sequence[float], get: Get) -> np.ndarray:
    """1/(1 - h), ``[dampings, N]``."""
    stored = leverages.estimator.dampings
    chosen = get(leverages).values[[stored.index(damping) for damping in dampings]]
    return 1 / (1 - np.minimum(chosen, HIGHEST))
