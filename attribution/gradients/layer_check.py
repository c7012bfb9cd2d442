"""Checks that per-example gradients cover every trainable parameter: the layers of a model, and a comparison with autograd.

``find_layers`` raises for a parameter without a per-example formula. ``check`` detects what the modules alone do not show: weights
used functionally or through a parametrization, outputs changed by a hook, examples that influence each other, and randomness in
eval mode.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attribution.diffusion import denoiser
from attribution.gradients.convolution import ConvLayer
from attribution.gradients.layers import GroupNormLayer, Layer, LayerNormLayer, LinearLayer
from attribution.images.draws import Draws
from attribution.measurements import Inputs, Measure

SHARED = ("attribution.diffusion.denoiser", "attribution.gradients.convolution", "attribution.gradients.layers")

KINDS: tuple[type[Layer], ...] = (ConvLayer, LinearLayer, GroupNormLayer, LayerNormLayer)

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""The largest allowed difference from autograd, relative to the norm of the whole gradient. A single parameter's gradient may be
zero up to rounding, such as that of a bias before a norm. 0.05 in lower precisions; ten times as much on a GPU, where float32 may
be TF32."""


def find_layers(model: nn.Module) -> dict[nn.Module, tuple[str, Layer]]:
    """Map each module with trainable parameters to the name of its gradients and its layer.

    Tied modules share the name of the first of them.

    Raises:
        ValueError: a trainable parameter belongs to an unsupported kind of module, or is shared by modules that do not share all
            their trainable parameters; or the model has no trainable parameter.
    """
    layers: dict[nn.Module, tuple[str, Layer]] = {}
    owners: dict[nn.Parameter, tuple[str, Layer]] = {}
    for name, module in model.named_modules():
        trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not trainable:
            continue
        kind = next((kind for kind in KINDS if _computes_like(module, kind)), None)
        if kind is None or not trainable.keys() <= {"weight", "bias"}:
            named = ", ".join(f"{name}.{key}" if name else key for key in trainable)
            raise ValueError(
                f"no per-example gradient for {named} ({type(module).__name__}): only Conv2d, Linear, GroupNorm and LayerNorm with "
                "plain weight and bias have one; build the model from these, or leave the parameter out (requires_grad=False)"
            )
        layer = kind(name, module)
        shared = [key for key, p in layer.parameters.items() if p in owners]
        owner, first = owners[layer.parameters[shared[0]]] if shared else (name, layer)
        if [id(p) for p in layer.parameters.values()] != [id(p) for p in first.parameters.values()]:
            raise ValueError(
                f"{', '.join(shared)} ({type(module).__name__}) is also a parameter of {owner}, which does not share all its "
                "trainable parameters: tie both weight and bias, or neither"
            )
        layers[module] = owner, layer
        owners |= dict.fromkeys(trainable.values(), (owner, first))
    if not layers:
        raise ValueError("the model has no trainable parameter: set requires_grad=True on the parameters to differentiate")
    return layers


def _computes_like(module: nn.Module, kind: type[Layer]) -> bool:
    """Whether the module is a ``kind.MODULE`` that does not override the methods that compute its output."""
    same = (getattr(type(module), method, None) is getattr(kind.MODULE, method) for method in kind.METHODS)
    return isinstance(module, kind.MODULE) and all(same)


def check(
    model: nn.Module,
    layers: Mapping[str, Layer],
    ours: Mapping[str, Tensor],
    measure: Measure,
    x0: Tensor,
    draws: Draws,
    condition: Tensor | None = None,
) -> None:
    """Compare ``ours``, the gradients averaged over draws, with autograd on every draw separately.

    All tensors are on the model's device.

    Raises:
        RuntimeError: the gradients differ; the message names the parameter.
        FloatingPointError: the gradient by autograd is not finite; the message names the parameter.
    """
    parameters = {name: p for layer in layers.values() for name, p in layer.parameters.items()}
    tolerance = TOLERANCE.get(x0.dtype, 0.05) * (10 if x0.is_cuda else 1)
    for i in range(len(x0)):
        example = slice(i, i + 1)
        inputs = measure.inputs(x0[example], draws.rows(example), None if condition is None else condition[example])
        truth = _autograd(model, parameters, measure, inputs)
        gradients = {name: g for layer_name, layer in layers.items() for name, g in layer.split(ours[layer_name][i])}
        # All parameters in a few operations: most of them are small.
        differences = torch._foreach_sub([gradients[name] for name in truth], list(truth.values()))
        norms, distances = (torch.stack(torch._foreach_norm(tensors)) for tensors in (list(truth.values()), differences))
        allowed = tolerance * norms.norm().item()
        for (name, g), norm, difference in zip(truth.items(), norms.tolist(), distances.tolist(), strict=True):
            if not math.isfinite(norm) and not g.isfinite().all():
                raise FloatingPointError(
                    f"the gradient of {name} is not finite at t = {draws.timestep[i].tolist()}: did training diverge?"
                )
            if not difference <= allowed:
                raise RuntimeError(
                    f"the gradient of {name} is {difference:.1e} away from plain autograd (allowed: {allowed:.1e}). Use the "
                    "parameter only by calling its module, without hooks or parametrizations that change the output, and make the "
                    "output for an example independent of other examples and of random numbers"
                )


def _autograd(model: nn.Module, parameters: Mapping[str, nn.Parameter], measure: Measure, inputs: Inputs) -> dict[str, Tensor]:
    """Return the gradients averaged over ``inputs``, the draws of one example, in the shapes of the parameters."""
    total, count = {name: torch.zeros_like(p) for name, p in parameters.items()}, len(inputs.t)
    for k in range(count):
        cost = measure(denoiser(model), *inputs.rows(slice(k, k + 1))).sum() / count
        if not cost.requires_grad:
            continue
        for name, g in zip(parameters, torch.autograd.grad(cost, list(parameters.values()), allow_unused=True), strict=True):
            if g is not None:
                total[name] += g
    return total
