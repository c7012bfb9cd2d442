"""Sums of a aᵀ and b bᵀ over the positions of a layer: the expensive part of Kronecker factors.

For a 3×3 convolution of as many output as input channels C, A takes R · (9C)² multiplications, three times a whole forward and
backward pass of the layer. Most of them repeat: the block of A for two places of the kernel, at (δ, ι) and s rows and j columns
further, sums x_{y,x} x_{y+s,x+j}ᵀ over the pixels (y, x) of a window of the input, and windows differ at the border only. One
correlation of the input with itself, over all of its pixels, serves them all, with a fifth of the multiplications:

    T[s, j] = Σ_{y,x} x_{y,x} x_{y+s,x+j}ᵀ        0 ≤ s < kh, -kw < j < kw

It is the weight gradient of a convolution of kh × (2kw - 1) weights with x as its input and as its output's gradient, which comes
at the speed of a backward pass. What a window leaves out is then taken off, first the columns, then the rows, of which u_y
``[kw · C]`` are the patches written out along row y:

    M[s; ι, ι+j] = T[s, j] - Σ_{y; x outside} x_{y,x} x_{y+s,x+j}ᵀ        A[δ, δ+s] = M[s] - Σ_{y outside} u_y u_{y+s}ᵀ
"""

from itertools import product
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.gradients.convolution import ConvLayer
from attribution.gradients.layers import STEP, LinearLayer, pieces

CHAIN = 2**12
"""Positions summed in one convolution, which adds them up one by one: 2^17 at once had an error of 3e-5 in float32, not 4e-7."""


