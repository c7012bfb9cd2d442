"""Per-example gradients of a measure.

One pass over B examples × K draws yields every layer's input a and output gradient b (``attribution.hooks``), which are contracted example by
example, the draws inside the contraction (Goodfellow 2015, "Efficient per-example gradient computations"; Rochette et al. 2019,
"Efficient per-example gradient computations in convolutional neural networks").

Attribution runs in eval mode: the model is put there for a pass and back afterwards. Frozen parameters (``requires_grad=False``) are left
out. Every other parameter must belong to a Conv2d, Linear, GroupNorm or LayerNorm: anything else is an error, never a missing part.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from attribution import coverage, hooks
from attribution.draws import Draws
from attribution.hooks import Call
from attribution.layers import STEP, Layer, pieces
from attribution.measurements import Measure

LayerGradients = dict[str, Tensor]
"""Layer (module) name → its joint block ``[B, rows, columns]``, see ``attribution.layers``; tied modules under the first one's name."""

Weights = Callable[[Tensor], Tensor] | Tensor | None
"""A weight for every draw: ``[B, K]``, or an elementwise function of the draws' norms; None is 1."""

Part = tuple[slice, slice]
"""The examples and draws of one pass."""

Seen = dict[str, list[Call]]
"""What one pass brought out, by the names of the gradients."""


class PerExampleGradients:
    """The gradients of a model's trainable parameters for each example of a batch.

    ``batch_size``: the most network inputs (examples × draws) in one pass; how the work is divided, no part of the result. The model's
    parameters are read at each pass: other values may be loaded between captures.

    Raises:
        ValueError: a trainable parameter without a per-example gradient, named with its module; nothing trainable.
    """

    def __init__(self, model: nn.Module, batch_size: int = 128):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: the network inputs of one pass must be at least 1")
        self.model, self.batch_size = model, batch_size
        self.homes = coverage.find_layers(model)
        self.layers = {home: layer for home, layer in self.homes.values() if home == layer.name}
        self.parameters = [p for layer in self.layers.values() for p in layer.parameters.values()]
        self._checked = 0

    def capture(self, measure: Measure, x0: Tensor, draws: Draws) -> "Captured":
        """The gradients of ``measure`` for the images ``x0 [B, C, H, W]`` at their ``draws``, to be had as means and norms.

        The first capture compares a few with plain autograd.

        Raises:
            RuntimeError: the hooks do not see the whole gradient, or it depends on the rest of the batch; names the parameter.
        """
        if x0.dim() != 4 or not len(x0) == len(draws) > 0:
            raise ValueError(
                f"x0 is {list(x0.shape)} for the draws of {len(draws)} examples: it must be [B, C, H, W] with the same B > 0"
            )
        # One input by itself cannot show that inputs influence each other: check again when there are more.
        if self._checked < min(2, len(draws) * draws.count):
            self._check(measure, x0[:2], draws.rows(slice(2)).columns(slice(2)))
        return Captured(self, measure, x0, draws)

    def versions(self) -> list[tuple[int, int]]:
        """Changes when a parameter is written to or replaced."""
        return [(p.data_ptr(), p._version) for p in self.parameters]

    def _check(self, measure: Measure, x0: Tensor, draws: Draws) -> None:
        p = self.parameters[0]
        x0, draws = x0.to(p.device, p.dtype), draws.to(p.device)
        with torch.autocast(p.device.type, enabled=False), torch.inference_mode(False), torch.enable_grad():
            ours = Captured(self, measure, x0, draws).mean()
            with hooks.eval_mode(self.model):
                coverage.check(self.model, self.layers, ours, measure, x0, draws)
        self._checked = len(draws) * draws.count


def per_example_gradients(measure: Measure, model: nn.Module, x0: Tensor, draws: Draws) -> LayerGradients:
    """The gradients of ``measure`` for each image of ``x0 [B, C, H, W]``, averaged over its draws: see ``PerExampleGradients``."""
    return PerExampleGradients(model).capture(measure, x0, draws).mean()


