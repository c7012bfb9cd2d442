"""A forward and backward pass that records the input and the output gradient of every layer; the only module with hooks.

A forward hook stores the input of each call of a layer, and a tensor hook stores the gradient of its output. ``requires_grad`` of
the parameters is off during the pass, so that autograd does not also compute the summed weight gradients. The graph then needs a
tensor that requires grad to start from: where the output of a layer (such as the first convolution) does not require a gradient, a
tensor that does replaces it.
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


OnLayer = Callable[[str, list[Call]], None]
"""A callback that receives the name of a layer's gradients and all calls under that name, once all of them have gradients."""


def run(
    model: nn.Module,
    recorded_modules: Mapping[nn.Module, tuple[str, Layer]],
    measure: Measure,
    inputs: Inputs,
    on_layer: OnLayer,
    autocast: torch.autocast,
) -> None:
    """Compute ``measure`` of N ``inputs`` in eval mode under ``autocast``, and backpropagate the sum of its costs.

    ``recorded_modules`` maps each module to record to (gradient name, layer). ``on_layer`` is called without autocast, once for
    every name. It is not called for a name if the costs do not depend on any of its calls.

    Raises:
        ValueError: the input of a layer does not have one row for each network input, or the measure does not return one cost for
            each row.
        RuntimeError: the input of a layer was overwritten after the call.
    """
    t = inputs.t
    recorder = _Recorder(recorded_modules, len(t), on_layer)
    with torch.inference_mode(False), torch.enable_grad(), _recording(model, recorder):
        with autocast:
            costs = measure(denoiser(model), *inputs)
        if costs.shape != t.shape:
            name = type(measure).__name__
            raise ValueError(f"{name} returned costs {list(costs.shape)} for {len(t)} rows: a measure returns one for each")
        with torch.autocast(t.device.type, enabled=False):
            if costs.requires_grad:
                recorder.backward = True
                torch.autograd.grad(costs.sum(), recorder.starts, allow_unused=True)
            recorder.flush()


class _Recorder:
    """The hooks of one pass, and the calls that still wait for gradients, by name."""

    def __init__(self, recorded_modules: Mapping[nn.Module, tuple[str, Layer]], inputs: int, on_layer: OnLayer):
        self.recorded_modules, self.inputs, self.on_layer = recorded_modules, inputs, on_layer
        self.calls: defaultdict[str, list[Call]] = defaultdict(list)
        self.starts: list[Tensor] = []
        self.backward = False

    def forward_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        name, layer = self.recorded_modules[module]
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
            output.register_hook(partial(self.gradient_hook, name, len(self.calls[name])))
            self.calls[name].append(Call(layer, a.detach()))
        return output

    def gradient_hook(self, name: str, number: int, gradient: Tensor) -> None:
        call = self.calls[name][number]
        if call.input._version != call.version:
            raise RuntimeError(f"the input of {call.layer.name} was changed in place after the call: use an out-of-place operation")
        call.gradient = gradient
        if all(other.gradient is not None for other in self.calls[name]):
            self.on_layer(name, self.calls.pop(name))

    def flush(self) -> None:
        """Report the names for which the costs depend on only some of the calls."""
        for name, calls in self.calls.items():
            if used := [call for call in calls if call.gradient is not None]:
                self.on_layer(name, used)


@contextmanager
def _recording(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Put the model in eval mode, with the hooks of ``recorder`` and without ``requires_grad``; restore everything on exit."""
    trained = [p for p in model.parameters() if p.requires_grad]
    handles = []
    try:
        for p in trained:
            p.requires_grad_(False)
        for module in recorder.recorded_modules:
            # This hook must run first: other hooks of the module may change the output.
            handles.append(module.register_forward_hook(recorder.forward_hook, prepend=True, with_kwargs=True))
        with eval_mode(model):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for p in trained:
            p.requires_grad_()
