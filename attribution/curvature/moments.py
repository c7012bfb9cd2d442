"""Sums of a aᵀ and b bᵀ over the positions of a layer: the expensive part of Kronecker factors.

For a 3×3 convolution with C input and C output channels, A takes R · (9C)² multiplications, three times as many as the forward and
backward pass of the layer. Most of them are repeated: the block of A for two positions in the kernel, (δ, ι) and (δ + s, ι + j), is
a sum over the pixels (y, x) of a window of the input, and the windows differ only at the border:

    A[δ, ι; δ + s, ι + j] = Σ_{(y, x) in the window of (δ, ι)} x_{y,x} x_{y+s,x+j}ᵀ        0 ≤ s < kh, -kw < j < kw

Pixels outside the input are 0. The limits of all windows divide the rows of the input into a few runs. One product for each s, run
and column x sums over the rows of the run, and a block of A is the sum of the products in its window. That makes kh (2kw - 1) C²
multiplications a pixel instead of (kh kw C)², or 13 C² instead of 81 C² for 3×3, where s = 0 needs no j < 0.
"""

from functools import reduce
from itertools import pairwise
from operator import add
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.gradients.convolution import ConvLayer
from attribution.gradients.embedding import EmbeddingLayer
from attribution.gradients.layers import LinearLayer, pieces, step

SHARED = ("attribution.gradients.convolution", "attribution.gradients.embedding", "attribution.gradients.layers")


