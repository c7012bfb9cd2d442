"""Evaluation of one network with the parameters of M models at once.

``torch.func.vmap`` over the stacked parameters works for any network. Three operations that it batches inefficiently are replaced:
M convolutions become one with M times the groups, M group norms one with M times the groups, and attention gets M times the batch.
The result of ``vmap`` is a tensor with an ordinary autograd graph, so one backward pass in C++ serves all models;
``vmap(grad(...))`` would run the backward pass in Python, operation by operation.

docs/speed.md compares the speed with that of ``vmap(grad(...))``.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from attribution.diffusion import denoiser
from attribution.measurements import Inputs, Measure

SHARED = ("attribution.diffusion.denoiser",)


def stacked_losses(network: nn.Module, state: Mapping[str, Tensor], measure: Measure, inputs: Inputs) -> Tensor:
    """Return ``measure`` of M models, each at B inputs: ``[M, B]``, differentiable with respect to ``state``.

    Args:
        network: any module without randomness; its parameters are not used.
        state: parameters and buffers of all models by name, ``[M, ...]``.
        inputs: those of each model, ``[M, B, ...]``.
    """

    def losses(state: dict[str, Tensor], inputs: Inputs) -> Tensor:
        return measure(denoiser(network, state), *inputs)

    batched = Inputs(*(None if tensor is None else 0 for tensor in inputs))  # pyright: ignore[reportArgumentType]
    with _Stacked():
        return vmap(losses, in_dims=(0, batched))(dict(state), inputs)


class _Stacked(TorchFunctionMode):
    """A mode in which the operations of ``_STACKED`` run for all models at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        stacked: Any = _STACKED.get(func, func)
        return stacked(*args, **(kwargs or {}))


class _ForAll(torch.autograd.Function):
    """``operation(*inputs)`` with the dimension of models first in every tensor; autograd differentiates ``operation`` itself."""

    @staticmethod
    def forward(operation: Callable[..., Tensor], *inputs: Any) -> Tensor:
        raise NotImplementedError("only supported under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        operation, *inputs = arguments
        stacked = (
            x if not isinstance(x, Tensor) else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(inputs, in_dims[1:], strict=True)
        )
        return operation(*stacked), 0


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """``torch.conv2d`` for all models: as one grouped convolution, or by a faster method than many groups (docs/speed.md)."""
    if input.dim() != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def as_products(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        products = weight.flatten(2) @ x.flatten(3).transpose(1, 2).flatten(2)  # [M, out, C] of [M, C, B·H·W]
        products = products if bias is None else products + bias.unsqueeze(2)
        return products.unflatten(2, (x.shape[1], *x.shape[3:])).transpose(1, 2)

    def one_by_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        biases = [None] * len(x) if bias is None else bias.unbind()
        inputs = zip(x.unbind(), weight.unbind(), biases, strict=True)
        return torch.stack([torch.conv2d(*model, stride, padding, dilation, groups) for model in inputs], 1).transpose(0, 1)

    def grouped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = None if bias is None else bias.flatten()
        output = torch.conv2d(_models_as_channels(x), weight.flatten(0, 1), flat, stride, padding, dilation, groups * len(x))
        return output.unflatten(1, (len(x), -1)).transpose(0, 1)

    pointwise = _is_pointwise(weight, stride, padding, groups)
    convolve = as_products if pointwise else one_by_one if len(weight) < _NARROW else grouped
    return _ForAll.apply(convolve, input, weight, bias)  # pyright: ignore[reportReturnType]


def _is_pointwise(weight: Tensor, stride: Any, padding: Any, groups: int) -> bool:
    single = all(s == 1 for s in ([stride] if isinstance(stride, int) else stride))
    unpadded = padding in ("valid", "same") or all(p == 0 for p in ([padding] if isinstance(padding, int) else padding))
    return weight.shape[2:] == (1, 1) and single and unpadded and groups == 1


_NARROW = 8
"""The number of output channels below which the backend's grouped convolution is slower than a loop over models."""


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *unused: Any
) -> Tensor:
    """``F.group_norm`` for all models; in torch 2.13 ``vmap`` does not support it outside of ``grad``."""

    def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        affine = (None if tensor is None else tensor.flatten() for tensor in (weight, bias))
        output = F.group_norm(_models_as_channels(x), num_groups * len(x), *affine, eps=eps)
        return output.unflatten(1, (len(x), -1)).transpose(0, 1)

    return _ForAll.apply(normalize, input, weight, bias)  # pyright: ignore[reportReturnType]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **options: Any
) -> Tensor:
    """``F.scaled_dot_product_attention`` for all models, as one batch."""
    if dropout_p:
        raise ValueError("models cannot be trained together with dropout in attention: train each alone, or turn it off")

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
        mask = None if mask is None else mask.flatten(0, 1)
        return F.scaled_dot_product_attention(q, k, v, mask, **options).unflatten(0, query.shape[:2])

    mask = None if attn_mask is None else attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return _ForAll.apply(attend, query, key, value, mask)  # pyright: ignore[reportReturnType]


_STACKED: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: _conv2d,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.scaled_dot_product_attention: _attention,
}


def _models_as_channels(x: Tensor) -> Tensor:
    """``[M, B, C, ...]`` to ``[B, M·C, ...]``: the output of a convolution has this layout in memory already and is not copied."""
    return x.transpose(0, 1).flatten(1, 2)
