"""Forward and backward passes that record the input and the output gradient of every layer; the only module with hooks.

A forward hook stores the input of each call of a layer, and a tensor hook stores the gradient of its output. ``requires_grad`` of
the parameters is off during the pass, so that autograd does not also compute the summed weight gradients. The graph then needs a
tensor that requires grad to start from: where the output of a layer (such as the first convolution) does not require a gradient, a
tensor that does replaces it.
"""

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from attribution.diffusion import Denoiser, denoiser, eval_mode
from attribution.gradients.layers import Layer
from attribution.gradients.uses import ParameterLayer, Trace, Traced, Use
from attribution.measurements import Inputs, Measure

SHARED = ("attribution.diffusion.denoiser", "attribution.gradients.uses")


@dataclass(eq=False)
class Call:
    """One call of a layer: its input, and the gradient of its output once the backward pass has reached it."""

    layer: Layer
    input: Tensor
    gradient: Tensor | None = None
    version: int = field(init=False)

    def __post_init__(self):
        self.version = self.input._version


Recorded = Mapping[nn.Module | nn.Parameter, tuple[str, Layer]]
"""Module, or parameter without a module that has a formula → (name of its gradients, layer)."""

OnLayer = Callable[[str, list[Call]], None]
"""A callback that receives the name of a layer's gradients and all calls under that name, once all of them have gradients."""

OnLayerOf = Callable[[int, str, list[Call]], None]
"""The same with the position of the measure first, for several measures."""


def run(
    model: nn.Module,
    recorded: Recorded,
    measure: Measure,
    inputs: Inputs,
    on_layer: OnLayer,
    autocast: torch.autocast,
) -> None:
    """Compute ``measure`` of N ``inputs`` in eval mode under ``autocast``, and backpropagate the sum of its costs.

    ``recorded`` maps each module or parameter to record to (gradient name, layer). ``on_layer`` is called without autocast, once
    for every name. It is not called for a name if the costs do not depend on any of its calls.

    Raises:
        ValueError: the input of a layer does not have one row for each network input, or the measure does not return one cost for
            each row.
        RuntimeError: the input of a layer was overwritten after the call.
    """
    run_all(model, recorded, [measure], inputs, lambda _, name, calls: on_layer(name, calls), autocast)


def run_all(
    model: nn.Module,
    recorded: Recorded,
    measures: Sequence[Measure],
    inputs: Inputs,
    on_layer: OnLayerOf,
    autocast: torch.autocast,
) -> None:
    """Do what ``run`` does for each of ``measures`` at the same ``inputs``, with one backward pass for each of them.

    The network is evaluated once for all measures that call it with the same arguments, such as the loss and functions of the
    output at x_t. Raises the errors of ``run``.
    """
    t = inputs.t
    recorder = _Recorder(recorded, len(t))
    with torch.inference_mode(False), torch.enable_grad(), _recording(model, recorder), closing(recorder):
        for position, measure in enumerate(measures):
            last = position == len(measures) - 1
            with autocast:
                costs = measure(recorder.evaluating(denoiser(model)), *inputs)
            if costs.shape != t.shape:
                name = type(measure).__name__
                raise ValueError(f"{name} returned costs {list(costs.shape)} for {len(t)} rows: a measure returns one for each")
            with torch.autocast(t.device.type, enabled=False):
                recorder.backpropagate(costs, partial(on_layer, position), keep=not last)


@dataclass(eq=False)
class _Evaluation:
    """One evaluation of the network: arguments, output, the calls of recorded layers by number, and the starts of its graph."""

    arguments: tuple[Tensor | None, ...]
    output: Tensor | None = None
    version: int = 0
    calls: dict[int, tuple[str, Call]] = field(default_factory=dict)
    starts: list[Tensor] = field(default_factory=list)

    def serves(self, arguments: tuple[Tensor | None, ...]) -> bool:
        """Whether it has the output for ``arguments``: equal constants, and no measure has changed the output in place."""
        unchanged = self.output is not None and self.output._version == self.version
        return unchanged and all(map(_same, self.arguments, arguments))


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and not (one.requires_grad or other.requires_grad) and torch.equal(one, other)


