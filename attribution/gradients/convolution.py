"""Per-example gradients of nn.Conv2d: any stride, padding, padding mode, dilation and groups.

The weight gradients of several examples are the weight gradient of one grouped convolution, with the examples as its groups and
their draws as its batch. A single call of ``aten.convolution_backward`` computes them at about the speed of an ordinary backward
pass. Channel counts that do not fill the backend's vectors are padded with zeros, which cost less than the slower kernels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.gradients.layers import STEP, Layer, gram_is_cheaper, gram_square_norms, pieces, step

SHARED = ("attribution.gradients.layers",)

LANES = 8
"""The backend's kernels are up to three times as fast if the number of channels is a multiple of this."""
FEW = 4
"""The largest number of input channels for which the backend has a special kernel, so that padding gains nothing."""


class ConvLayer(Layer):
    """The gradients of an ``nn.Conv2d`` on ``[N, C, H, W]``; R is the number of output positions, height · width."""

    MODULE = nn.Conv2d
    METHODS = ("forward", "_conv_forward")

    def __init__(self, name: str, module: nn.Conv2d):
        super().__init__(name, module)
        self._width = module.weight[0].numel()
        vertical, horizontal = _pads(module)
        symmetric = vertical[0] == vertical[1] and horizontal[0] == horizontal[1]
        if symmetric and module.padding_mode == "zeros":
            self._padding, self._explicit_padding = [vertical[0], horizontal[0]], ()
        else:
            self._padding, self._explicit_padding = [0, 0], (*horizontal, *vertical)
        unpadded = not any((*vertical, *horizontal))
        self.pointwise = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1 and unpadded

    @property
    def block(self) -> tuple[int, int]:
        return self.module.out_channels, self._width * self.weight + self.bias

    def fits(self, a: Tensor, inputs: int) -> bool:
        return a.dim() == 4 and len(a) == inputs

    def contract(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        if not self.weight:
            return b.sum((2, 3)).unflatten(0, (-1, K)).sum(1).unsqueeze(2)
        if self.pointwise:
            return self._as_linear(a, b, K)
        a = self._padded(a)
        # Meant for small layers on a GPU, where convolutions with many groups are likely to be slow. Not timed on any GPU yet.
        if a.is_cuda and K * b[0, 0].numel() * self._width * self.module.groups <= 16 * STEP:
            return self._unfolded(a, b, K)
        return self._grouped(a, b, K)

    def square_norms(self, a: Tensor, b: Tensor) -> Tensor | None:
        groups = self.module.groups
        if not self.weight or not gram_is_cheaper(b[0, 0].numel(), self._width, b.shape[1] // groups):
            return None
        patches = self._patches(self._padded(a))
        return gram_square_norms(patches.mT, b.flatten(2).unflatten(1, (groups, -1)).mT, self.bias)

    def positions(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the patches ``[N, R, columns]``, with 1 appended for a bias, and the output gradients ``[N, R, out]``.

        Not defined for grouped convolutions, where every group has its own patches.
        """
        b = b.flatten(2).mT
        if not self.weight:
            return b.new_ones(*b.shape[:2], 1), b
        patches = (a.flatten(2) if self.pointwise else self._patches(self._padded(a)).squeeze(1)).mT
        return F.pad(patches, (0, 1), value=1.0) if self.bias else patches, b

    def padded(self, a: Tensor) -> Tensor:
        """Return the input with the padding of the layer, ``[N, C, H', W']``."""
        vertical, horizontal = _pads(self.module)
        mode = self.module.padding_mode
        return F.pad(a, (*horizontal, *vertical), mode="constant" if mode == "zeros" else mode)

    def _padded(self, a: Tensor) -> Tensor:
        if not any(self._explicit_padding):
            return a
        mode = self.module.padding_mode
        return F.pad(a, self._explicit_padding, mode="constant" if mode == "zeros" else mode)

    def _as_linear(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        """``contract`` of a 1×1 convolution, a Linear over positions. Adds draw by draw: concatenating draws would copy them."""
        a = F.pad(a.flatten(2), (0, 0, 0, 1), value=1.0) if self.bias else a.flatten(2)
        a, b = a.unflatten(0, (-1, K)), b.flatten(2).unflatten(0, (-1, K))
        total = torch.bmm(b[:, 0], a[:, 0].mT)
        for k in range(1, K):
            total.baddbmm_(b[:, k], a[:, k].mT)
        return total

    def _grouped(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        """``contract`` by grouped convolutions, each over as many examples as fit the cache. A single example needs no copy."""
        module, (rows, columns) = self.module, self.block
        total = b.new_empty(len(b) // K, rows, columns)
        ins, outs = _padded_channels(module)
        example = max(rows * columns, K * (a[0].numel() + b[0].numel()))
        for chunk in pieces(len(total), max(1, 2 * step(total) // example)):
            n, inputs = chunk.stop - chunk.start, slice(chunk.start * K, chunk.stop * K)
            _, weight, bias = torch.ops.aten.convolution_backward.default(
                _examples_as_channels(b[inputs], K, outs),
                _examples_as_channels(a[inputs], K, ins),
                b.new_empty(1).expand(n * outs, ins // module.groups, *module.kernel_size),  # only its shape is used
                [n * outs],
                module.stride,
                self._padding,
                module.dilation,
                False,
                [0, 0],
                n * module.groups,
                [False, True, self.bias],
            )
            weight = weight.unflatten(0, (n, outs))[:, :rows, : module.weight.shape[1]]
            total[chunk, :, : self._width].view(weight.shape).copy_(weight)
            if self.bias:
                total[chunk, :, -1] = bias.view(n, outs)[:, :rows]
        return total

    def _unfolded(self, a: Tensor, b: Tensor, K: int) -> Tensor:
        """``contract`` as Σ_r b_r a_rᵀ, with the patches a_r in memory."""
        groups = self.module.groups
        patches = self._patches(a).unflatten(0, (-1, K)).movedim(1, 3).flatten(3)  # [B, groups, in, K·R]
        b = b.flatten(2).unflatten(1, (groups, -1)).unflatten(0, (-1, K)).movedim(1, 3).flatten(3)  # [B, groups, out, K·R]
        weight = (b @ patches.mT).flatten(1, 2)
        return torch.cat([weight, b.sum(3).flatten(1).unsqueeze(2)], 2) if self.bias else weight

    def _patches(self, a: Tensor) -> Tensor:
        """Return the patches of the padded input, ``[N, groups, in, R]``."""
        module = self.module
        unfolded = F.unfold(a, module.kernel_size, module.dilation, tuple(self._padding), module.stride)
        return unfolded.unflatten(1, (module.groups, self._width))


def _pads(module: nn.Conv2d) -> list[tuple[int, int]]:
    """Return the padding (before, after), vertical and horizontal. "same" puts an odd pixel after the image."""
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    if isinstance(module.padding, str):
        return [(0, 0), (0, 0)]
    return [(p, p) for p in module.padding]


def _padded_channels(module: nn.Conv2d) -> tuple[int, int]:
    """Return the numbers of input and output channels with which the convolution is fastest."""
    ins, outs = module.in_channels, module.out_channels
    if module.groups > 1:
        return ins, outs
    return (ins if ins <= FEW else -(-ins // LANES) * LANES), -(-outs // LANES) * LANES


def _examples_as_channels(x: Tensor, K: int, channels: int) -> Tensor:
    """Reshape ``[n·K, C, H, W]`` to ``[K, n·channels, H, W]``, with zeros after the C channels; a copy unless n or K is 1."""
    C = x.shape[1]
    x = x.unflatten(0, (-1, K)).transpose(0, 1)
    if channels > C:
        padded = x.new_zeros(*x.shape[:2], channels, *x.shape[3:])
        padded[:, :, :C] = x
        x = padded
    return x.flatten(1, 2)
