"""No part of a gradient is missing: which layers a model's parameters are in, and the proof by plain autograd.

``find_layers`` refuses what has no per-example formula. ``check`` finds what no inspection of modules can: weights used functionally or
through a parametrization, outputs changed by somebody's hook, examples that influence each other, randomness in eval mode.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attribution.convolution import ConvLayer
from attribution.diffusion import denoiser
from attribution.draws import Draws
from attribution.layers import GroupNormLayer, Layer, LayerNormLayer, LinearLayer
from attribution.measurements import Measure

KINDS: tuple[type[Layer], ...] = (ConvLayer, LinearLayer, GroupNormLayer, LayerNormLayer)

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference from autograd, as a share of the whole gradient's norm. Parts of a gradient may be zero up to rounding (a convolution's
bias before a norm), so no smaller scale will do. Lower precisions: 0.05; float32 leaves room for TF32."""


def find_layers(model: nn.Module) -> dict[nn.Module, tuple[str, Layer]]:
    """Modules with trainable parameters, each with its layer and the name that its gradient goes by (tied modules: the first one's).

    Raises:
        ValueError: a trainable parameter of another kind of module, or shared between modules that differ; nothing trainable.
    """
    layers: dict[nn.Module, tuple[str, Layer]] = {}
    homes: dict[nn.Parameter, tuple[str, Layer]] = {}
    for name, module in model.named_modules():
        own = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not own:
            continue
        kind = next((kind for kind in KINDS if _computes_like(module, kind)), None)
        if kind is None or not own.keys() <= {"weight", "bias"}:
            named = ", ".join(f"{name}.{key}" if name else key for key in own)
            raise ValueError(
                f"no per-example gradient for {named} ({type(module).__name__}): only Conv2d, Linear, GroupNorm and LayerNorm with plain "
                "weight and bias are supported; build the model from these, or freeze the parameter (requires_grad=False) to leave it out"
            )
        layer = kind(name, module)
        home, first = homes.get(next(iter(own.values())), (name, layer))
        shared = [key for key, p in layer.parameters.items() if p in homes]
        if shared and [*map(id, layer.parameters.values())] != [*map(id, first.parameters.values())]:
            raise ValueError(
                f"{', '.join(shared)} ({type(module).__name__}) is shared with another module, but not everything that they train: "
                "tie weight and bias, or give each its own"
            )
        layers[module] = home, layer
        homes |= dict.fromkeys(own.values(), (home, first))
    if not layers:
        raise ValueError("the model has no trainable parameter: set requires_grad=True for those that gradients are wanted of")
    return layers


def _computes_like(module: nn.Module, kind: type[Layer]) -> bool:
    same = (getattr(type(module), method, None) is getattr(kind.MODULE, method) for method in kind.METHODS)
    return isinstance(module, kind.MODULE) and all(same)


def check(
    model: nn.Module, layers: Mapping[str, Layer], ours: Mapping[str, Tensor], measure: Measure, x0: Tensor, draws: Draws
) -> None:
    """Compare ``ours``, averaged over draws, with autograd on every draw by itself; ``x0 [B, C, H, W]`` and draws on the model's device.

    Raises:
        RuntimeError: they disagree, or autograd's gradient is not finite; names the parameter.
    """
    parameters = {name: p for layer in layers.values() for name, p in layer.parameters.items()}
    tolerance = TOLERANCE.get(x0.dtype, 0.05)
    for i in range(len(x0)):
        reference = _autograd(model, parameters, measure, x0[i : i + 1], draws.rows(slice(i, i + 1)))
        total = torch.stack([g.norm() for g in reference.values()]).norm()
        for name, found in ((key, g) for layer, block in ours.items() for key, g in layers[layer].split(block[i])):
            if not reference[name].isfinite().all():
                raise RuntimeError(
                    f"the gradient of {name} is not finite at t = {draws.timestep[i].tolist()}: has training diverged?"
                )
            difference = (found - reference[name]).norm()
            if not difference <= tolerance * total:
                raise RuntimeError(
                    f"the gradient of {name} differs from plain autograd by {difference:.1e} (whole gradient: {total:.1e}). Its module must "
                    "be called for every use of the parameter, without changes by hooks or parametrizations, and an example's output must "
                    "depend neither on the other examples nor on chance"
                )


def _autograd(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], measure: Measure, x0: Tensor, draws: Draws
) -> dict[str, Tensor]:
    """Gradients of one example, ``x0 [1, C, H, W]``, averaged over its draws, in the shapes of the parameters."""
    x, noise = draws.images(x0)[0], draws.noise(x0.shape[1:], x0.dtype)[0]
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for k in range(draws.count):
        cost = measure(denoiser(model), x[k : k + 1], draws.timestep[0, k : k + 1], noise[k : k + 1]).sum() / draws.count
        if cost.requires_grad:
            gradients = torch.autograd.grad(cost, list(parameters.values()), allow_unused=True)
            for g, sum_ in zip(gradients, total.values(), strict=True):
                if g is not None:
                    sum_ += g
    return total
