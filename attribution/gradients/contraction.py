"""Sums over the recorded calls of a layer: gradients, linear functions of them, and norms of single draws."""

import math
from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from attribution.gradients.hooks import Call
from attribution.gradients.layers import Layer, pieces, step

SHARED = ("attribution.gradients.hooks", "attribution.gradients.layers")


class Contraction(Protocol):
    """A linear function of per-example gradients, such as a projection, computed from the calls of the layers."""

    blocks: Mapping[str, tuple[int, int]]
    """Layer name → shape of the result for one example."""

    def contract(self, name: str, layer: Layer, a: Tensor, b: Tensor, K: int) -> Tensor:
        """Return the sum over the K draws of each example, ``[N / K, *blocks[name]]``.

        ``a`` and ``b`` are the input and the output gradient of one call of ``layer``; ``name`` is that of its gradients.
        """
        ...


def contracted(
    contraction: Contraction, name: str, calls: list[Call], K: int, dtype: torch.dtype, weights: Tensor | None
) -> Tensor:
    """Return Σ_k w_k ∇_k of a layer under the contraction, summed over its calls: ``[B, rows, columns]``."""
    total: Tensor | None = None
    for layer, a, b in _pairs(calls, dtype):
        b = b if weights is None else b * weights.reshape(-1, *[1] * (b.dim() - 1))
        block = contraction.contract(name, layer, a, b, K)
        total = block if total is None else total.add_(block)
    assert total is not None
    return total


def square_norms(calls: list[Call], dtype: torch.dtype) -> Tensor:
    """Return ‖∇‖² of every input of a pass in one layer, ``[N]``, where ∇ is the sum over the calls of the layer."""
    pairs = list(_pairs(calls, dtype))
    if len(pairs) == 1:
        layer, a, b = pairs[0]
        if (direct := layer.square_norms(a, b)) is not None:
            return direct
    squares = []
    for chunk in pieces(len(pairs[0][1]), max(1, step(pairs[0][1]) // math.prod(pairs[0][0].block))):
        block, *others = (layer.contract(a[chunk], b[chunk], 1) for layer, a, b in pairs)
        for other in others:
            block += other
        squares.append(block.square_().sum((1, 2)))
    return torch.cat(squares)


def _pairs(calls: list[Call], dtype: torch.dtype) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    """Yield the layer, the input and the output gradient of each call."""
    for call in calls:
        assert call.gradient is not None
        a = call.input.to(dtype) if call.input.is_floating_point() else call.input
        yield call.layer, a, call.gradient.to(dtype)
