"""A forward and backward pass that records the input and the output gradient of every layer; the only module with hooks.

A forward hook stores the input of each call of a layer, and a tensor hook stores the gradient of its output. ``requires_grad`` of
the parameters is off during the pass, so that autograd does not also compute the summed weight gradients. The graph then needs
another start: where the output of a layer (such as the first convolution) does not require a gradient, a tensor that does
replaces it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attribution.diffusion import denoiser, eval_mode
from attribution.gradients.layers import Layer
from attribution.measurements import Inputs, Measure

SHARED = ("attribution.diffusion.denoiser",)


@dataclass(eq=False)
class Call:
    """One call of a layer: its input, and the gradient of its output once the backward pass has reached it."""

    layer: Layer
    input: Tensor
    gradient: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self):
        self.version = self.input._version


Finish = Callable[[str, list[Call]], None]
"""Receives a name and all calls under that name, as soon as all of them have gradients."""


def run(
    model: nn.Module,
    homes: Mapping[nn.Module, tuple[str, Layer]],
    measure: Measure,
    inputs: Inputs,
    finish: Finish,
    autocast: torch.autocast,
) -> None:
    """Compute ``measure`` of N ``inputs`` in eval mode under ``autocast``, and backpropagate the sum of its costs.

    ``homes`` maps the modules to record to the name of their gradients and their layer. ``finish`` is called without autocast, once
    for every name. It is not called for a name if the costs do not depend on any of its calls.

    Raises:
        ValueError: the input of a layer does not have one row for each network input, or the measure does not return one cost for
            each row.
        RuntimeError: the input of a layer was overwritten after the call.
    """
    t = inputs.t
    watch = _Watch(homes, len(t), finish)
    with torch.inference_mode(False), torch.enable_grad(), _watching(model, watch):
        with autocast:
            costs = measure(denoiser(model), *inputs)
        if costs.shape != t.shape:
            name = type(measure).__name__
            raise ValueError(f"{name} returned costs {list(costs.shape)} for {len(t)} rows: a measure returns one for each")
        with torch.autocast(t.device.type, enabled=False):
            if costs.requires_grad:
                watch.backward = True
                torch.autograd.grad(costs.sum(), watch.starts, allow_unused=True)
            watch.finish_rest()


class _Watch:
    """The hooks of one pass, and its calls that are not finished yet, by name."""

    def __init__(self, homes: Mapping[nn.Module, tuple[str, Layer]], inputs: int, finish: Finish):
        self.homes, self.inputs, self.finish = homes, inputs, finish
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.starts: list[Tensor] = []
        self.backward = False

    def forward_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        home, layer = self.homes[module]
        a: Tensor = args[0] if args else kwargs["input"]
        if not layer.fits(a, self.inputs):
            raise ValueError(
                f"{layer.name} ({type(module).__name__}) was called with an input {list(a.shape)} in a pass of {self.inputs} "
                "network inputs: for per-example gradients its first dimension must be the batch"
            )
        start = not output.requires_grad
        if start:
            self.starts.append(output.detach().requires_grad_())
            output = self.starts[-1]
        if start or output._is_view():
            # Neither a leaf nor a view: later operations may change it in place, and the hook still gets its gradient.
            output = torch.ops.aten._unsafe_view.default(output, output.shape)
        # Gradient checkpointing runs calls again during the backward pass: these were recorded before.
        if not self.backward:
            # The hook lives as long as the graph, so it must not hold tensors that could be freed earlier.
            output.register_hook(partial(self.gradient_hook, home, len(self.calls[home])))
            self.calls[home].append(Call(layer, a.detach()))
        return output

    def gradient_hook(self, home: str, number: int, gradient: Tensor) -> None:
        call = self.calls[home][number]
        if call.input._version != call.version:
            raise RuntimeError(f"the input of {call.layer.name} was changed in place after the call: use an out-of-place operation")
        call.gradient = gradient
        if all(other.gradient is not None for other in self.calls[home]):
            self.finish(home, self.calls.pop(home))

    def finish_rest(self) -> None:
        """Finish the names for which the costs depend on only some of the calls."""
        for home, calls in self.calls.items():
            if used := [call for call in calls if call.gradient is not None]:
                self.finish(home, used)


@contextmanager
def _watching(model: nn.Module, watch: _Watch) -> Iterator[None]:
    """Put the model in eval mode, with the hooks of ``watch`` and without ``requires_grad``; restore everything on exit."""
    trained = [p for p in model.parameters() if p.requires_grad]
    handles = []
    try:
        for p in trained:
            p.requires_grad_(False)
        for module in watch.homes:
            # This hook must run first: other hooks of the module may change the output.
            handles.append(module.register_forward_hook(watch.forward_hook, prepend=True, with_kwargs=True))
        with eval_mode(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for p in trained:
            p.requires_grad_()
