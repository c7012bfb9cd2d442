"""Per-example gradients of a layer's parameters, from the input and the output gradient of each call of the layer.

The first dimension of a call holds N = B·K inputs: B examples with K draws each, the draws of an example next to each other. The
input of the call is ``a [N, ...]``, the gradient of its output ``b [N, ...]``. The block of a layer is its joint gradient:
``[W | b]`` of shape ``[out, in (+1 with a bias)]``, where ``in`` of a convolution is in/groups · kh · kw; a norm's block is
``[γ | β]`` of shape ``[C, 2]``. Frozen parameters have no columns.

``contract`` sums over draws inside the product, so that the gradient of a single draw is never stored. Formulas are chosen by
rules on shapes. Choosing them by timing would make results differ from run to run.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEP = 2**18
"""How many numbers one step of a loop processes: about what a core's cache holds, and enough to hide the overhead of a call."""
STEP_ELSEWHERE = 2**24
"""The same on devices other than the CPU, which need more work per call to be busy: 64 MB in float32."""


def step(tensor: Tensor) -> int:
    """Return how many numbers one step of a loop over ``tensor`` processes on its device."""
    return STEP if tensor.device.type == "cpu" else STEP_ELSEWHERE


class Layer(ABC):
    """The trainable parameters of one module. ``parameters`` maps full names to parameters, in the order of the block's columns."""

    MODULE: ClassVar[type[nn.Module]]
    METHODS: ClassVar[tuple[str, ...]] = ("forward",)
    """The methods that compute the output. A subclass of MODULE that overrides one of them is not this kind of layer."""

    def __init__(self, name: str, module: Any):
        self.name, self.module = name, module
        trainable = {key: p for key, p in module.named_parameters(recurse=False) if p.requires_grad}
        self.weight, self.bias = "weight" in trainable, "bias" in trainable
        self.parameters: dict[str, nn.Parameter] = {f"{name}.{key}" if name else key: p for key, p in trainable.items()}

    kept: tuple[Tensor, ...] = ()
    """What a call keeps until its gradient is computed, besides its input."""

    @property
    @abstractmethod
    def block(self) -> tuple[int, int]:
        """The shape (rows, columns) of the layer's gradient."""

    @abstractmethod
    def fits(self, a: Tensor, inputs: int) -> bool:
        """Return whether ``a``, the input of a call, has one row for each of the network's ``inputs``."""

    @abstractmethod
    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        """Return each example's gradient, summed over its K draws: ``[N / K, rows, columns]``."""

    def square_norms(self, a: Tensor, b: Tensor) -> Tensor | None:
        """Return ‖∇‖² of every input, ``[N]``, or None where this would cost no less than the gradients themselves."""
        return None

    def split(self, block: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield each parameter's name and its columns of one example's ``block [rows, columns]``, in the shape of the parameter."""
        widths = [p.numel() // self.block[0] for p in self.parameters.values()]
        for (name, p), columns in zip(self.parameters.items(), block.split(widths, 1), strict=True):
            yield name, columns.reshape(p.shape)

    def join(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the block ``[rows, columns]`` of tensors in the shapes of the parameters: the inverse of ``split``."""
        return torch.cat([tensor.reshape(self.block[0], -1) for tensor in tensors], 1)


class LinearLayer(Layer):
    """The gradients of an ``nn.Linear`` on ``[N, ..., in]``: Σ_r b_r a_rᵀ over positions r and draws, with 1 appended to a."""

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
        """Return the inputs ``[N, R, columns]``, with 1 appended for a bias, and the output gradients ``[N, R, out]``."""
        b = b.reshape(len(b), -1, b.shape[-1])
        if not self.weight:
            return b.new_ones(*b.shape[:2], 1), b
        a = a.reshape(len(b), -1, a.shape[-1])
        return F.pad(a, (0, 1), value=1.0) if self.bias else a, b

    def square_norms(self, a: Tensor, b: Tensor) -> Tensor | None:
        a, b = a.reshape(len(a), 1, -1, a.shape[-1]), b.reshape(len(b), 1, -1, b.shape[-1])
        return gram_square_norms(a, b, self.bias) if self.weight and gram_is_cheaper(a.shape[2], a.shape[3], b.shape[3]) else None


class GroupNormLayer(Layer):
    """The gradients of an ``nn.GroupNorm`` on ``[N, C, ...]``: Σ_r b_r x̂_r and Σ_r b_r, with x̂ the normalized input."""

    MODULE = nn.GroupNorm

    @property
    def block(self) -> tuple[int, int]:
        return self.module.num_channels, self.weight + self.bias

    def fits(self, a: Tensor, inputs: int) -> bool:
        return len(a) == inputs

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        N, C = a.shape[:2]
        R, groups = a[0, 0].numel(), self.module.num_groups
        a, b = a.contiguous(), b.contiguous()  # these operators ignore strides
        _, mean, rstd = torch.ops.aten.native_group_norm.default(a, None, None, N, C, R, groups, self.module.eps)
        # Treat all inputs as channels of one input: γ and β then have one gradient per input, and nothing else is stored.
        b, a, mean, rstd, ones = b.view(1, N * C, R), a.view(1, N * C, R), mean.view(1, -1), rstd.view(1, -1), b.new_ones(N * C)
        _, weight, bias = torch.ops.aten.native_group_norm_backward.default(
            b, a, mean, rstd, ones, 1, N * C, R, N * groups, [False, True, True]
        )
        columns = [weight] * self.weight + [bias] * self.bias
        return torch.stack(columns, 1).view(N // K, K, C, -1).sum(1)


class LayerNormLayer(Layer):
    """The gradients of an ``nn.LayerNorm`` on ``[N, ..., *normalized_shape]``; C is the number of elements of normalized_shape."""

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
    """Whether Gram matrices need fewer multiplications than the gradient: R² (in + out) against R · in · out."""
    return positions * (width + out) <= width * out


def gram_square_norms(a: Tensor, b: Tensor, bias: bool) -> Tensor:
    """Return ‖Σ_r b_r a_rᵀ‖² = Σ_{r,r'} (a_r·a_r')(b_r·b_r'), ``[N]``, for ``a [N, groups, R, in]`` and ``b [N, groups, R, out]``.

    ``bias=True`` appends 1 to every a_r.
    """
    inner = a @ a.mT
    return ((b @ b.mT) * (inner + 1.0 if bias else inner)).sum((1, 2, 3))


def pieces(total: int, most: int) -> Iterator[slice]:
    """Yield slices that divide 0..total into pieces of nearly equal size, with at most ``most`` elements each."""
    count = -(-total // most)
    yield from (slice(total * i // count, total * (i + 1) // count) for i in range(count))
