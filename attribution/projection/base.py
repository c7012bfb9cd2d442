"""The interface of projections of gradients to features φ = Pᵀ g (Johnson & Lindenstrauss 1984; TRAK, Park et al. 2023).

Every projection guarantees:

- Inner products are preserved in expectation, E⟨Pᵀx, Pᵀy⟩ = ⟨x, y⟩. The features contain no factor of k, so that a damping has the
  same meaning under every projection and k.
- P is a function of (seed, layer name, side) and of the position in the layer's block only. It does not depend on the device, the
  dtype, the batch, other layers, or the division of the work. Signs and hashes are equal on all devices; normal numbers are equal
  up to the rounding of the device's log and cos.
- Every coordinate of a gradient contributes to the features.

A ``Projection`` is a frozen dataclass that defines P. ``start`` returns a ``Projector``, which holds the matrices for a model.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from attribution.gradients.contraction import Contraction
from attribution.gradients.inner_products import finite
from attribution.gradients.per_example import Captured, LayerGradients

SHARED = ("attribution.gradients.inner_products", "attribution.gradients.per_example")

LayerShapes = Mapping[str, tuple[int, int]]
"""Layer name → shape (rows, columns) of its gradient, ``attribution.gradients.layers.Layer.block``."""


class Projection(ABC):
    """The definition of P. Subclasses are frozen dataclasses, and their fields are their identity."""

    VERSION: ClassVar[int] = 1
    REDUCIBLE: ClassVar[str]
    """For error messages: the projections whose features ``reduce_to`` can compute from those of this one."""

    def chosen(self, layers: LayerShapes) -> "Projection":
        """Return the projection to use for a model with these layers: this one, unless it depends on them."""
        return self

    @abstractmethod
    def size(self, layers: LayerShapes) -> int:
        """Return the number of features."""

    @abstractmethod
    def start(self, layers: LayerShapes, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> "Projector":
        """Return the projector of gradients with these ``layers``. It computes on ``device`` in ``dtype``."""

    def reduce_to(self, features: Tensor, smaller: "Projection", layers: LayerShapes) -> Tensor:
        """Compute the features of ``smaller``, ``[.., smaller.size]``, from this projection's ``features [.., size]``.

        Raises:
            ValueError: ``features`` has another size, or ``smaller`` cannot be computed from this projection; the message says from
                which one it can.
        """
        if features.shape[-1] != (size := self.size(layers)):
            raise ValueError(f"features {list(features.shape)} do not fit {self}, whose features are {size} for each example")
        reduced = self._reduce_to(features, smaller, layers)
        if reduced is None:
            raise ValueError(f"the features of {self} do not determine those of {smaller}: this needs {self.REDUCIBLE}")
        return reduced

    @abstractmethod
    def _reduce_to(self, features: Tensor, smaller: "Projection", layers: LayerShapes) -> Tensor | None:
        """Compute ``reduce_to``, or return None if ``smaller`` cannot be computed from this projection."""


class Projector(ABC):
    """P for the layers of a model. Reuse it for all gradients: it may cache its matrices."""

    def __init__(self, projection: Projection, layers: LayerShapes, device: torch.device | str, dtype: torch.dtype):
        if not any(rows * columns for rows, columns in layers.values()):
            raise ValueError("nothing to project: the layers have no parameters")
        self.layers = dict(sorted(layers.items()))
        self.size = projection.size(layers)
        self.device, self.dtype = torch.device(device), dtype

    @property
    def contraction(self) -> Contraction | None:
        """The function of the calls of layers that ``features_of`` needs, or None for the gradients themselves."""
        return None

    def features_of(self, blocks: LayerGradients) -> Tensor:
        """Return φ ``[B, size]`` of means over draws under ``contraction``. Raises the errors of ``__call__``."""
        return self(blocks)

    def features(self, captured: Captured) -> Tensor:
        """Return φ ``[B, size]`` of the captured gradients, averaged over draws. Raises the errors of ``__call__``."""
        return self.features_of(captured.contracted(self.contraction))

    def __call__(self, gradients: LayerGradients) -> Tensor:
        """Return φ ``[B, size]`` for the gradients of B examples, layer name → ``[B, rows, columns]``.

        Raises:
            ValueError: the gradients have other layers or shapes than those given to ``start``.
            FloatingPointError: a gradient is not finite; the message names the layer.
        """
        if gradients.keys() != self.layers.keys():
            unmatched = ", ".join(sorted(gradients.keys() ^ self.layers.keys()))
            raise ValueError(
                f"the gradients' layers differ from those the projection was started for: only one of the two has {unmatched}"
            )
        for name, (rows, columns) in self.layers.items():
            if (block := gradients[name].shape[1:]) != (rows, columns):
                raise ValueError(f"gradients of {name} have blocks {list(block)}: the projection was started for {[rows, columns]}")
        blocks = {name: gradients[name].to(self.device, self.dtype) for name in self.layers}
        return finite(self._project(blocks), gradients)

    @abstractmethod
    def _project(self, gradients: LayerGradients) -> Tensor:
        """Return φ ``[B, size]``. The gradients are in the order of ``layers``, on ``device`` and in ``dtype``."""