def second_moments(layer: LinearLayer | ConvLayer | EmbeddingLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    """Σ a aᵀ ``[columns, columns]`` and Σ b bᵀ ``[out, out]`` over the inputs and positions of one call, and their number N·R."""
    if isinstance(layer, EmbeddingLayer):
        rows = layer.output_gradients(a, b).flatten(0, 1)
        return torch.bincount(a.flatten(), minlength=layer.block[1]).to(b).diag(), rows.T @ rows, len(rows)
    columns, rows = layer.block[1], _rows(layer, b)
    A = a.new_empty(columns, columns)
    if layer.weight:
        width = columns - layer.bias
        A[:width, :width] = _weight_moment(layer, a, b)
    if layer.bias:
        A[-1] = A[:, -1] = layer.positions(a.sum(0, keepdim=True), b[:1])[0].sum((0, 1))
        A[-1, -1] = len(rows)
    return A, rows.T @ rows, len(rows)


def position_sums(layer: LinearLayer | ConvLayer | EmbeddingLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    """Σ_r a ``[N, columns]`` and Σ_r b ``[N, out]`` over the positions of one call, and their number R."""
    if not (isinstance(layer, ConvLayer) and layer.weight):
        a, b = layer.positions(a, b)
        return a.sum(1), b.sum(1), a.shape[1]
    x, before = _pixels(layer, a)
    rows, columns = (_overlaps(layer, axis, before[axis], x.shape[2 + axis], b.shape[2 + axis], x.device) for axis in (0, 1))
    overlaps = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)  # pixels × positions in the kernel
    sums, R = (x.flatten(2) @ overlaps.to(x)).flatten(1), b[0, 0].numel()
    return (F.pad(sums, (0, 1), value=R) if layer.bias else sums), b.sum((2, 3)), R


def patch_moment(layer: ConvLayer, a: Tensor, b: Tensor) -> Tensor:
    """Σ a aᵀ without the bias by products of pixels, for a call with stride 1: ``a [N, C, ..]`` and ``b [N, out, H, W]``."""
    (kh, kw), (H, W) = layer.module.kernel_size, b.shape[2:]
    x, (top, left) = _pixels(layer, a)
    N, C, h, w = x.shape
    padded = x.new_empty(h, N, w + 2 * (kw - 1), C)  # columns of zeros give all pixels the same number of neighbors
    padded[:, :, : kw - 1] = padded[:, :, kw - 1 + w :] = 0
    padded[:, :, kw - 1 : kw - 1 + w] = x.permute(2, 0, 3, 1)
    A = x.new_zeros(kh, kw, C, kh, kw, C)  # only blocks on and above the diagonal
    for s in range(min(kh, h)):
        limits = _windows(kh - s, top, H, h - s)
        runs = list(pairwise(sorted({limit for window in limits for limit in window})))
        products = [_row_products(padded, run, s, _windows(kw, left, W, w)) for run in runs]
        for row, (first, stop) in enumerate(limits):
            inside = [product for run, product in zip(runs, products, strict=True) if first <= run[0] and run[1] <= stop]
            A[row, :, :, row + s] = reduce(add, inside)
    A.view(kh * kw, C, kh * kw, C).diagonal(dim1=0, dim2=2).div_(2)  # they occur twice in the sum
    A = A.permute(2, 0, 1, 5, 3, 4).reshape(C * kh * kw, -1)
    return A + A.T


def _row_products(padded: Tensor, run: tuple[int, int], s: int, windows: list[tuple[int, int]]) -> Tensor:
    """Σ x_{y,x} x_{y+s,x+j}ᵀ over a run of rows y and the columns x of each window: ``[kw, C, kw, C]``, at ι and ι + j.

    ``padded [h, N, w + 2 (kw - 1), C]`` has the pixels. If s = 0, the products with j < 0 are left out.
    """
    kw, (_, N, width, C) = len(windows), padded.shape
    w, lowest, K = width - 2 * (kw - 1), 1 - kw if s else 0, (run[1] - run[0]) * N
    # Each column of pixels, and its neighbors from x + lowest to x + kw - 1: [w, K, C] and [w, K, (kw - lowest) C].
    pixels = padded[run[0] :, :, kw - 1 :].as_strided((w, K, C), (C, width * C, 1))
    neighbors = padded[run[0] + s :, :, kw - 1 + lowest :].as_strided((w, K, (kw - lowest) * C), (C, width * C, 1))
    products = torch.bmm(pixels.mT, neighbors).view(w, C, kw - lowest, C)
    sums = padded.new_zeros(kw, C, kw, C)
    for i, (first, stop) in enumerate(windows):
        start = 0 if s else i
        torch.sum(products[first:stop, :, start - i - lowest : kw - i - lowest], 0, out=sums[i, :, start:])
    return sums


def _windows(kernel: int, before: int, length: int, size: int) -> list[tuple[int, int]]:
    """The part of δ - before ≤ y < δ - before + length that is in 0 ≤ y < size, for each 0 ≤ δ < kernel, as (first, stop)."""
    first, stop = ([min(max(0, d - before + end), size) for d in range(kernel)] for end in (0, length))
    return list(zip(first, stop, strict=True))


def _weight_moment(layer: LinearLayer | ConvLayer, a: Tensor, b: Tensor) -> Tensor:
    """Σ a aᵀ without the bias."""
    if _overlapping(layer, b):
        return patch_moment(layer, a, b)
    if isinstance(layer, LinearLayer) or layer.pointwise:
        rows = _rows(layer, a)
        return rows.T @ rows
    return _written_out(layer, a, b)


def _written_out(layer: ConvLayer, a: Tensor, b: Tensor) -> Tensor:
    """Σ a aᵀ without the bias, with the patches in memory, in channels-last order because that has longer runs of numbers."""
    conv, R = layer.module, b[0, 0].numel()
    (kh, kw), C = conv.kernel_size, a.shape[1]
    total = a.new_zeros(kh * kw * C, kh * kw * C)
    # The patches of a piece fit into the cache, and there are enough of them that adding up the products takes little time.
    for inputs in pieces(len(b), max(1, step(b) // (R * len(total)), 2 * len(total) // R)):
        patches = layer.padded(a[inputs]).permute(0, 2, 3, 1).contiguous()
        for axis in (0, 1):
            reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            patches = patches.unfold(1 + axis, reach, conv.stride[axis])[..., :: conv.dilation[axis]]
        rows = patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, len(total))
        total.addmm_(rows.T, rows)
    return total.view(kh, kw, C, kh, kw, C).permute(2, 0, 1, 5, 3, 4).reshape(total.shape)


def _rows(layer: LinearLayer | ConvLayer, side: Tensor) -> Tensor:
    """The inputs or output gradients of all positions as rows: ``[N·R, channels]``."""
    side = side.flatten(2).mT if isinstance(layer, ConvLayer) else side
    return side.reshape(-1, side.shape[-1])


def _pixels(layer: ConvLayer, a: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The input without zero padding, and the numbers of zero rows and columns before it; other padding belongs to the input."""
    if layer.module.padding_mode != "zeros":
        return layer.padded(a), (0, 0)
    height, width = layer.padded(a[:1]).shape[2:]
    return a, ((height - a.shape[2]) // 2, (width - a.shape[3]) // 2)  # an odd number has one more after the input


def _overlaps(layer: ConvLayer, axis: int, before: int, size: int, outputs: int, device: torch.device) -> Tensor:
    """``[size, kernel]``: whether a row (axis 0) or column of the input overlaps a kernel position at any output position."""
    conv = layer.module
    start = torch.arange(conv.kernel_size[axis], device=device) * conv.dilation[axis] - before
    steps = torch.arange(size, device=device)[:, None] - start
    return (steps % conv.stride[axis] == 0) & (steps >= 0) & (steps < conv.stride[axis] * outputs)


def _overlapping(layer: LinearLayer | ConvLayer, b: Tensor) -> TypeGuard[ConvLayer]:
    """Whether ``patch_moment`` pays off: windows one pixel apart, and no fewer output positions than positions in the kernel."""
    conv = layer.module
    if not (isinstance(layer, ConvLayer) and layer.weight and conv.stride == conv.dilation == (1, 1)):
        return False
    return conv.kernel_size != (1, 1) and b.shape[2] >= conv.kernel_size[0] and b.shape[3] >= conv.kernel_size[1]
