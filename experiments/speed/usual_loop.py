"""K-FAC influence as it is usually written: a loop over images, with one backward pass for the draws of an image.

It follows the equations without any of this program's optimizations: patches are written out, and a gradient is the one that
autograd leaves for the mean of an image's draws.
"""

from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.curvature.pseudo_gradients import kronecker_modules
from attribution.diffusion import denoiser
from attribution.gradients import hooks
from attribution.gradients.per_example import PerExampleGradients
from attribution.measurements import Inputs, Measure
from experiments.speed.problem import DAMPING, Problem, Side

Layer = nn.Linear | nn.Conv2d
Factors = dict[Layer, tuple[Tensor, Tensor]]


def usual_loop(problem: Problem) -> Tensor:
    """The scores ``[Q, N]`` of K-FAC influence."""
    network = problem.network()
    layers = [module for module in network.modules() if isinstance(module, Layer)]
    bases = {layer: _eigen(*factors) for layer, factors in _factors(network, layers, problem).items()}
    queries = [_preconditioned(gradient, bases) for gradient in _gradients(network, layers, problem.objective, problem.queries)]
    stacked = torch.stack(queries)
    scores = [stacked @ _flat(gradient) for gradient in _gradients(network, layers, problem.objective, problem.train)]
    return torch.stack(scores, 1)


def _factors(network: nn.Module, layers: list[Layer], problem: Problem) -> Factors:
    """A and B of every layer: means over all inputs and positions of a aᵀ, and over all inputs of b bᵀ summed over positions."""
    sums: dict[str, list[Tensor]] = {}
    rows: dict[str, int] = {}

    def add(name: str, calls: list[hooks.Call]) -> None:
        for call in calls:
            a, b = _positions(call.layer.module, call.input, cast(Tensor, call.gradient))
            rows[name] = rows.get(name, 0) + len(a)
            sums[name] = [total + side.T @ side for total, side in zip(sums.get(name, (0, 0)), (a, b), strict=True)]

    side, probe, modules = problem.curvature, problem.probe, kronecker_modules(PerExampleGradients(network))
    for image in range(len(side)):
        inputs = side.inputs(probe, slice(image, image + 1))
        hooks.run(network, modules, probe, inputs, add, torch.autocast(inputs.t.device.type, enabled=False))
    names, inputs = [modules[layer][0] for layer in layers], len(side) * problem.draws
    return {layer: (sums[name][0] / rows[name], sums[name][1] / inputs) for layer, name in zip(layers, names, strict=True)}


def _positions(layer: Layer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of every position, with a 1 for the bias, ``[R, in + 1]``, and the gradients of the outputs ``[R, out]``."""
    if isinstance(layer, nn.Conv2d):
        a = F.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT  # pyright: ignore[reportArgumentType]
        b = b.flatten(2).mT
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    return (F.pad(a, (0, 1), value=1.0) if layer.bias is not None else a), b


def _eigen(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The eigenvectors of both factors, and the products of their eigenvalues ``[out, in + 1]``."""
    (a, QA), (b, QB) = (torch.linalg.eigh(factor.double()) for factor in (A, B))
    return QA.float(), QB.float(), torch.outer(b, a).clamp(min=0).float()


def _preconditioned(gradients: list[Tensor], bases: dict[Layer, tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """(B ⊗ A + λI)⁻¹ times the gradient of every layer, ``[P]``."""
    blocks = []
    for gradient, (QA, QB, values) in zip(gradients, bases.values(), strict=True):
        blocks.append(QB @ ((QB.T @ gradient @ QA) / (values + DAMPING)) @ QA.T)
    return _flat(blocks)


def _gradients(network: nn.Module, layers: Iterable[Layer], measure: Measure, side: Side) -> Iterator[list[Tensor]]:
    """Yield the gradient of each image's cost, the mean over its draws: [W | b] of every layer."""
    for image in range(len(side)):
        network.zero_grad()
        _cost(network, measure, side.inputs(measure, slice(image, image + 1))).mean().backward()
        yield [_joint(layer) for layer in layers]


def _joint(layer: Layer) -> Tensor:
    assert layer.weight.grad is not None
    weight = layer.weight.grad.flatten(1)
    return weight if layer.bias is None else torch.cat([weight, layer.bias.grad[:, None]], 1)  # pyright: ignore


def _cost(network: nn.Module, measure: Measure, inputs: Inputs) -> Tensor:
    return measure(denoiser(network), *inputs)


def _flat(blocks: list[Tensor]) -> Tensor:
    return torch.cat([block.flatten() for block in blocks])
