"""Inner products of per-example gradients, layer by layer, with a check that they are finite."""

from typing import Any

import torch
from torch import Tensor

from attribution.gradients.per_example import LayerGradients


def products(queries: LayerGradients, gradients: LayerGradients) -> Tensor:
    """Return ``⟨q, g⟩`` summed over all layers, with one GEMM per layer.

    ``queries`` are blocks ``[.., Q, out, in]`` and ``gradients`` blocks ``[B, out, in]``; the result is ``[.., Q, B]``, on the
    device of the gradients.
    """
    total: Any = 0
    for layer, gradient in gradients.items():
        query = queries[layer].to(gradient)
        of_layer = query.flatten(-2).flatten(0, -2) @ gradient.flatten(1).T
        total = total + of_layer.unflatten(0, query.shape[:-2])
    return total


def dot(queries: LayerGradients, gradients: LayerGradients) -> Tensor:
    """Return ``products`` on the CPU.

    Raises:
        FloatingPointError: a product is not finite; the message names the layers.
    """
    return finite(products(queries, gradients), queries, gradients)


def rowwise_dot(queries: LayerGradients, gradients: LayerGradients) -> Tensor:
    """Return ``⟨q_b, g_b⟩`` summed over all layers, ``[B]``, for two batches of blocks ``[B, out, in]``, on the CPU.

    Raises:
        FloatingPointError: a product is not finite; the message names the layers.
    """
    of_pairs: Any = sum((queries[layer] * gradient).flatten(1).sum(1) for layer, gradient in gradients.items())
    return finite(of_pairs, queries, gradients)


def finite(values: Tensor, *gradients: LayerGradients) -> Tensor:
    """Return ``values`` on the CPU if all of them are finite.

    Raises:
        FloatingPointError: a value is not finite; the message names the layers of ``gradients`` that are not finite.
    """
    values = values.cpu()  # once, because the host waits for the device in each copy
    if torch.isfinite(values).all():
        return values
    bad = sorted({layer for blocks in gradients for layer, gradient in blocks.items() if not torch.isfinite(gradient).all()})
    raise FloatingPointError(f"gradients of {', '.join(bad) or 'all layers together'} are not finite: did training diverge?")
