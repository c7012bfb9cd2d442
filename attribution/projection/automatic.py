"""A projection that depends on the number of parameters: none for small networks, and sparse signs for large ones."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.checks import number, whole
from attribution.projection.base import LayerShapes, Projection, Projector
from attribution.projection.no_projection import Identity
from attribution.projection.sparse import SJLT

SHARED = ("attribution.projection.base", "attribution.projection.no_projection", "attribution.projection.sparse")


@dataclass(frozen=True)
class Automatic(Projection):
    """``Identity`` for networks of at most ``parameters`` parameters, and ``SJLT`` to ``k`` features for larger ones.

    Whole gradients are exact, but are not stored: the passes over the training set are repeated for as many blocks of gradients as
    do not fit into memory together. The identity of stored scores contains the chosen projection, not this class.
    """

    NAME = "Automatic"
    VERSION = 1
    REDUCIBLE = "the same projection"

    parameters: float
    k: int
    seed: int = 0

    def __post_init__(self):
        number(self, "parameters", least=0)
        whole(self, "k", least=1)

    def chosen(self, layers: LayerShapes) -> Projection:
        return Identity() if sum(map(math.prod, layers.values())) <= self.parameters else SJLT(self.k, seed=self.seed)

    def size(self, layers: LayerShapes) -> int:
        return self.chosen(layers).size(layers)

    def start(self, layers: LayerShapes, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Projector:
        return self.chosen(layers).start(layers, device, dtype)

    def _reduce_to(self, features: Tensor, smaller: Projection, layers: LayerShapes) -> Tensor | None:
        return self.chosen(layers)._reduce_to(features, smaller.chosen(layers), layers)
