"""Checks that per-example gradients cover every trainable parameter: the layers of a model, and a comparison with autograd.

``find_layers`` chooses the formula of a module or the general mechanism of ``uses``, and raises where examples have no gradients
of their own. ``check`` detects what the modules alone do not show: weights of a module with a formula that are also used without
calling it, examples that influence each other, and randomness in eval mode.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attribution.diffusion import denoiser
from attribution.gradients.convolution import ConvLayer
from attribution.gradients.decisions import Decisions
from attribution.gradients.embedding import EmbeddingLayer
from attribution.gradients.layers import GroupNormLayer, Layer, LayerNormLayer, LinearLayer
from attribution.gradients.uses import ParameterLayer
from attribution.images.draws import Draws
from attribution.measurements import Inputs, Measure

SHARED = (
    "attribution.diffusion.denoiser",
    "attribution.gradients.convolution",
    "attribution.gradients.embedding",
    "attribution.gradients.layers",
    "attribution.gradients.uses",
)

KINDS: tuple[type[Layer], ...] = (ConvLayer, LinearLayer, GroupNormLayer, LayerNormLayer, EmbeddingLayer)

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""The largest allowed difference from autograd, relative to the norm of the whole gradient. A single parameter's gradient may be
zero up to rounding, such as that of a bias before a norm. 0.05 in lower precisions; ten times as much on a GPU, where float32 may
be TF32."""


def find_layers(model: nn.Module) -> dict[nn.Module | nn.Parameter, tuple[str, Layer]]:
    """Map each module with a formula, and each other trainable parameter, to the name of its gradients and its layer.

    Tied modules share the name of the first of them. Modules that share only some of their parameters have no formula.

    Raises:
        ValueError: a module with trainable parameters has no per-example gradients; or the model has no trainable parameter.
    """
    layers: dict[nn.Module | nn.Parameter, tuple[str, Layer]] = {}
    owners: dict[nn.Parameter, tuple[str, Layer]] = {}
    kinds, decisions = _kinds(model), Decisions()
    for name, module in model.named_modules():
        trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not trainable:
            continue
        _refuse(name, module, trainable)
        if module in kinds:
            layer = kinds[module](name, module)
            layers[module] = owners.setdefault(next(iter(trainable.values())), (name, layer))[0], layer
            continue
        for key, p in trainable.items():
            full = f"{name}.{key}" if name else key
            layers.setdefault(p, (full, ParameterLayer(full, p, decisions)))
    if not layers:
        raise ValueError("the model has no trainable parameter: set requires_grad=True on the parameters to differentiate")
    return layers


def _kinds(model: nn.Module) -> dict[nn.Module, type[Layer]]:
    """Map the modules with a formula to it. Modules that share parameters have one only if they share all, as the same kind."""
    # Attention uses the weights of its output projection without calling it.
    uncalled = {part for module in model.modules() if isinstance(module, nn.MultiheadAttention) for part in module.modules()}
    kinds: dict[nn.Module, type[Layer]] = {}
    users: dict[nn.Parameter, list[nn.Module]] = {}
    trained: dict[nn.Module, list[nn.Parameter]] = {}
    for module in model.modules():
        trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        trained[module] = list(trainable.values())
        for p in trained[module]:
            users.setdefault(p, []).append(module)
        kind = next((kind for kind in KINDS if _computes_like(module, kind)), None)
        if kind is not None and trainable and trainable.keys() <= {"weight", "bias"} and module not in uncalled:
            kinds[module] = kind
    without = [p for module, own in trained.items() if module not in kinds for p in own]
    without += [
        p for p, modules in users.items() if len({(kinds.get(module), *map(id, trained[module])) for module in modules}) > 1
    ]
    while without:  # whatever shares a parameter with a module that has no formula has none either
        for module in [module for module in users[without.pop()] if module in kinds]:
            del kinds[module]
            without += trained[module]
    return kinds


def _refuse(name: str, module: nn.Module, trainable: Mapping[str, nn.Parameter]) -> None:
    """Raise for a module in which examples of a batch influence each other, or that changes its own weights."""
    reason = None
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        reason = "training computes it from the whole batch, so that an example has no gradient of its own; use GroupNorm"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        options = {
            "max_norm": module.max_norm is not None,
            "scale_grad_by_freq": module.scale_grad_by_freq,
            "sparse": module.sparse,
        }
        if given := [option for option, on in options.items() if on]:
            reason = f"it has {', '.join(given)}; build it without"
    if reason is not None:
        named = ", ".join(f"{name}.{key}" if name else key for key in trainable)
        raise ValueError(
            f"no per-example gradient for {named} ({type(module).__name__}): {reason}, or leave the parameter out "
            "(requires_grad=False)"
        )


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
                    f"the gradient of {name} is {difference:.1e} away from plain autograd (allowed: {allowed:.1e}). Take the "
                    "parameter from its module in every pass, keep the batch in the first dimension where it is used, and make the "
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
