"""Sums of a aᵀ and b bᵀ over the positions of a layer: the expensive part of Kronecker factors.

For a 3×3 convolution with C input and C output channels, A takes R · (9C)² multiplications, three times as many as the forward and
backward pass of the layer. Most of them are repeated: the block of A for two positions in the kernel, (δ, ι) and (δ + s, ι + j), is
the sum of x_{y,x} x_{y+s,x+j}ᵀ over the pixels (y, x) of a window of the input, and the windows differ only at the border. One
correlation of the input with itself, over all of its pixels, serves all blocks with a fifth of the multiplications:

    T[s, j] = Σ_{y,x} x_{y,x} x_{y+s,x+j}ᵀ        0 ≤ s < kh, -kw < j < kw

T is the weight gradient of a convolution with a kernel of kh × (2kw - 1), where x is both the input and the gradient of the output,
so it is as fast as a backward pass. The pixels outside each window are then subtracted, first columns, then rows; u_y ``[kw · C]``
are the unfolded patches along row y:

    M[s; ι, ι+j] = T[s, j] - Σ_{y; x outside} x_{y,x} x_{y+s,x+j}ᵀ        A[δ, δ+s] = M[s] - Σ_{y outside} u_y u_{y+s}ᵀ
"""

from itertools import product
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.gradients.convolution import ConvLayer
from attribution.gradients.layers import LinearLayer, pieces, step

SHARED = ("attribution.gradients.convolution", "attribution.gradients.layers")

CHAIN = 2**12
"""The number of positions summed in one convolution, which adds them one by one.

Summing 2^17 at once raises the float32 error from 4e-7 to 3e-5."""
CHAIN_ELSEWHERE = 2**14
"""The same on devices other than the CPU, which divide a sum among many threads."""


def second_moments(layer: LinearLayer | ConvLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    """Σ a aᵀ ``[columns, columns]`` and Σ b bᵀ ``[out, out]`` over the inputs and positions of one call, and their number N·R."""
    out, columns = layer.block
    if _correlates(layer, b):
        A = patch_moment(layer, a, b)
        b = b.transpose(0, 1).reshape(out, -1)
        return A, b @ b.T, b.shape[1]
    R = b[0].numel() // out
    A, B = a.new_zeros(columns, columns), b.new_zeros(out, out)
    # The patches of a piece fit into the cache, and there are enough of them that adding up the products takes little time.
    for inputs in pieces(len(b), max(1, step(b) // (R * columns), 2 * columns // R)):
        for total, side in zip((A, B), layer.positions(a[inputs], b[inputs]), strict=True):
            rows = side.reshape(-1, side.shape[-1])
            total += rows.T @ rows
    return A, B, len(b) * R


def position_sums(layer: LinearLayer | ConvLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
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
    """Σ a aᵀ by correlation, over inputs and positions of a call with stride 1, ``a [N, C, ..]`` and ``b [N, out, H, W]``."""
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
        """The patches u_y of the rows first ≤ y < stop, ``[N · rows · W, kw · C]``."""
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
    """T as defined above for ``x [N, h, w, C]``: ``[C, C, kh, 2kw - 1]``, with T[s, j] at ``[.., s, kw - 1 + j]``."""
    N, h, w, C = x.shape
    chain = CHAIN if x.device.type == "cpu" else CHAIN_ELSEWHERE
    T = x.new_zeros(C, C, kh, 2 * kw - 1)
    weights = x.new_empty(1).expand_as(T)  # only its shape is used
    # Full precision and deterministic results on a GPU too.
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True, allow_tf32=False):
        for images in pieces(N, max(1, chain // (h * w))):
            part = x[images].permute(0, 3, 1, 2)
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


def _outside(first: int, length: int, size: int, distance: int) -> list[tuple[int, int]]:
    """The spans of all y with 0 ≤ y < size and 0 ≤ y + distance < size, without those with first ≤ y < first + length."""
    low, high = max(0, -distance), size - max(0, distance)
    return [(start, stop) for start, stop in ((low, min(first, high)), (max(first + length, low), high)) if start < stop]


def _correlates(layer: LinearLayer | ConvLayer, b: Tensor) -> TypeGuard[ConvLayer]:
    """Whether ``patch_moment`` pays off: windows one pixel apart, and no fewer output positions than positions in the kernel."""
    conv = layer.module
    if not (isinstance(layer, ConvLayer) and layer.weight and conv.stride == conv.dilation == (1, 1)):
        return False
    return conv.kernel_size != (1, 1) and b.shape[2] >= conv.kernel_size[0] and b.shape[3] >= conv.kernel_size[1]
