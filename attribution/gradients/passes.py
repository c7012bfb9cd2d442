"""What the passes of gradient estimators share: blocks, inner products, and the model that a pass differentiates."""

from typing import Any

import torch
from torch import Tensor

from attribution.execution import Execution
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.nodes import Get, key
from attribution.training import Recorded

SHARED = ("attribution.gradients.per_example",)


def dot(queries: LayerGradients, gradients: LayerGradients) -> Tensor:
    """``⟨q, g⟩`` over all layers: ``[.., Q, out, in]`` with ``[B, out, in]`` gives ``[.., Q, B]``, one GEMM a layer.

    Raises:
        FloatingPointError: a value that is not finite, with its layer named.
    """
    total: Any = 0
    for layer, gradient in gradients.items():
        query = queries[layer].to(gradient)
        products = query.flatten(-2).flatten(0, -2) @ gradient.flatten(1).T
        total = total + products.unflatten(0, query.shape[:-2])
    return finite(total, queries, gradients)


def rowwise_dot(queries: LayerGradients, gradients: LayerGradients) -> Tensor:
    """``⟨q_b, g_b⟩`` over all layers for two batches ``[B, out, in]``: ``[B]``."""
    products: Any = sum((queries[layer] * gradient).flatten(1).sum(1) for layer, gradient in gradients.items())
    return finite(products, queries, gradients)


def finite(products: Tensor, *sides: LayerGradients) -> Tensor:
    """``products``, or an error that names the layers whose gradients are not finite."""
    if torch.isfinite(products).all():
        return products
    bad = sorted({layer for side in sides for layer, gradient in side.items() if not torch.isfinite(gradient).all()})
    raise FloatingPointError(f"gradients of {', '.join(bad) or 'all layers together'} are not finite: did training diverge?")


def engine(record: Recorded, step: int | None, execution: Execution, get: Get) -> PerExampleGradients:
    """Per-example gradients of the network as it was at ``step``, on the device; the latest one is kept for the next shard."""
    # The folder too: the same training may lie in two stores, with other rounding.
    name = key(record, step, execution.device, execution.batch_size, get(record).folder)
    if name not in _engines:
        _engines.clear()
        network = record.network(get, step).to(execution.torch_device())
        _engines[name] = PerExampleGradients(network, execution.batch_size)
    return _engines[name]


_engines: dict[str, PerExampleGradients] = {}