def second_moments(layer: LinearLayer | ConvLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    """Σ a aᵀ ``[columns, columns]`` and Σ b bᵀ ``[out, out]`` over inputs and positions of one call, and how many N·R they are."""
    out, columns = layer.block
    if _correlates(layer, b):
        A = patch_moment(layer, a, b)
        b = b.transpose(0, 1).reshape(out, -1)
        return A, b @ b.T, b.shape[1]
    R = b[0].numel() // out
    A, B = a.new_zeros(columns, columns), b.new_zeros(out, out)
    # Patches that fit the cache, but enough of them that adding up the products does not show.
    for some in pieces(len(b), max(1, STEP // (R * columns), 2 * columns // R)):
        for total, side in zip((A, B), layer.positions(a[some], b[some]), strict=True):
            rows = side.reshape(-1, side.shape[-1])
            total += rows.T @ rows
    return A, B, len(b) * R


def position_sums(layer: LinearLayer | ConvLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    """Σ_r a ``[N, columns]`` and Σ_r b ``[N, out]`` over the positions of one call, and how many R there are."""
    if not (isinstance(layer, ConvLayer) and layer.weight):
        a, b = layer.positions(a, b)
        return a.sum(1), b.sum(1), a.shape[1]
    x, before = _pixels(layer, a)
    rows, columns = (_met(layer, axis, before[axis], x.shape[2 + axis], b.shape[2 + axis]) for axis in (0, 1))
    met = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)  # pixels, places of the kernel
    sums, R = (x.flatten(2) @ met.to(x)).flatten(1), b[0, 0].numel()
    return (F.pad(sums, (0, 1), value=R) if layer.bias else sums), b.sum((2, 3)), R


def patch_moment(layer: ConvLayer, a: Tensor, b: Tensor) -> Tensor:
    """Σ a aᵀ over inputs and positions of a call with stride 1, ``a [N, C, ..]`` and ``b [N, out, H, W]``, by correlation."""
    (kh, kw), (H, W) = layer.module.kernel_size, b.shape[2:]
    x, (top, left) = _pixels(layer, a)
    x = x.permute(0, 2, 3, 1).contiguous()
    N, h, w, C = x.shape

    T = correlation(x, kh, kw)
    M = torch.stack([T[..., kw - 1 - i : 2 * kw - 1 - i] for i in range(kw)]).permute(3, 0, 1, 4, 2).contiguous()
    for i, k in product(range(kw), range(kw)):
        for first, stop in _outside(i - left, W, w, k - i):
            one = x[:, :, first:stop].transpose(0, 1).contiguous()
            other = one if i == k else x[:, :, first + k - i : stop + k - i].transpose(0, 1).contiguous()
            for s in range(min(kh, h)):
                M[s, i, :, k] -= one[: h - s].view(-1, C).T @ other[s:].view(-1, C)

    def patches(first: int, stop: int) -> Tensor:
        """u of the rows first ≤ y < stop, ``[N · rows · W, kw · C]``."""
        rows = F.pad(x[:, first:stop], (0, 0, left, W + kw - 1 - w - left))
        return torch.cat([rows[:, :, i : i + W] for i in range(kw)], 3).view(-1, kw * C)

    M = M.view(kh, kw * C, kw * C)
    M = torch.cat([M[1:].flip(0).mT, M])  # row distances from -(kh - 1) to kh - 1
    A = torch.stack([M[kh - 1 - i : 2 * kh - 1 - i] for i in range(kh)])  # [kh, kh, kw · C, kw · C]
    for i, k in product(range(kh), range(kh)):
        for first, stop in _outside(i - top, H, h, k - i):
            one = patches(first, stop)
            A[i, k] -= one.T @ (one if i == k else patches(first + k - i, stop + k - i))
    A = A.view(kh, kh, kw, C, kw, C).permute(3, 0, 2, 5, 1, 4).reshape(C * kh * kw, -1)
    if not layer.bias:
        return A
    A = F.pad(A, (0, 1, 0, 1))
    sums, _, R = position_sums(layer, a.sum(0, keepdim=True), b[:1])
    A[-1] = A[:, -1] = sums[0]
    A[-1, -1] = N * R
    return A


def correlation(x: Tensor, kh: int, kw: int) -> Tensor:
    """T of the module's text for ``x [N, h, w, C]``: ``[C, C, kh, 2kw - 1]``, at ``[.., s, kw - 1 + j]`` the distance (s, j)."""
    N, h, w, C = x.shape
    T = x.new_zeros(C, C, kh, 2 * kw - 1)
    weights = x.new_empty(1).expand_as(T)  # only its shape is looked at
    # On a GPU too in full precision, and with the same bits each time.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False):
        for some in pieces(N, max(1, CHAIN // (h * w))):
            part = x[some].permute(0, 3, 1, 2)
            _, sums, _ = torch.ops.aten.convolution_backward.default(
                part,
                F.pad(part, (0, 0, 0, kh - 1)),
                weights,
                None,
                [1, 1],
                [0, kw - 1],
                [1, 1],
                False,
                [0, 0],
                1,
                [False, True, False],
            )
            T += sums
    return T


def _pixels(layer: ConvLayer, a: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The input but for zeros around it, and how many rows and columns of these come first; other padding is part of it."""
    if layer.module.padding_mode != "zeros":
        return layer.padded(a), (0, 0)
    height, width = layer.padded(a[:1]).shape[2:]
    return a, ((height - a.shape[2]) // 2, (width - a.shape[3]) // 2)  # of an odd number one more comes after


def _met(layer: ConvLayer, axis: int, before: int, size: int, outputs: int) -> Tensor:
    """``[size, kernel]``: whether a row (axis 0) or column of the input meets a place of the kernel at any output position."""
    conv = layer.module
    start = torch.arange(conv.kernel_size[axis]) * conv.dilation[axis] - before
    steps = torch.arange(size)[:, None] - start
    return (steps % conv.stride[axis] == 0) & (steps >= 0) & (steps < conv.stride[axis] * outputs)


def _outside(first: int, length: int, size: int, distance: int) -> list[tuple[int, int]]:
    """The spans of 0 ≤ y < size without first ≤ y < first + length, of those y with 0 ≤ y + distance < size too."""
    low, high = max(0, -distance), size - max(0, distance)
    return [(one, other) for one, other in ((low, min(first, high)), (max(first + length, low), high)) if one < other]


def _correlates(layer: LinearLayer | ConvLayer, b: Tensor) -> TypeGuard[ConvLayer]:
    """Whether windows are one pixel apart and, with more output positions than the kernel has places, mostly the same."""
    conv = layer.module
    if not (isinstance(layer, ConvLayer) and layer.weight and conv.stride == conv.dilation == (1, 1)):
        return False
    return conv.kernel_size != (1, 1) and b.shape[2] >= conv.kernel_size[0] and b.shape[3] >= conv.kernel_size[1]
