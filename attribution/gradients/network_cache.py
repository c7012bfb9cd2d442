"""The network of a trained model at a checkpoint, ready for per-example gradients, and the shapes of its gradients."""

from collections.abc import Mapping
from functools import cache

from torch import nn

from attribution.double_precision import on_device
from attribution.execution import Execution
from attribution.gradients.layer_check import find_layers
from attribution.gradients.per_example import PerExampleGradients
from attribution.models.trained import Trained
from attribution.nodes import Get, key

SHARED = ("attribution.gradients.layer_check", "attribution.gradients.per_example")


def engine(trained: Trained, step: int | None, execution: Execution, get: Get) -> PerExampleGradients:
    """Return the per-example gradients of the network at checkpoint ``step``, on the device of ``execution``.

    ``step=None`` is the network as it is used after training. The latest network is cached for the next shard.
    """
    # The folder is part of the key: the same training may be in two stores, with different rounding.
    name = key(trained, step, execution.device, execution.batch_size, execution.pass_bytes, get(trained).folder)
    if name not in _engines:
        _engines.clear()
        network = on_device(trained.network(get, step), execution.torch_device())
        _engines[name] = PerExampleGradients(network, execution.batch_size, execution.pass_bytes)
    return _engines[name]


_engines: dict[str, PerExampleGradients] = {}


def gradient_shapes(trained: Trained) -> Mapping[str, tuple[int, int]]:
    """Return layer name → the shape ``[rows, columns]`` of its gradient, without loading any parameters."""
    return _shapes(trained.outline)


@cache
def _shapes(outline: nn.Module) -> Mapping[str, tuple[int, int]]:
    return {name: layer.block for name, layer in find_layers(outline).values() if name == layer.name}
