"""Random projections of per-example gradients to features φ = Pᵀ g, which preserve inner products in expectation."""

from attribution.projection.automatic import Automatic
from attribution.projection.base import LayerShapes, Projection, Projector
from attribution.projection.dense import Gaussian, Rademacher
from attribution.projection.kronecker import Kronecker, KroneckerProjector
from attribution.projection.no_projection import Identity
from attribution.projection.sparse import SJLT

__all__ = [
    "SJLT",
    "Automatic",
    "Gaussian",
    "Identity",
    "Kronecker",
    "KroneckerProjector",
    "LayerShapes",
    "Projection",
    "Projector",
    "Rademacher",
]
