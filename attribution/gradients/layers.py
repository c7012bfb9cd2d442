"""Kinds of layers: from a call's input and output gradient to gradients of the layer's parameters, example by example.

A call has N = B·K inputs (B examples × K draws, the draws of an example next to each other) along its first dimension: its input is
``a [N, ...]``, the gradient of its output ``b [N, ...]``. A layer's block is the joint ``[W | b]``, ``[out, in (+1 with a bias)]``,
where a convolution's ``in`` is in/groups · kh · kw; a norm's block is ``[γ | β]``, ``[C, 2]``. Frozen parameters have no columns.

``contract`` sums over the draws as it goes, so that no gradient of a single draw is stored. Choices between formulas are rules on
shapes: timing them at run time would make results differ from run to run.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEP = 2**18
"""Numbers that one step of a loop works on: about what a core's cache holds, and enough to hide the cost of a call."""


class Layer(ABC):
    """One module's trainable parameters; ``parameters`` maps their full names, in the order of their columns."""

    MODULE: ClassVar[type[nn.Module]]
    METHODS: ClassVar[tuple[str, ...]] = ("forward",)
    """What computes the output: a subclass of MODULE that overrides one of these is another kind of layer."""

    def __init__(self, name: str, module: Any):
        self.name, self.module = name, module
        trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        self.weight, self.bias = "weight" in trainable, "bias" in trainable
        self.parameters: dict[str, nn.Parameter] = {f"{name}.{key}" if name else key: p for key, p in trainable.items()}

    @property
    @abstractmethod
    def block(self) -> tuple[int, int]:
        """(rows, columns) of the layer's gradient."""

    @abstractmethod
    def fits(self, a: Tensor, inputs: int) -> bool:
        """Whether the input of a call has one row for every input of the network."""

    @abstractmethod
    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        """The sum over the K draws of an example of its gradients: ``[N / K, rows, columns]``."""

    def square_norms(self, a: Tensor, b: Tensor) -> Tensor | None:
        """‖∇‖² of every single input, ``[N]``; None where nothing is cheaper than the gradients themselves."""
        return None

    def split(self, block: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Each parameter's name with its columns of one example's ``block [rows, columns]``, in the parameter's shape."""
        widths = [p.numel() // self.block[0] for p in self.parameters.values()]
        for (name, p), columns in zip(self.parameters.items(), block.split(widths, 1), strict=True):
            yield name, columns.reshape(p.shape)


class LinearLayer(Layer):
    """nn.Linear on ``[N, ..., in]``: Σ_r b_r a_rᵀ over positions r and draws, a constant 1 appended to a."""

    MODULE = nn.Linear

    @property
    def block(self) -> tuple[int, int]:
        return self.module.out_features, self.module.in_features * self.weight + self.bias

    def fits(self, a: Tensor, inputs: int) -> bool:
        return a.dim() >= 2 and len(a) == inputs

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        b = b.reshape(len(b) // K, -1, b.shape[-1])
        if not self.weight:
            return b.sum(1).unsqueeze(2)
        a = a.reshape(len(b), -1, a.shape[-1])
        return torch.bmm(b.mT, F.pad(a, (0, 1), value=1.0) if self.bias else a)

    def positions(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of every position: inputs ``[N, R, columns]``, 1 appended, and output gradients ``[N, R, out]``."""
        b = b.reshape(len(b), -1, b.shape[-1])
        if not self.weight:
            return b.new_ones(*b.shape[:2], 1), b
        a = a.reshape(len(b), -1, a.shape[-1])
        return F.pad(a, (0, 1), value=1.0) if self.bias else a, b

    def square_norms(self, a: Tensor, b: Tensor) -> Tensor | None:
        a, b = a.reshape(len(a), 1, -1, a.shape[-1]), b.reshape(len(b), 1, -1, b.shape[-1])
        return gram_square_norms(a, b, self.bias) if self.weight and gram_is_cheaper(a.shape[2], a.shape[3], b.shape[3]) else None


class GroupNormLayer(Layer):
    """nn.GroupNorm on ``[N, C, ...]``: Σ_r b_r x̂_r and Σ_r b_r, with x̂ the normalized input."""

    MODULE = nn.GroupNorm

    @property
    def block(self) -> tuple[int, int]:
        return self.module.num_channels, self.weight + self.bias

    def fits(self, a: Tensor, inputs: int) -> bool:
        return len(a) == inputs

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        N, C = a.shape[:2]
        R, groups = a[0, 0].numel(), self.module.num_groups
        a, b = a.contiguous(), b.contiguous()  # these operators do not look at strides
        _, mean, rstd = torch.ops.aten.native_group_norm.default(a, None, None, N, C, R, groups, self.module.eps)
        # All inputs as the channels of one, whose γ and β then have one gradient for each input: nothing is written out but these.
        b, a, mean, rstd, ones = b.view(1, N * C, R), a.view(1, N * C, R), mean.view(1, -1), rstd.view(1, -1), b.new_ones(N * C)
        _, weight, bias = torch.ops.aten.native_group_norm_backward.default(
            b, a, mean, rstd, ones, 1, N * C, R, N * groups, [False, True, True]
        )
        columns = [weight] * self.weight + [bias] * self.bias
        return torch.stack(columns, 1).view(N // K, K, C, -1).sum(1)


class LayerNormLayer(Layer):
    """nn.LayerNorm on ``[N, ..., *normalized_shape]``, as for GroupNorm; C counts the elements of normalized_shape."""

    MODULE = nn.LayerNorm

    @property
    def block(self) -> tuple[int, int]:
        return math.prod(self.module.normalized_shape), self.weight + self.bias

    def fits(self, a: Tensor, inputs: int) -> bool:
        return a.dim() > len(self.module.normalized_shape) and len(a) == inputs

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        shape = len(b) // K, -1, self.block[0]
        columns = [(b * F.layer_norm(a, self.module.normalized_shape, eps=self.module.eps)).reshape(shape).sum(1)] * self.weight
        return torch.stack([*columns, b.reshape(shape).sum(1)] if self.bias else columns, 2)


def gram_is_cheaper(positions: int, width: int, out: int) -> bool:
    """R² (in + out) multiplications, and R² numbers kept, against R · in · out."""
    return positions * (width + out) <= width * out


def gram_square_norms(a: Tensor, b: Tensor, bias: bool) -> Tensor:
    """‖Σ_r b_r a_rᵀ‖² = Σ_{r,r'} (a_r·a_r')(b_r·b_r') for ``a [N, groups, R, in]``, ``b [.., out]``; bias: 1 appended to a."""
    inner = a @ a.mT
    return ((b @ b.mT) * (inner + 1.0 if bias else inner)).sum((1, 2, 3))


def pieces(total: int, most: int) -> Iterator[slice]:
    """0..total in pieces of nearly equal size, at most ``most`` each."""
    count = -(-total // most)
    yield from (slice(total * i // count, total * (i + 1) // count) for i in range(count))