class _Recorder:
    """The hooks of the passes of several measures.

    ``_kept`` has the evaluations of the measure before, ``_used`` those of the current measure, and ``_waiting`` the calls that
    still wait for gradients, by name.
    """

    def __init__(self, recorded: Recorded, inputs: int):
        self.recorded, self.inputs = recorded, inputs
        self._kept: list[_Evaluation] = []
        self._used: list[_Evaluation] = []
        self._waiting: defaultdict[str, dict[int, Call]] = defaultdict(dict)
        self._numbers = itertools.count()
        self._on_layer: OnLayer | None = None  # set during a backward pass

    def evaluating(self, denoise: Denoiser) -> Denoiser:
        """Return ``denoise`` for the next measure: it repeats no evaluation of the measure before."""
        self._kept, self._used = self._used, []

        def evaluate(x_t: Tensor, t: Tensor, condition: Tensor | None = None, /) -> Tensor:
            if not torch.is_grad_enabled():
                return denoise(x_t, t, condition)
            arguments = (x_t, t, condition)
            evaluation = next((kept for kept in self._kept if kept.serves(arguments)), None)
            if evaluation is None:
                self._used.append(evaluation := _Evaluation(arguments))
                evaluation.output = denoise(x_t, t, condition)
                evaluation.version = evaluation.output._version
            elif evaluation not in self._used:
                self._used.append(evaluation)
            assert evaluation.output is not None
            return evaluation.output

        return evaluate

    def backpropagate(self, costs: Tensor, on_layer: OnLayer, keep: bool) -> None:
        """Report the gradients of ``costs``; ``keep`` the graph for another measure."""
        self._kept = []  # frees the graphs that this measure has not used
        starts = [start for evaluation in self._used for start in evaluation.starts]
        for evaluation in self._used:
            for number, (name, call) in evaluation.calls.items():
                self._waiting[name][number] = copy.copy(call) if keep else call
            if not keep:
                evaluation.calls = {}
        if costs.requires_grad:
            self._on_layer = on_layer
            torch.autograd.grad(costs.sum(), starts, allow_unused=True, retain_graph=keep)
            self._on_layer = None
        # The names for which the costs depend on only some of the calls.
        for name, calls in self._waiting.items():
            if used := [call for call in calls.values() if call.gradient is not None]:
                on_layer(name, used)
        self._waiting.clear()

    def close(self) -> None:
        """Drop the graphs. They hold hooks, which hold this object: a cycle that garbage collection does not see."""
        self._kept, self._used = [], []

    def forward_hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        name, layer = self.recorded[module]
        a: Tensor = args[0] if args else kwargs["input"]
        if isinstance(a, Traced) or not layer.fits(a, self.inputs):
            given = f"the parameter {', '.join(sorted(a.names))}" if isinstance(a, Traced) else f"an input {list(a.shape)}"
            raise ValueError(
                f"{layer.name} ({type(module).__name__}) was called with {given} in a pass of {self.inputs} network inputs: for "
                "per-example gradients the first dimension of its input must be the batch; repeat a parameter or a constant for "
                "each input first (expand)"
            )
        return self.track(output, 0, [(name, layer, a.detach())])

    def use_hook(self, output: Tensor, dim: int, uses: Sequence[Use]) -> Tensor:
        """Record the uses of parameters with one output; ``dim`` is its dimension of the inputs."""
        rows = torch.arange(self.inputs, device=output.device)
        return self.track(output, dim, [(use.name, use, rows) for use in uses])

    def track(self, output: Tensor, dim: int, recorded: Sequence[tuple[str, Layer, Tensor]]) -> Tensor:
        """Record calls (name, layer, input) with the same output; return the output to go on with."""
        evaluation, start = self._used[-1], not output.requires_grad
        if start:
            output = output.detach().requires_grad_()
            if self._on_layer is None:
                evaluation.starts.append(output)
        if start or output._is_view():
            # Neither a leaf nor a view: later operations may change it in place, and the hook still gets its gradient.
            output = torch.ops.aten._unsafe_view.default(output, output.shape)
        # Gradient checkpointing runs calls again during the backward pass: these were recorded before.
        if self._on_layer is None:
            # The hook lives as long as the graph, so it must not hold tensors that could be freed earlier.
            for name, layer, a in recorded:
                number = next(self._numbers)
                output.register_hook(partial(self.gradient_hook, name, number, dim))
                evaluation.calls[number] = name, Call(layer, a)
        return output

    def gradient_hook(self, name: str, number: int, dim: int, gradient: Tensor) -> None:
        calls = self._waiting[name]
        call = calls[number]
        if call.input._version != call.version:
            raise RuntimeError(f"the input of {call.layer.name} was changed in place after the call: use an out-of-place operation")
        call.gradient = gradient.movedim(dim, 0) if dim else gradient
        if all(other.gradient is not None for other in calls.values()):
            assert self._on_layer is not None
            self._on_layer(name, list(self._waiting.pop(name).values()))


@contextmanager
def _recording(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Put the model in eval mode, with the hooks of ``recorder`` and without ``requires_grad``; restore everything on exit."""
    # Several times as fast as model.parameters(), which counts in passes over few inputs.
    parameters = (p for module in model.modules() for p in module._parameters.values())
    trained = [p for p in parameters if p is not None and p.requires_grad]
    handles = []
    try:
        for p in trained:
            p.requires_grad_(False)
        for module in recorder.recorded:
            if not isinstance(module, nn.Module):
                continue
            # This hook must run first: other hooks of the module may change the output.
            handles.append(module.register_forward_hook(recorder.forward_hook, prepend=True, with_kwargs=True))
        with eval_mode(model), _tracing(model, recorder):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for p in trained:
            p.requires_grad_()


@contextmanager
def _tracing(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Put traced tensors in the place of the parameters that have no module with a formula."""
    layers = {p: layer for p, (_, layer) in recorder.recorded.items() if isinstance(layer, ParameterLayer)}
    if not layers:
        yield
        return
    trace = Trace(model, cast(Any, layers), recorder.inputs, recorder.use_hook)
    places = [(module, key, p) for module in model.modules() for key, p in module._parameters.items() if p in layers]
    try:
        for module, key, p in places:
            module._parameters[key] = cast(Any, trace.traced(cast(nn.Parameter, p)))
        yield
    finally:
        for module, key, p in places:
            module._parameters[key] = p
