"""Per-example gradients of a measure.

A pass over B examples × K draws brings out every layer's input and output gradient (``hooks``), which are contracted
example by example with the draws inside the contraction (Goodfellow 2015, "Efficient per-example gradient computations";
Rochette et al. 2019, the same for convolutional networks).

Attribution runs in eval mode: the model is put there for a pass and back afterwards. Frozen parameters (``requires_grad=False``)
are left out. Every other parameter must belong to a Conv2d, Linear, GroupNorm or LayerNorm: anything else is an error, never a
missing part.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from attribution.diffusion import eval_mode
from attribution.gradients import coverage, hooks
from attribution.gradients.hooks import Call, Finish
from attribution.gradients.layers import STEP, Layer, pieces
from attribution.images.draws import Draws
from attribution.measurements import Measure

SHARED = ("attribution.gradients.convolution", "attribution.gradients.hooks", "attribution.gradients.layers")

LayerGradients = dict[str, Tensor]
"""Layer (module) name → its joint block ``[B, rows, columns]`` (``layers``); tied modules under the first's name."""

Weights = Callable[[Tensor], Tensor] | Tensor | None
"""A weight for each draw: ``[B, K]``, or an elementwise function of the draws' norms; None is 1."""


class Contraction(Protocol):
    """What to make of layers' calls: their gradients, or something smaller and linear in these.

    ``contract``: from inputs and output gradients of a call the sum over the K draws of an example, ``[N / K, *blocks[name]]``.
    """

    blocks: Mapping[str, tuple[int, int]]
    """Layer name → the shape of what comes out."""

    def contract(self, name: str, layer: Layer, a: Tensor, b: Tensor, K: int) -> Tensor: ...


_Part = tuple[slice, slice]
"""The examples and the draws of one pass."""

_Seen = dict[str, list[Call]]
"""All that a pass brought out."""


