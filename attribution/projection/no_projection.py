"""The identity as a projection: the features are the gradients themselves, for exact Gram matrices."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attribution.gradients.per_example import LayerGradients
from attribution.projection.base import LayerShapes, Projection, Projector

SHARED = ("attribution.projection.base",)


@dataclass(frozen=True)
class Identity(Projection):
    """P = I: the features are the whole gradient, with the layers concatenated in the order of their names."""

    NAME = "Identity"
    VERSION = 1
    REDUCIBLE = "the same projection"

    def size(self, layers: LayerShapes) -> int:
        return sum(rows * columns for rows, columns in layers.values())

    def start(self, layers: LayerShapes, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Projector:
        return _Identity(self, layers, device, dtype)

    def _reduce_to(self, features: Tensor, smaller: Projection, layers: LayerShapes) -> Tensor | None:
        return features if smaller == self else None


class _Identity(Projector):
    def _project(self, gradients: LayerGradients) -> Tensor:
        return torch.cat([gradient.flatten(1) for gradient in gradients.values()], 1)