class Captured:
    """The gradients ∇_{b,k} of B examples × K draws, computed when they are asked for, in the autocast state of the capture.

    Results are float32, or float64 where the parameters are. Where one pass holds everything, ``norms`` keeps what it saw for the
    ``mean`` that follows; otherwise passes are forgotten one by one.
    """

    def __init__(self, owner: PerExampleGradients, measure: Measure, x0: Tensor, draws: Draws):
        self._owner, self._measure, self._x0, self._draws = owner, measure, x0, draws
        p = owner.parameters[0]
        self._device, self._dtype = p.device, torch.promote_types(p.dtype, torch.float32)
        self._autocast = torch.autocast(
            p.device.type, torch.get_autocast_dtype(p.device.type), torch.is_autocast_enabled(p.device.type)
        )
        self._versions = owner.versions()
        self._parts = _parts(len(draws), draws.count, owner.batch_size)
        self._kept: Seen | None = None
        self._norms: Tensor | None = None
        self._mean: LayerGradients | None = None

    def norms(self) -> Tensor:
        """‖∇_{b,k}‖ of every single draw over all layers, ``[B, K]``."""
        if self._norms is None and self._draws.count == 1:
            self._norms = torch.stack([block.flatten(1).norm(dim=1) for block in self.mean().values()]).norm(dim=0).unsqueeze(1)
        elif self._norms is None:
            self._norms = torch.cat([self._part_norms(self._see(part)) for part in self._parts]).view(self._draws.timestep.shape)
        return self._norms

    def mean(self, weights: Weights = None) -> LayerGradients:
        """(1/K) Σ_k w_{b,k} ∇_{b,k}: ``mean(torch.reciprocal)`` averages normalized gradients (ReTrac eq. 9, query side).

        A function of the norms needs one pass over everything; ``norms`` first, then a tensor, needs two where one pass does not hold all.
        """
        if weights is None:
            self._mean = self._mean or self._average(None)
            return self._mean
        if not isinstance(weights, Tensor) and (len(self._parts) == 1 or self._draws.count == 1):
            weights = weights(self.norms())
        if isinstance(weights, Tensor) and weights.shape != self._draws.timestep.shape:
            raise ValueError(
                f"weights {list(weights.shape)} for draws {list(self._draws.timestep.shape)}: there must be one for each draw"
            )
        if isinstance(weights, Tensor) and self._draws.count == 1:
            return {name: block * weights.to(block).unsqueeze(2) for name, block in self.mean().items()}
        return self._average(weights)

    def _average(self, weights: Weights) -> LayerGradients:
        total: LayerGradients = {}
        for part in self._parts:
            blocks = self._part_sum(part, weights[part] if isinstance(weights, Tensor) else weights)
            if len(self._parts) == 1:
                total = blocks
                break
            for name, block in blocks.items():
                total.setdefault(name, block.new_zeros(len(self._draws), *block.shape[1:]))[part[0]] += block
        for block in total.values():
            block /= self._draws.count
        return total

    def _part_sum(self, part: Part, weights: Weights) -> LayerGradients:
        """Σ_k w_k ∇_k over the draws of a part, for each of its examples."""
        seen = self._kept
        if weights is not None and not isinstance(weights, Tensor):
            seen = self._see(part)
            weights = weights(self._part_norms(seen).view(_shape(part)))
        examples, draws = _shape(part)
        found: LayerGradients = {}

        def finish(name: str, calls: list[Call]) -> None:
            found[name] = _contract(calls, draws, self._dtype, weights)

        if seen is None:
            self._run(part, finish)
        else:
            with torch.autocast(self._device.type, enabled=False):
                for name, calls in seen.items():
                    finish(name, calls)
        zeros = partial(torch.zeros, dtype=self._dtype, device=self._device)
        return {name: found[name] if name in found else zeros(examples, *layer.block) for name, layer in self._owner.layers.items()}

    def _part_norms(self, seen: Seen) -> Tensor:
        """The norms of a part's inputs, in one row."""
        with torch.autocast(self._device.type, enabled=False):
            return torch.stack([_square_norms(calls, self._dtype) for calls in seen.values()]).sum(0).sqrt()

    def _see(self, part: Part) -> Seen:
        if self._kept is not None:
            return self._kept
        seen: Seen = {}
        self._run(part, seen.__setitem__)
        if len(self._parts) == 1:
            self._kept = seen
        return seen

    def _run(self, part: Part, finish: Callable[[str, list[Call]], None]) -> None:
        if self._owner.versions() != self._versions:
            raise RuntimeError("the model's parameters have changed since the capture: ask for means and norms before that")
        rows, columns = part
        x0 = self._x0[rows].to(self._device, self._owner.parameters[0].dtype)
        draws = self._draws.rows(rows).columns(columns).to(self._device)
        hooks.run(self._owner.model, self._owner.homes, self._measure, x0, draws, finish, self._autocast)


def _parts(B: int, K: int, size: int) -> list[Part]:
    """Passes of at most ``size`` inputs: whole examples, or where the draws of one are too many, some of its draws."""
    if size >= K:
        return [(rows, slice(0, K)) for rows in pieces(B, size // K)]
    return [(slice(b, b + 1), columns) for b in range(B) for columns in pieces(K, size)]


def _shape(part: Part) -> tuple[int, int]:
    rows, columns = part
    return rows.stop - rows.start, columns.stop - columns.start


def _contract(calls: list[Call], K: int, dtype: torch.dtype, weights: Tensor | None) -> Tensor:
    """Σ_k w_k ∇_k of a layer, added up over its calls: ``[B, rows, columns]``."""
    total: Tensor | None = None
    for layer, a, b in _pairs(calls, dtype):
        b = b if weights is None else b * weights.to(b).reshape(-1, *[1] * (b.dim() - 1))
        block = layer.contract(a, b, K)
        total = block if total is None else total.add_(block)
    assert total is not None, "finish() is called with the calls that have gradients"
    return total


def _square_norms(calls: list[Call], dtype: torch.dtype) -> Tensor:
    """‖∇‖² of every input of a pass in one layer, ``[N]``; gradients of several calls are added before the norm is taken."""
    pairs = list(_pairs(calls, dtype))
    if len(pairs) == 1:
        layer, a, b = pairs[0]
        if (direct := layer.square_norms(a, b)) is not None:
            return direct
    inputs, numbers = len(calls[0].input), math.prod(calls[0].layer.block)
    squares = []
    for some in pieces(inputs, max(1, STEP // numbers)):
        blocks = [layer.contract(a[some], b[some], 1) for layer, a, b in pairs]
        squares.append(torch.stack(blocks).sum(0).square().sum((1, 2)) if len(blocks) > 1 else blocks[0].square().sum((1, 2)))
    return torch.cat(squares)


def _pairs(calls: list[Call], dtype: torch.dtype) -> Iterator[tuple[Layer, Tensor, Tensor]]:
    for call in calls:
        assert call.gradient is not None
        yield call.layer, call.input.to(dtype), call.gradient.to(dtype)