class PerExampleGradients:
    """The gradients of a model's trainable parameters for each example of a batch.

    ``batch_size``: the most network inputs (examples × draws) in one pass; how the work is divided, no part of the result.
    Parameters are read at each pass: other values may be loaded between captures.

    Raises:
        ValueError: a trainable parameter without a per-example gradient, named with its module; nothing trainable.
    """

    def __init__(self, model: nn.Module, batch_size: int = 128):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: a pass needs at least 1 network input")
        self.model, self.batch_size = model, batch_size
        self.homes = coverage.find_layers(model)
        self.layers: dict[str, Layer] = {home: layer for home, layer in self.homes.values() if home == layer.name}
        self.blocks: Mapping[str, tuple[int, int]] = {name: layer.block for name, layer in self.layers.items()}
        self.parameters = [p for layer in self.layers.values() for p in layer.parameters.values()]
        self._checked = 0

    def capture(self, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> "Captured":
        """The gradients of ``measure`` for the images ``x0 [B, C, H, W]`` (or what else it measures) at their ``draws``.

        ``condition [B, ...]`` is what else the network is given of each example.

        The first capture compares a few with plain autograd.

        Raises:
            RuntimeError: the hooks do not see the whole gradient, or it depends on the rest of the batch; names the parameter.
        """
        if not len(x0) == len(draws) > 0:
            raise ValueError(f"x0 has {len(x0)} examples, the draws are of {len(draws)}: both must be the same, at least 1")
        # One input by itself cannot show that inputs influence each other: checked again when there are more.
        if self._checked < min(2, len(draws) * draws.count):
            self._check(measure, x0[:2], draws.rows(slice(2)).columns(slice(2)), None if condition is None else condition[:2])
        return Captured(self, measure, x0, draws, condition)

    def contract(self, name: str, layer: Layer, a: Tensor, b: Tensor, K: int) -> Tensor:
        return layer.contract(a, b, K)

    def versions(self) -> list[tuple[int, int]]:
        """Another list once a parameter is written to or gets other memory."""
        return [(p.data_ptr(), p._version) for p in self.parameters]

    def _check(self, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None) -> None:
        p = self.parameters[0]
        x0, draws = x0.to(p.device, p.dtype), draws.to(p.device)
        condition = None if condition is None else condition.to(p.device)
        # In full precision even where the caller computes in less: what is found here does not depend on it, the tolerance does.
        with torch.autocast(p.device.type, enabled=False), torch.inference_mode(False), torch.enable_grad():
            ours = Captured(self, measure, x0, draws, condition).mean()
            with eval_mode(self.model):
                coverage.check(self.model, self.layers, ours, measure, x0, draws, condition)
        self._checked = len(draws) * draws.count


def per_example_gradients(
    measure: Measure, model: nn.Module, x0: Tensor, draws: Draws, condition: Tensor | None = None
) -> LayerGradients:
    """The gradients of ``measure`` for each image of ``x0 [B, C, H, W]``, averaged over its draws: see ``PerExampleGradients``."""
    return PerExampleGradients(model).capture(measure, x0, draws, condition).mean()


class Captured:
    """The gradients ∇_{b,k} of B examples × K draws, computed when they are asked for, in the autocast state of the capture.

    Results are float32, or float64 where the parameters are. Where one pass holds everything, ``norms`` keeps what it saw for the
    ``mean`` that follows; otherwise passes are forgotten one by one.
    """

    def __init__(self, owner: PerExampleGradients, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None = None):
        self._owner, self._measure, self._x0, self._draws, self._condition = owner, measure, x0, draws, condition
        p = owner.parameters[0]
        kind = p.device.type
        self._device, self._dtype = p.device, torch.promote_types(p.dtype, torch.float32)
        self._autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        self._versions = owner.versions()
        self._parts = _parts(len(draws), draws.count, owner.batch_size)
        self._kept: _Seen | None = None
        self._norms: Tensor | None = None
        self._mean: LayerGradients | None = None
        self._whole, self._mask = self, cast(Tensor | None, None)  # of another capture, and a mask, after ``where``

    def hold(self) -> None:
        """Runs the pass and keeps what it brings out, for several means; does nothing where one pass does not hold all."""
        if len(self._parts) == 1 and self._draws.count > 1:
            self._see(self._parts[0])

    def norms(self) -> Tensor:
        """‖∇_{b,k}‖ of every single draw over all layers, ``[B, K]``."""
        if self._whole is not self:
            return self._whole.norms()
        if self._norms is None and self._draws.count == 1:
            self._norms = torch.stack([block.flatten(1).norm(dim=1) for block in self.mean().values()]).norm(dim=0).unsqueeze(1)
        elif self._norms is None:
            self._norms = torch.cat([self._norms_of(self._see(part), part).flatten() for part in self._parts])
            self._norms = self._norms.view(self._draws.timestep.shape)
        return self._norms

    def contracted(self, contraction: Contraction) -> LayerGradients:
        """(1/K) Σ_k of what ``contraction`` makes of every draw, such as projected gradients that are never formed."""
        if self._mask is not None:
            return self._whole._average(self._mask.to(self._dtype), contraction)
        return self._average(None, contraction)

    def mean(self, weights: Weights = None) -> LayerGradients:
        """(1/K) Σ_k w_{b,k} ∇_{b,k}: ``mean(torch.reciprocal)`` averages normalized gradients (ReTrac eq. 9, query side).

        Weights that are a function take one pass over everything. ``norms`` first, then a tensor made of them, takes a second one
        where one pass does not hold all.
        """
        if self._mask is not None:
            weights = weights(self.norms()) if callable(weights) else weights
            return self._whole.mean(self._mask.to(self._dtype) if weights is None else weights * self._mask)
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
        """The same with other draws than those of ``mask [B, K]`` left out of the means, which are still divided by K.

        So the means over the masks of a partition add up to the mean. ``hold`` first, or each is a pass of its own.
        """
        some = copy.copy(self)
        some._whole, some._mask, some._mean = self, mask, None
        return some

    def _average(self, weights: Weights, contraction: Contraction | None = None) -> LayerGradients:
        contraction = contraction or self._owner
        total: LayerGradients = {}
        for part in self._parts:
            blocks = self._sum_of(part, weights[part] if isinstance(weights, Tensor) else weights, contraction)
            if len(self._parts) == 1:
                total = blocks
                break
            for name, block in blocks.items():
                total.setdefault(name, block.new_zeros(len(self._draws), *block.shape[1:]))[part[0]] += block
        for block in total.values():
            block /= self._draws.count
        return total

    def _sum_of(self, part: _Part, weights: Weights, contraction: Contraction) -> LayerGradients:
        """Σ_k w_k ∇_k over the draws of a part, for each of its examples."""
        seen = self._kept
        if weights is not None and not isinstance(weights, Tensor):
            seen = self._see(part)
            weights = weights(self._norms_of(seen, part))
        examples, draws = _shape(part)
        found: LayerGradients = {}

        def finish(name: str, calls: list[Call]) -> None:
            found[name] = _contract(contraction, name, calls, draws, self._dtype, weights)

        if seen is None:
            self._run(part, finish)
        else:
            with torch.autocast(self._device.type, enabled=False):
                for name, calls in seen.items():
                    finish(name, calls)
        for name in self._owner.layers.keys() - found.keys():
            found[name] = torch.zeros(examples, *contraction.blocks[name], dtype=self._dtype, device=self._device)
        return {name: found[name] for name in self._owner.layers}

    def _norms_of(self, seen: _Seen, part: _Part) -> Tensor:
        total = torch.zeros(math.prod(_shape(part)), dtype=self._dtype, device=self._device)
        with torch.autocast(self._device.type, enabled=False):
            for calls in seen.values():
                total += _square_norms(calls, self._dtype)
        return total.sqrt().view(_shape(part))

    def _see(self, part: _Part) -> _Seen:
        if self._kept is not None:
            return self._kept
        seen: _Seen = {}
        self._run(part, seen.__setitem__)
        if len(self._parts) == 1:
            self._kept = seen
        return seen

    def _run(self, part: _Part, finish: Finish) -> None:
        if self._owner.versions() != self._versions:
            raise RuntimeError("the model's parameters have changed since the capture: ask for means and norms before that")
        x0 = self._x0[part[0]].to(self._device, self._owner.parameters[0].dtype)
        condition = None if self._condition is None else self._condition[part[0]].to(self._device)
        inputs = self._measure.inputs(x0, self._draws.rows(part[0]).columns(part[1]).to(self._device), condition)
        hooks.run(self._owner.model, self._owner.homes, self._measure, inputs, finish, self._autocast)


def _parts(B: int, K: int, size: int) -> list[_Part]:
    """Passes of at most ``size`` inputs: whole examples or, where one has more draws than that, some of its draws."""
    if size >= K:
        return [(rows, slice(0, K)) for rows in pieces(B, size // K)]
    return [(slice(b, b + 1), columns) for b in range(B) for columns in pieces(K, size)]


def _shape(part: _Part) -> tuple[int, int]:
    rows, columns = part
    return rows.stop - rows.start, columns.stop - columns.start


def _contract(contraction: Contraction, name: str, calls: list[Call], K: int, dtype: torch.dtype, weights: Tensor | None) -> Tensor:
    """Σ_k w_k ∇_k of a layer, or what the contraction makes of it, all its calls added up: ``[B, rows, columns]``."""
    total: Tensor | None = None
    for layer, a, b in _pairs(calls, dtype):
        b = b if weights is None else b * weights.reshape(-1, *[1] * (b.dim() - 1))
        block = contraction.contract(name, layer, a, b, K)
        total = block if total is None else total.add_(block)
    assert total is not None
    return total


def _square_norms(calls: list[Call], dtype: torch.dtype) -> Tensor:
    """‖∇‖² of every input of a pass in one layer, ``[N]``; a layer's calls add up before the norm is taken."""
    pairs = list(_pairs(calls, dtype))
    if len(pairs) == 1:
        layer, a, b = pairs[0]
        if (direct := layer.square_norms(a, b)) is not None:
            return direct
    squares = []
    for some in pieces(len(pairs[0][1]), max(1, STEP // math.prod(pairs[0][0].block))):
        block, *others = (layer.contract(a[some], b[some], 1) for layer, a, b in pairs)
        for other in others:
            block += other
        squares.append(block.square_().sum((1, 2)))
    return torch.cat(squares)


def _pairs(calls: list[Call], dtype: torch.dtype) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    for call in calls:
        assert call.gradient is not None
        yield call.layer, call.input.to(dtype), call.gradient.to(dtype)
