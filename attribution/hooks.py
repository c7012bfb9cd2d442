"""One forward and backward pass that brings out what layers saw: the only place with hooks.

A forward hook keeps the input of every call of a layer, a tensor hook brings the gradient of its output. The parameters' own
``requires_grad`` is off meanwhile, so that the summed weight gradients are not computed as well. The graph then has to start somewhere
else: where a layer's output does not require a gradient (the first convolution, the time embedding), the hook replaces it by one that does.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attribution.diffusion import denoiser
from attribution.draws import Draws
from attribution.layers import Layer
from attribution.measurements import Measure


@dataclass(eq=False)
class Call:
    """One call of a layer: its input, and the gradient of its output once the backward pass has found it."""

    layer: Layer
    input: Tensor
    gradient: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self):
        self.version = self.input._version


def run(
    model: nn.Module,
    homes: Mapping[nn.Module, tuple[str, Layer]],
    measure: Measure,
    x0: Tensor,
    draws: Draws,
    finish: Callable[[str, list[Call]], None],
    autocast: torch.autocast,
) -> None:
    """Run ``Σ measure`` over B·K inputs forward, in eval mode and under ``autocast``, and backward.

    ``homes``: modules to watch, each with the name that its gradients go by and its layer. As soon as all calls under a name are known,
    ``finish(name, calls)`` is called, without autocast or gradients; never, where the cost depends on none. ``x0 [B, C, H, W]`` and
    draws are on the model's device.

    Raises:
        ValueError: a layer called with other than one row for every input, or a measure with other than one cost for each.
        RuntimeError: a layer's input was overwritten after the call.
    """
    inputs = len(draws) * draws.count
    watch = _Watch(homes, inputs, finish)
    with torch.inference_mode(False), torch.enable_grad(), _watching(model, watch):
        x, noise = draws.images(x0).flatten(0, 1), draws.noise(x0.shape[1:], x0.dtype).flatten(0, 1)
        with autocast:
            cost = measure(denoiser(model), x, draws.timestep.flatten(), noise)
        if cost.shape != (inputs,):
            raise ValueError(
                f"{type(measure).__name__} returned costs {list(cost.shape)} for {inputs} draws: a measure returns one for each"
            )
        with torch.autocast(x0.device.type, enabled=False):
            if cost.requires_grad:
                watch.backward = True
                torch.autograd.grad(cost.sum(), watch.starts, allow_unused=True)
            watch.finish_rest()


class _Watch:
    """The calls of a pass that are not finished yet, by the name that their gradients go by."""

    def __init__(self, homes: Mapping[nn.Module, tuple[str, Layer]], inputs: int, finish: Callable[[str, list[Call]], None]):
        self.homes, self.inputs, self.finish = homes, inputs, finish
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.starts: list[Tensor] = []
        self.backward = False

    def forward_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        # Gradient checkpointing runs layers without gradients first, or once more during the backward pass.
        if not torch.is_grad_enabled():
            return None
        home, layer = self.homes[module]
        a: Tensor = args[0] if args else kwargs["input"]
        if not layer.fits(a, self.inputs):
            raise ValueError(
                f"{layer.name} ({type(module).__name__}) was called with an input {list(a.shape)} in a pass of {self.inputs} network inputs: "
                "per-example gradients need its first dimension to be the batch"
            )
        start = not output.requires_grad
        if start:
            self.starts.append(output.detach().requires_grad_())
            output = self.starts[-1]
        if start or output._is_view():
            # Neither a leaf nor a view: code after this layer may work on it in place, and the hook still gets what it should.
            output = torch.ops.aten._unsafe_view.default(output, output.shape)
        if not self.backward:
            # The hook stays on the graph until the pass is over and must not hold the tensors themselves.
            output.register_hook(partial(self.gradient_hook, home, len(self.calls[home])))
            self.calls[home].append(Call(layer, a.detach()))
        return output

    def gradient_hook(self, home: str, number: int, gradient: Tensor) -> None:
        call = self.calls[home][number]
        if call.input._version != call.version:
            raise RuntimeError(
                f"the input of {call.layer.name} was changed in place after the call: use an out-of-place operation there"
            )
        call.gradient = gradient
        if all(other.gradient is not None for other in self.calls[home]):
            self.finish(home, self.calls.pop(home))

    def finish_rest(self) -> None:
        """Finish where the cost depends on some of the calls only."""
        for home, calls in self.calls.items():
            if used := [call for call in calls if call.gradient is not None]:
                self.finish(home, used)


@contextmanager
def _watching(model: nn.Module, watch: _Watch) -> Iterator[None]:
    trained = [p for p in model.parameters() if p.requires_grad]
    handles = []
    try:
        for p in trained:
            p.requires_grad_(False)
        for module in watch.homes:
            # First of a module's hooks: another one may change the output.
            handles.append(module.register_forward_hook(watch.forward_hook, prepend=True, with_kwargs=True))
        with eval_mode(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for p in trained:
            p.requires_grad_()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards every module is back in its own mode."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
