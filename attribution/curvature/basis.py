"""Eigenbases of a curvature H = Q Λ Qᵀ, layer by layer: estimators use Λ and gradients in the basis."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.double_precision import double_device
from attribution.gradients.per_example import LayerGradients
from attribution.nodes import Artifact

NEGATIVE = 1e-5
"""The largest negative eigenvalue that rounding can cause in a matrix summed in float32, as a fraction of the largest one."""

EIGH_COPIES = 8
"""The copies of a matrix that its eigendecomposition holds at a time, roughly: the argument, the result, and LAPACK's workspace."""


class Basis(Artifact):
    """A basis in which the curvature of each block of parameters is diagonal: (H + λI)⁻¹ divides by ``values + λ`` there."""

    values: Mapping[str, Tensor]
    """Block (layer) name → its eigenvalues, float64, in the shape of its rotated gradient."""

    @property
    def layers(self) -> list[str]:
        """The names of the blocks."""
        return list(self.values)

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The basis on another device. Eigenvalues stay on the CPU if the device has no float64."""

    @abstractmethod
    def rotations(self, gradients: LayerGradients) -> Iterator[tuple[str, Tensor]]:
        """Yield each block's name and its gradients in the basis, ``[.., *shape of values]``, in the order of ``values``.

        Blocks have the dtype and device of ``gradients``. They are computed one at a time: the caller need not hold all of them.
        """

    def rotate(self, gradients: LayerGradients) -> LayerGradients:
        """Block name → gradients in the basis."""
        return dict(self.rotations(gradients))


@dataclass(frozen=True, eq=False)
class KroneckerBasis(Basis):
    """``H_layer = Σ_{o,i} values[o, i] q qᵀ`` with q = QB[:, o] ⊗ QA[:, i] on the joint block [W | b] ``[out, in (+1)]``.

    ``QA [in (+1), in (+1)]`` and ``QB [out, out]``: float32 eigenvectors in columns; ``values [out, in (+1)]`` float64.
    ``rotations`` leaves out the layers that H does not cover, which are norm layers, and those that are not given.
    """

    QA: Mapping[str, Tensor]
    QB: Mapping[str, Tensor]
    values: Mapping[str, Tensor]

    def to(self, device: torch.device) -> Self:
        places = {"QA": device, "QB": device, "values": double_device(device)}
        return replace(self, **{kind: {name: t.to(at) for name, t in getattr(self, kind).items()} for kind, at in places.items()})

    def rotations(self, gradients: LayerGradients) -> Iterator[tuple[str, Tensor]]:
        """QBᵀ g QA for g ``[.., out, in (+1)]``."""
        for layer in filter(gradients.__contains__, self.values):
            g = gradients[layer]
            yield layer, self.QB[layer].to(g).mT @ (g @ self.QA[layer].to(g))

    def restored(self, rotated: LayerGradients) -> LayerGradients:
        """QB r QAᵀ for r ``[.., out, in (+1)]``: the gradients that ``rotations`` turns into r."""
        return {layer: self.QB[layer].to(r) @ (r @ self.QA[layer].to(r).mT) for layer, r in rotated.items()}

    def save(self, folder: Path) -> None:
        save_file(flatten(QA=self.QA, QB=self.QB, values=self.values), folder / "basis.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**unflatten(load_file(folder / "basis.safetensors")))


def eigh(matrix: Tensor, what: str) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending and not negative, and eigenvectors of a positive semidefinite ``matrix``, both float64.

    Raises:
        FloatingPointError: the matrix is not finite, or has an eigenvalue that is negative beyond rounding; ``what`` names it.
    """
    matrix = matrix.double()
    if not matrix.isfinite().all():
        raise FloatingPointError(f"{what} is not finite: did training diverge?")
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    if values[0] < -NEGATIVE * values[-1].abs():
        raise FloatingPointError(
            f"{what} has the eigenvalue {float(values[0]):.2g} (the largest is {float(values[-1]):.2g}), but a curvature has no "
            "negative ones: the sums are not precise enough; use float32 without TF32, or a float64 model"
        )
    return values.clamp(min=0), vectors


def flatten(**kinds: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join tables by kind into one table for a file: ``kind/layer`` → tensor."""
    return {f"{kind}/{layer}": tensor.contiguous() for kind, tensors in kinds.items() for layer, tensor in tensors.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split a table that ``flatten`` joined."""
    kinds: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, layer = name.split("/", 1)
        kinds.setdefault(kind, {})[layer] = tensor
    return kinds
