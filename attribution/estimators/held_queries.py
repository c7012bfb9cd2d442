"""The queries' coefficients in the eigenbasis of the curvature, as they are held during a pass over the training set.

Coefficients q̃ are divided by s (whitened) and compressed before any damping is applied:

    s = √(Λ + REFERENCE),        τ = Σ (q̃ / s) · z̃ · s / (Λ + λ)

The coefficients themselves differ by orders of magnitude. Whitened they have similar sizes, so a compression error in any of them
has a similar effect on the scores (introduced here). The K-FAC influence paper compresses the preconditioned gradient instead: s =
Λ + REFERENCE (``compression.preconditioned``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.curvature.basis import Basis, flatten, unflatten
from attribution.double_precision import double
from attribution.gradients.compression import Compression
from attribution.gradients.inner_products import finite
from attribution.gradients.layers import pieces, step
from attribution.gradients.per_example import LayerGradients
from attribution.nodes import Artifact

SHARED = ("attribution.curvature.basis", "attribution.gradients.inner_products", "attribution.gradients.layers")

REFERENCE = 1e-8
"""The default damping. Compressed coefficients do not distinguish eigenvalues that are much smaller."""


@dataclass(frozen=True, eq=False)
class QueryCoefficients(Artifact):
    """Whitened and compressed coefficients: ``parts`` maps part → layer → tensor ``[P, bins, Q, ..]``, for P prefixes of the draws.

    ``Compression`` decides what the parts are.
    """

    parts: dict[str, dict[str, Tensor]]

    def save(self, folder: Path) -> None:
        save_file(flatten(**self.parts), folder / "coefficients.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(unflatten(load_file(folder / "coefficients.safetensors")))

    def to(self, device: torch.device) -> Self:
        """The same coefficients on a device."""
        moved = {part: {layer: x.to(device) for layer, x in tensors.items()} for part, tensors in self.parts.items()}
        return type(self)(moved)

    @classmethod
    def of(cls, means: Sequence[LayerGradients], basis: Basis, compression: Compression) -> Self:
        """Return the coefficients of gradients, given for each prefix of the draws as ``[bins, Q, out, in]`` per layer."""
        parts: dict[str, dict[str, Tensor]] = {}
        for blocks in zip(*map(basis.rotations, means), strict=True):
            layer = blocks[0][0]
            whitened = torch.stack([double(rotated) for _, rotated in blocks]) / scaling(basis.values[layer], compression)
            for part, tensor in compression.compress(whitened).items():
                parts.setdefault(part, {})[layer] = tensor.cpu()
        return cls(parts)

    def at(self, layer: str) -> dict[str, Tensor]:
        """The parts of one layer."""
        return {part: tensors[layer] for part, tensors in self.parts.items() if layer in tensors}


class HeldQueries:
    """Queries that are multiplied with one block of training gradients after another.

    ``coefficients``: layer → part → tensor ``[P, bins, Q, ..]``, whitened and compressed, for the layers that are multiplied.
    """

    def __init__(
        self,
        basis: Basis,
        coefficients: Mapping[str, Mapping[str, Tensor]],
        dampings: Sequence[float],
        compression: Compression,
    ):
        self.basis, self.coefficients, self.compression = basis, coefficients, compression
        first = next(iter(next(iter(coefficients.values())).values()))
        device = next(iter(basis.values.values())).device  # a device without float64 has no eigenvalues
        self.dampings = torch.tensor(dampings, dtype=torch.float64, device=device).unsqueeze(1)
        self._blocks: list[list[Tensor]] = [[] for _ in first]

    def times(self, prefix: int, layer: str, rotated: Tensor) -> Tensor:
        """Multiply with the gradients of one layer in the basis, ``[bins, B, out, in]``, under every damping, in one GEMM.

        Returns ``[D · query bins · Q, bins · B]``.
        """
        q, eigenvalues = self._restored(prefix, layer).to(rotated), self.basis.values[layer].flatten()
        return self._products(eigenvalues, q.flatten(-2).flatten(0, 1), rotated.flatten(-2).flatten(0, 1))

    def add(self, prefix: int, total: Tensor, gradients: LayerGradients) -> None:
        """Add the sum over layers of the products with ``gradients``, ``[bins, B, out, in]`` per layer.

        Raises:
            FloatingPointError: a product is not finite. The message names the layers.
        """
        total = total.cpu()  # once, because the host waits for the device in each copy
        if not torch.isfinite(total).all():  # restore all layers at once only for the message
            finite(total, {layer: self._restored(prefix, layer) for layer in self.coefficients}, self.basis.rotate(gradients))
        bins, B = next(iter(gradients.values())).shape[:2]
        # [D, query bin, Q, train bin, B] to [D, query bin, train bin, Q, B]
        self._blocks[prefix].append(total.view(len(self.dampings), bins, -1, bins, B).transpose(2, 3))

    def products(self) -> np.ndarray:
        """The products with all blocks so far, float32 ``[D, P, query bins, training bins, Q, n]``."""
        return torch.stack([torch.cat(blocks, 4) for blocks in self._blocks], 1).float().numpy()

    def _restored(self, prefix: int, layer: str) -> Tensor:
        parts = {part: tensor[prefix] for part, tensor in self.coefficients[layer].items()}
        return self.compression.restore(parts, self.basis.values[layer].shape)

    def _products(self, eigenvalues: Tensor, q: Tensor, z: Tensor) -> Tensor:
        """``Σ q z s / (Λ + λ)`` for q ``[Q, n]``, z ``[B, n]`` and Λ ``[n]``: ``[D · Q, B]``."""
        total: Any = 0
        for columns in pieces(len(eigenvalues), max(1, 8 * step(z) // (len(self.dampings) * len(q)))):
            scale = scaling(eigenvalues[columns], self.compression) / (eigenvalues[columns] + self.dampings)
            total = total + (q[:, columns] * scale.to(q.dtype).to(q.device).unsqueeze(1)).flatten(0, 1) @ z[:, columns].T
        return total


def multiply(held: Sequence[tuple[HeldQueries, Sequence[int]]], gradients: LayerGradients) -> None:
    """Multiply held queries, which share a basis, with gradients ``[bins, B, out, in]`` per layer, over their own layers.

    Each of ``held`` comes with the positions of the prefixes to multiply. Only one layer of rotated gradients is held at a time.
    """
    totals: list[list[Any]] = [[0] * len(prefixes) for _, prefixes in held]
    basis, multiplied = held[0][0].basis, {layer for queries, _ in held for layer in queries.coefficients}
    if len(multiplied) < len(basis.values):  # blocks of other curvatures than Kronecker factors are not layers
        gradients = {layer: gradient for layer, gradient in gradients.items() if layer in multiplied}
    for layer, rotated in basis.rotations(gradients):
        for sums, (queries, prefixes) in zip(totals, held, strict=True):
            if layer not in queries.coefficients:
                continue
            for i, prefix in enumerate(prefixes):
                sums[i] = sums[i] + queries.times(prefix, layer, rotated)
    for sums, (queries, prefixes) in zip(totals, held, strict=True):
        for total, prefix in zip(sums, prefixes, strict=True):
            queries.add(prefix, total, gradients)


def scaling(eigenvalues: Tensor, compression: Compression) -> Tensor:
    """s, by which coefficients are divided before they are compressed."""
    return (eigenvalues + REFERENCE) if compression.preconditioned else (eigenvalues + REFERENCE).sqrt()


def unstable_layer(basis: Basis, damping: float) -> str | None:
    """Return the first layer in which ``1/(Λ + damping)`` amplifies rounding errors to the size of the scores, or None.

    Both gradients are known up to float32's rounding ε of their norms. A direction with Λ = 0 then has an error of about
    ε² ‖q‖ ‖z‖ / λ, compared with scores of about ‖q‖ ‖z‖ / Λ_max.
    """
    epsilon = torch.finfo(torch.float32).eps
    for layer, eigenvalues in basis.values.items():
        if eigenvalues.min() + damping <= epsilon**2 * eigenvalues.max():
            return layer
    return None


def refuse_unstable(basis: Basis, dampings: Iterable[float]) -> None:
    """Check that no damping amplifies rounding errors to the size of the scores.

    Raises:
        FloatingPointError: one of ``dampings`` is too small for a layer. The message names both.
    """
    for damping in dampings:
        if (layer := unstable_layer(basis, damping)) is not None:
            low, high = float(basis.values[layer].min()), float(basis.values[layer].max())
            raise FloatingPointError(
                f"damping={damping:g} is too small for layer {layer}, whose eigenvalues go from {low:.2g} to {high:.2g}: raise it"
            )
