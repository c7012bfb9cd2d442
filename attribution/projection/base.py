"""Projections of gradients to features φ = Pᵀ g (Johnson & Lindenstrauss 1984; TRAK, Park et al. 2023), and what they promise.

- Inner products are kept on average, E⟨Pᵀx, Pᵀy⟩ = ⟨x, y⟩: no factor of k is left in the features, so that a damping means the
  same under every projection and k.
- P is a function of (seed, layer name, side) and of the position in the layer's block alone: never of device, type, batch, other
  layers, or how the work is cut up. Bits and hashes agree exactly, normal numbers to the last digit of a device's log and cos.
- Every coordinate of a gradient reaches the features.

A ``Projection`` is an identity (a frozen dataclass); ``start`` gives a ``Projector``, which holds what is made of it for a model.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from attribution.gradients.inner_products import finite
from attribution.gradients.per_example import Captured, LayerGradients

LayerShapes = Mapping[str, tuple[int, int]]
"""Layer name → (rows, columns) of its gradient, ``attribution.gradients.layers.Layer.block``."""


class Projection(ABC):
    """Which P; frozen dataclasses, whose fields are their identity."""

    VERSION: ClassVar[int] = 1
    FOLDS: ClassVar[str]
    """Which smaller projections this one holds."""

    @abstractmethod
    def size(self, layers: LayerShapes) -> int:
        """How many features there are."""

    @abstractmethod
    def start(self, layers: LayerShapes, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> "Projector":
        """The projector of gradients with these ``layers``; it computes, and answers, on ``device`` in ``dtype``."""

    def fold(self, features: Tensor, smaller: "Projection", layers: LayerShapes) -> Tensor:
        """What ``smaller`` makes of the same gradients, ``[.., smaller.size]``, from this one's ``features [.., size]``.

        Raises:
            ValueError: features of another size, or ``smaller`` is no part of this projection; says when it would be.
        """
        if features.shape[-1] != (size := self.size(layers)):
            raise ValueError(f"features {list(features.shape)} are not those of {self}, which are {size} for each example")
        folded = self._fold(features, smaller, layers)
        if folded is None:
            raise ValueError(f"the features of {self} do not hold those of {smaller}: it takes {self.FOLDS}")
        return folded

    @abstractmethod
    def _fold(self, features: Tensor, smaller: "Projection", layers: LayerShapes) -> Tensor | None:
        """As ``fold``; None where ``smaller`` is no part of this projection."""


class Projector(ABC):
    """P for the layers of a model. Keep it as long as there are gradients to project: its matrices are made once."""

    def __init__(self, projection: Projection, layers: LayerShapes, device: torch.device | str, dtype: torch.dtype):
        if not any(rows * columns for rows, columns in layers.values()):
            raise ValueError("nothing to project: the layers have no parameters")
        self.layers = dict(sorted(layers.items()))
        self.size = projection.size(layers)
        self.device, self.dtype = torch.device(device), dtype

    def features(self, captured: Captured) -> Tensor:
        """φ ``[B, size]`` of the captured gradients' mean over draws; raises as a call does."""
        return self(captured.mean())

    def __call__(self, gradients: LayerGradients) -> Tensor:
        """φ ``[B, size]`` of B examples' gradients, layer name → ``[B, rows, columns]``.

        Raises:
            ValueError: other layers, or blocks of another shape, than the projector was started with.
            FloatingPointError: gradients that are not finite; names the layer.
        """
        if gradients.keys() != self.layers.keys():
            odd = ", ".join(sorted(gradients.keys() ^ self.layers.keys()))
            raise ValueError(f"the projection was started for other layers than the gradients have: {odd} is in one of them only")
        for name, (rows, columns) in self.layers.items():
            if (found := gradients[name].shape[1:]) != (rows, columns):
                raise ValueError(f"gradients of {name} have blocks {list(found)}: the projection was started for {[rows, columns]}")
        blocks = {name: gradients[name].to(self.device, self.dtype) for name in self.layers}
        return finite(self._project(blocks), gradients)

    @abstractmethod
    def _project(self, gradients: LayerGradients) -> Tensor:
        """φ ``[B, size]`` of gradients in the order of ``layers``, on the device, in the type."""


def at_least_one(**settings: int) -> None:
    """Raises ValueError: a setting of ``projection`` below 1."""
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"projection.{name}={value}: must be at least 1")
