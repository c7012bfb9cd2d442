"""Sums of a aᵀ and b bᵀ over the positions of a layer: the expensive part of Kronecker factors.

For a 3×3 convolution of as many output as input channels, A takes R · (9C)² multiplications, three times a whole forward and
backward pass of the layer. Most of them repeat: block (δ, δ') of A, for kernel rows δ and δ', is a correlation of rows of the
padded input that lie δ' - δ apart, over a window that begins at row δ. Windows differ at the border only, so that with u_y the
patches written out along row y only (``[kw · C]``), one product for each distance serves all windows (H output rows):

    A[δ, δ + s] = Σ_y u_y u_{y+s}ᵀ - Σ_{y < δ} u_y u_{y+s}ᵀ - Σ_{y ≥ δ + H} u_y u_{y+s}ᵀ

That is a third of the multiplications, and what the border costs, and a third of the patches to write out.
"""

from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from attribution.convolution import ConvLayer
from attribution.layers import STEP, LinearLayer, pieces


def second_moments(layer: LinearLayer | ConvLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    """Σ a aᵀ ``[columns, columns]`` and Σ b bᵀ ``[out, out]`` over inputs and positions of one call, and how many N·R they are."""
    out, columns = layer.block
    if _has_rows(layer):
        b = b.transpose(0, 1).reshape(out, -1)
        return patch_moment_by_rows(layer, a), b @ b.T, b.shape[1]
    R = b[0].numel() // out
    A, B = a.new_zeros(columns, columns), b.new_zeros(out, out)
    # Patches that fit the cache, but enough of them that adding up the products does not show.
    for some in pieces(len(b), max(1, STEP // (R * columns), 2 * columns // R)):
        for total, side in zip((A, B), layer.positions(a[some], b[some]), strict=True):
            rows = side.reshape(-1, side.shape[-1])
            total.addmm_(rows.T, rows)
    return A, B, len(b) * R


def position_sums(layer: LinearLayer | ConvLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, int]:
    """Σ_r a ``[N, columns]`` and Σ_r b ``[N, out]`` over the positions of one call, and how many R there are."""
    if not (isinstance(layer, ConvLayer) and layer.weight):
        a, b = layer.positions(a, b)
        return a.sum(1), b.sum(1), a.shape[1]
    conv, R = layer.module, b[0, 0].numel()
    sums, _ = layer.padded(a)
    for axis in (0, 1):  # [N, C, H', W'] to [N, C, W', kh] to [N, C, kh, kw]
        step, last = conv.stride[axis], conv.stride[axis] * (b.shape[2 + axis] - 1)
        starts = [offset * conv.dilation[axis] for offset in range(conv.kernel_size[axis])]
        sums = torch.stack([sums[:, :, start : start + last + 1 : step].sum(2) for start in starts], 3)
    sums = sums.flatten(1)
    return (F.pad(sums, (0, 1), value=R) if layer.bias else sums), b.sum((2, 3)), R


def patch_moment_by_rows(layer: ConvLayer, a: Tensor) -> Tensor:
    """Σ a aᵀ over inputs and positions of a stride-1 convolution of ``a [N, C, H', W']``, as in the module's text."""
    kh, kw = layer.module.kernel_size
    a, (top, bottom) = layer.padded(a)
    N, C, height, width = a.shape
    H, W, size = height - kh + 1, width - kw + 1, kw * C

    def span(first: int, stop: int, s: int) -> tuple[int, int, int]:
        """The rows first ≤ y < stop, less those where u_y or u_{y+s} is zero."""
        return max(first, top), min(stop, height - bottom - s), s

    blocks = {(row, s): (span(0, height, s), span(0, row, s), span(row + H, height, s)) for s in range(kh) for row in range(kh - s)}
    products = {rows: a.new_zeros(size, size) for spans in blocks.values() for rows in spans if rows[0] < rows[1]}
    sums = a.new_zeros(size, height)
    for some in pieces(N, max(1, STEP // (size * height * W))):
        x = a[some].permute(1, 2, 0, 3)
        u = torch.stack([x[..., j : j + W] for j in range(kw)]).view(size, height, -1)
        for (first, stop, s), product in products.items():
            product.addmm_(u[:, first:stop].flatten(1), u[:, first + s : stop + s].flatten(1).T)
        sums += u.sum(2)

    A, zero = a.new_zeros(kh, size, kh, size), a.new_zeros(size, size)
    for (row, s), spans in blocks.items():
        everywhere, above, below = (products.get(rows, zero) for rows in spans)
        block = everywhere - above - below
        A[row, :, row + s] = block
        A[row + s, :, row] = block.T
    A = A.view(kh, kw, C, kh, kw, C).permute(2, 0, 1, 5, 3, 4).reshape(C * kh * kw, -1)
    if not layer.bias:
        return A
    A = F.pad(A, (0, 1, 0, 1))
    windows = torch.stack([sums[:, row : row + H].sum(1) for row in range(kh)])
    A[-1, :-1] = A[:-1, -1] = windows.view(kh, kw, C).permute(2, 0, 1).flatten()
    A[-1, -1] = N * H * W
    return A


def _has_rows(layer: LinearLayer | ConvLayer) -> TypeGuard[ConvLayer]:
    conv = layer.module
    return isinstance(layer, ConvLayer) and layer.weight and conv.kernel_size[0] > 1 and conv.stride == conv.dilation == (1, 1)
