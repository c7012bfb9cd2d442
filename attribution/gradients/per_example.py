"""Per-example gradients of a measure, averaged over draws.

A pass over B examples × K draws records the input and the output gradient of every layer (``hooks``). Their product over the
positions and the draws of an example is the gradient of that example (Goodfellow 2015, "Efficient per-example gradient
computations"; Rochette et al. 2019, for convolutional networks).

Attribution runs in eval mode: a pass switches the model to it and back afterwards. Frozen parameters (``requires_grad=False``) are
left out. Parameters without a formula take the general way of ``uses``; those of BatchNorm are refused.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from attribution.diffusion import eval_mode
from attribution.gradients import hooks, layer_check
from attribution.gradients.activations import activation_bytes
from attribution.gradients.contraction import Contraction, contracted, square_norms
from attribution.gradients.decisions import Decisions
from attribution.gradients.hooks import Call, OnLayer
from attribution.gradients.layers import Layer, pieces
from attribution.gradients.uses import ParameterLayer
from attribution.images.draws import Draws
from attribution.measurements import Inputs, Measure
from attribution.transfers import to_device

SHARED = (
    "attribution.gradients.activations",
    "attribution.gradients.contraction",
    "attribution.gradients.convolution",
    "attribution.gradients.hooks",
    "attribution.gradients.layer_check",
    "attribution.gradients.layers",
)

LayerGradients = dict[str, Tensor]
"""Layer (module) name → joint block ``[B, rows, columns]`` (see ``layers``); tied modules share the name of the first of them."""

Weights = Callable[[Tensor], Tensor] | Tensor | None
"""A weight for each draw: ``[B, K]``, an elementwise function of the draws' gradient norms, or None for 1."""


_Part = tuple[slice, slice]
"""The slices of examples and of draws in one pass."""

_Calls = dict[str, list[Call]]
"""The recorded calls of a pass, by name."""


