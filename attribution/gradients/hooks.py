"""One forward and backward pass that brings out what every layer saw: the only place with hooks.

A forward hook keeps the input of each call of a layer, a tensor hook brings the gradient of its output. The parameters' own
``requires_grad`` is off meanwhile, so that the summed weight gradients are not computed as well. The graph then has to start
somewhere else: a layer's output that does not require a gradient (the first convolution's) is replaced by one that does.
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


@dataclass(eq=False)
class Call:
    """One call of a layer: its input, and the gradient of its output once the backward pass has come to it."""

    layer: Layer
    input: Tensor
    gradient: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self):
        self.version = self.input._version


Finish = Callable[[str, list[Call]], None]
"""Takes the calls that go by a name, all with their gradients, as soon as they are known."""


def run(
    model: nn.Module,
    homes: Mapping[nn.Module, tuple[str, Layer]],
    measure: Measure,
    inputs: Inputs,
    finish: Finish,
    autocast: torch.autocast,
) -> None:
    """``measure`` of N ``inputs`` forward, in eval mode and under ``autocast``, and the sum of its costs backward.

    ``homes``: the modules to watch, each with its layer and the name that its gradients go by. ``finish`` is called without
    autocast, once for every name; for none of whose calls the costs depend on, not at all.

    Raises:
        ValueError: a layer was called with other than a row for each input, or the measure returned other than a cost for each.
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
    """The calls of a pass that are not finished yet, by name."""

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
            # Neither a leaf nor a view: what follows may work on it in place, and the hook still gets the gradient of this value.
            output = torch.ops.aten._unsafe_view.default(output, output.shape)
        # What gradient checkpointing runs once more, during the backward pass, was a call before.
        if not self.backward:
            # The hook lives as long as the graph and must not hold tensors that could be freed before.
            output.register_hook(partial(self.gradient_hook, home, len(self.calls[home])))
            self.calls[home].append(Call(layer, a.detach()))
        return output

    def gradient_hook(self, home: str, number: int, gradient: Tensor) -> None:
        call = self.calls[home][number]
        if call.input._version != call.version:
            raise RuntimeError(f"the input of {call.layer.name} was changed in place after the call: make that out of place")
        call.gradient = gradient
        if all(other.gradient is not None for other in self.calls[home]):
            self.finish(home, self.calls.pop(home))

    def finish_rest(self) -> None:
        """Finish the names of which the costs depend on some calls only."""
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