class PerExampleGradients:
    """Computes the gradients of a model's trainable parameters for each example of a batch.

    ``batch_size`` is the largest number of network inputs (examples × draws) in one pass. If their activations take more than
    ``pass_memory`` bytes, a pass has fewer: a power of 2. Results do not depend on it. Each pass reads the parameters, so other
    values may be loaded between captures.

    Raises:
        ValueError: a trainable parameter has no gradients of single examples (the message names it and its module), or the model
            has no trainable parameter.
    """

    def __init__(self, model: nn.Module, batch_size: int = 128, pass_memory: float = math.inf):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: a pass needs at least 1 network input")
        self.model, self.batch_size, self.pass_memory = model, batch_size, pass_memory
        self.recorded = layer_check.find_layers(model)
        self.layers: dict[str, Layer] = {name: layer for name, layer in self.recorded.values() if name == layer.name}
        self.blocks: Mapping[str, tuple[int, int]] = {name: layer.block for name, layer in self.layers.items()}
        self.parameters = [p for layer in self.layers.values() for p in layer.parameters.values()]
        self._checked = 0

    def capture(self, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> "Captured":
        """Return the gradients of ``measure`` for the images ``x0 [B, C, H, W]`` (or other inputs of it) at their ``draws``.

        ``condition [B, ...]`` is an additional input of the network for each example. The first capture compares the gradients of
        up to two examples with plain autograd.

        Raises:
            ValueError: ``x0`` is empty, or ``draws`` has another number of examples.
            RuntimeError: the gradients differ from autograd, because the hooks miss a part or the examples influence each other;
                the message names the parameter.
        """
        if not len(x0) == len(draws) > 0:
            raise ValueError(
                f"x0 has {len(x0)} examples, but the draws cover {len(draws)} examples: give the same number of both, at least 1"
            )
        self.inputs_per_pass(measure, x0, draws, condition)
        return Captured(self, measure, x0, draws, condition)

    def inputs_per_pass(self, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> int:
        """Return the number of network inputs in one pass, after the check of ``capture``, with the arguments of a capture."""
        # A single input cannot show whether inputs influence each other: check again once there are more.
        if self._checked < min(2, len(draws) * draws.count):
            self._check(measure, x0[:2], draws.rows(slice(2)).columns(slice(2)), None if condition is None else condition[:2])
        return self.batch_size

    def contract(self, name: str, layer: Layer, a: Tensor, b: Tensor, K: int) -> Tensor:
        """Return the gradients themselves: ``Layer.contract``."""
        return layer.contract(a, b, K)

    @property
    def gradients_at_once(self) -> int:
        """The number of inputs for which whole gradients take at most ``pass_memory`` bytes, at least 1."""
        size = sum(p.numel() * p.element_size() for p in self.parameters)
        return max(1, int(min(self.pass_memory / size, self.batch_size)))

    def versions(self) -> list[tuple[int, int]]:
        """Return a list that changes when a parameter is written to or moves to other memory."""
        return [(p.data_ptr(), p._version) for p in self.parameters]

    def _check(self, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None) -> None:
        p = self.parameters[0]
        x0, draws = x0.to(p.device, p.dtype), draws.to(p.device)
        condition = None if condition is None else condition.to(p.device)
        # Always in full precision: the tolerance depends on the precision, and what the check detects does not.
        with torch.autocast(p.device.type, enabled=False), torch.inference_mode(False), torch.enable_grad():
            self._decide(measure, x0, draws, condition)
            captured = Captured(self, measure, x0, draws, condition)
            if math.isfinite(self.pass_memory):
                self.batch_size = inputs_that_fit(self.batch_size, self.pass_memory, captured.activation_bytes())
            ours = captured.mean()
            with eval_mode(self.model):
                layer_check.check(self.model, self.layers, ours, measure, x0, draws, condition)
        self._checked = len(draws) * draws.count
        for layer in self.layers.values():
            if isinstance(layer, ParameterLayer):
                layer.decisions.closed = True

    def _decide(self, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None) -> None:
        """Run a pass that shows which tensors have one row for each input, where parameters have no formula (``uses``)."""
        layers = [layer for layer in self.layers.values() if isinstance(layer, ParameterLayer)]
        if layers and layers[0].decisions.empty:
            inputs = measure.inputs(x0, draws, condition)
            repeated = inputs.rows(torch.arange(Decisions.INPUTS, device=inputs.t.device) % len(inputs.t))
            autocast = torch.autocast(inputs.t.device.type, enabled=False)
            hooks.run(self.model, self.recorded, measure, repeated, lambda name, calls: None, autocast)


def inputs_that_fit(most: int, memory: float, size: float) -> int:
    """Return the number of inputs of a pass: ``most``, or the largest power of 2 of ``size`` bytes each that ``memory`` holds."""
    return most if most * size <= memory else 2 ** int(math.log2(max(1, memory / size)))


def per_example_gradients(
    measure: Measure, model: nn.Module, x0: Tensor, draws: Draws, condition: Tensor | None = None
) -> LayerGradients:
    """Return the gradients of ``measure`` for each image of ``x0 [B, C, H, W]`` (``PerExampleGradients``), averaged over draws."""
    return PerExampleGradients(model).capture(measure, x0, draws, condition).mean()


class Captured:
    """The gradients ∇_{b,k} of B examples × K draws, computed on request in the autocast state of the capture.

    Results are float32, or float64 if the parameters are. If one pass holds all inputs, ``norms`` keeps the recorded calls of the
    pass for a following ``mean``. Otherwise the calls of each pass are dropped after it.
    """

    def __init__(self, owner: PerExampleGradients, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None = None):
        self._owner, self._measure, self._x0, self._draws, self._condition = owner, measure, x0, draws, condition
        p = owner.parameters[0]
        kind = p.device.type
        self._device, self._dtype = p.device, torch.promote_types(p.dtype, torch.float32)
        self._autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self._versions = owner.versions()
        self._parts = _parts(len(draws), draws.count, owner.batch_size)
        self._kept: _Calls | None = None
        self._norms: Tensor | None = None
        self._mean: LayerGradients | None = None
        self._masked: tuple[Captured, Tensor] | None = None  # after ``where``: the capture with all draws, and the mask

    def keep_calls(self) -> None:
        """Run the pass and keep its recorded calls for several means. Does nothing if one pass does not hold all inputs."""
        if len(self._parts) == 1 and self._draws.count > 1:
            self._record(self._parts[0])

    def activation_bytes(self) -> float:
        """Run the first pass, and return the bytes per input that it keeps. A single pass also keeps its recorded calls."""
        recorded: _Calls = {}
        owner, inputs = self._owner, self._inputs(self._parts[0])
        size = activation_bytes(owner.model, owner.recorded, self._measure, inputs, recorded.__setitem__)
        if len(self._parts) == 1:
            self._kept = recorded
        return size

    def norms(self) -> Tensor:
        """Return ‖∇_{b,k}‖ of every draw over all layers, ``[B, K]``."""
        if self._masked is not None:
            return self._masked[0].norms()
        if self._norms is None and self._draws.count == 1:
            self._norms = torch.stack([block.flatten(1).norm(dim=1) for block in self.mean().values()]).norm(dim=0).unsqueeze(1)
        elif self._norms is None:
            self._norms = torch.cat([self._norms_of(self._record(part), part).flatten() for part in self._parts])
            self._norms = self._norms.view(self._draws.timestep.shape)
        return self._norms

    def contracted(self, contraction: Contraction | None, weights: Weights = None) -> LayerGradients:
        """Return (1/K) Σ_k w_{b,k} of ``contraction`` for every draw; a projection, for example, need not form the gradients.

        None stands for the gradients themselves, and weights are those of ``mean``.
        """
        if contraction is None:
            return self.mean(weights)
        if self._masked is not None:
            parent, mask = self._masked
            weights = weights(self.norms()) if callable(weights) else weights
            return parent._average(mask.to(self._dtype) if weights is None else weights * mask, contraction)
        return self._average(weights.to(self._device, self._dtype) if isinstance(weights, Tensor) else weights, contraction)

    def mean(self, weights: Weights = None) -> LayerGradients:
        """Return (1/K) Σ_k w_{b,k} ∇_{b,k} for each layer.

        ``mean(torch.reciprocal)`` averages normalized gradients (ReTrac eq. 9, query side). Weights given as a function need one
        pass over all inputs. Weights computed from ``norms`` need a second one, unless one pass holds all inputs.

        Raises:
            ValueError: ``weights`` is a tensor of another shape than ``[B, K]``.
        """
        if self._masked is not None:
            parent, mask = self._masked
            weights = weights(self.norms()) if callable(weights) else weights
            return parent.mean(mask.to(self._dtype) if weights is None else weights * mask)
        if weights is None:
            self._mean = self._mean or self._average(None)
            return self._mean
        if not isinstance(weights, Tensor) and (self._draws.count == 1 or len(self._parts) == 1):
            weights = weights(self.norms())
        if not isinstance(weights, Tensor):
            return self._average(weights)
        weights = weights.to(self._device, self._dtype)
        if weights.shape != self._draws.timestep.shape:
            raise ValueError(f"weights {list(weights.shape)} for draws {list(self._draws.timestep.shape)}: give one for each draw")
        if self._draws.count == 1:
            return {name: block * weights.unsqueeze(2) for name, block in self.mean().items()}
        return self._average(weights)

    def where(self, mask: Tensor) -> "Captured":
        """Return a view with only the draws in ``mask [B, K]``; its means are still divided by K.

        The means over the masks of a partition therefore add up to the mean. Call ``keep_calls`` first, or each view runs its own
        pass.
        """
        masked = copy.copy(self)
        masked._masked, masked._mean = (self, mask), None
        return masked

    def _average(self, weights: Weights, contraction: Contraction | None = None) -> LayerGradients:
        total: LayerGradients = {}
        for part in self._parts:
            of_part = weights[part] if isinstance(weights, Tensor) else weights
            self._add(total, part, self._sum_of(part, of_part, contraction or self._owner))
        for block in total.values():
            block /= self._draws.count
        return total

    def _add(self, total: LayerGradients, part: _Part, sums: LayerGradients) -> None:
        """Add the sums of a part to the total over all parts."""
        if len(self._parts) == 1:
            total |= sums
            return
        for name, block in sums.items():
            total.setdefault(name, block.new_zeros(len(self._draws), *block.shape[1:]))[part[0]] += block

    def _sum_of(self, part: _Part, weights: Weights, contraction: Contraction) -> LayerGradients:
        """Return Σ_k w_k ∇_k over the draws of a part, for each of its examples."""
        recorded = self._kept
        if weights is not None and not isinstance(weights, Tensor):
            recorded = self._record(part)
            weights = weights(self._norms_of(recorded, part))
        examples, draws = _shape(part)
        sums: LayerGradients = {}

        def on_layer(name: str, calls: list[Call]) -> None:
            sums[name] = contracted(contraction, name, calls, draws, self._dtype, weights)

        if recorded is None:
            self._run(part, on_layer)
        else:
            with torch.autocast(self._device.type, enabled=False):
                for name, calls in recorded.items():
                    on_layer(name, calls)
        return self._completed(sums, examples, contraction)

    def _completed(self, sums: LayerGradients, examples: int, contraction: Contraction) -> LayerGradients:
        """The sums in the order of the layers, with zeros for layers on which the costs do not depend."""
        for name in self._owner.layers.keys() - sums.keys():
            sums[name] = torch.zeros(examples, *contraction.blocks[name], dtype=self._dtype, device=self._device)
        return {name: sums[name] for name in self._owner.layers}

    def _norms_of(self, recorded: _Calls, part: _Part) -> Tensor:
        total = torch.zeros(math.prod(_shape(part)), dtype=self._dtype, device=self._device)
        with torch.autocast(self._device.type, enabled=False):
            for calls in recorded.values():
                total += square_norms(calls, self._dtype)
        return total.sqrt().view(_shape(part))

    def _record(self, part: _Part) -> _Calls:
        if self._kept is not None:
            return self._kept
        recorded: _Calls = {}
        self._run(part, recorded.__setitem__)
        if len(self._parts) == 1:
            self._kept = recorded
        return recorded

    def _run(self, part: _Part, on_layer: OnLayer) -> None:
        inputs = self._inputs(part)
        hooks.run(self._owner.model, self._owner.recorded, self._measure, inputs, on_layer, self._autocast)

    def _inputs(self, part: _Part) -> Inputs:
        if self._owner.versions() != self._versions:
            raise RuntimeError("the model's parameters have changed since the capture: compute means and norms before that")
        x0 = to_device(self._x0[part[0]], self._device, self._owner.parameters[0].dtype)
        condition = None if self._condition is None else to_device(self._condition[part[0]], self._device)
        return self._measure.inputs(x0, self._draws.rows(part[0]).columns(part[1]).to(self._device), condition)


def contracted_together(
    captures: Sequence[Captured], contractions: Sequence[Sequence[Contraction | None]]
) -> list[list[LayerGradients]]:
    """Return ``contracted`` of each capture for each of its contractions, equal to the bit, in one forward pass for all.

    The captures are of one network, with the same images and draws, and their measures have the same ``inputs``.
    """
    first = captures[0]
    functions = [[contraction or first._owner for contraction in own] for own in contractions]
    totals: list[list[LayerGradients]] = [[{} for _ in own] for own in functions]
    for part in first._parts:
        examples, draws = _shape(part)
        sums: list[list[LayerGradients]] = [[{} for _ in own] for own in functions]

        def on_layer(i: int, name: str, calls: list[Call], sums=sums, draws=draws) -> None:
            for contraction, of_layer in zip(functions[i], sums[i], strict=True):
                of_layer[name] = contracted(contraction, name, calls, draws, first._dtype, None)

        measures, inputs = [captured._measure for captured in captures], first._inputs(part)
        hooks.run_all(first._owner.model, first._owner.recorded, measures, inputs, on_layer, first._autocast)
        for captured, own, of_part, total in zip(captures, functions, sums, totals, strict=True):
            for contraction, layers, whole in zip(own, of_part, total, strict=True):
                captured._add(whole, part, captured._completed(layers, examples, contraction))
    for block in (block for own in totals for total in own for block in total.values()):
        block /= first._draws.count
    return totals


def _parts(B: int, K: int, size: int) -> list[_Part]:
    """Divide B examples × K draws into passes of at most ``size`` inputs: whole examples, or some draws of one example."""
    if size >= K:
        return [(rows, slice(0, K)) for rows in pieces(B, size // K)]
    return [(slice(b, b + 1), columns) for b in range(B) for columns in pieces(K, size)]


def _shape(part: _Part) -> tuple[int, int]:
    rows, columns = part
    return rows.stop - rows.start, columns.stop - columns.start
