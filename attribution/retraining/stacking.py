"""One network, evaluated with the parameters of M models at once.

``torch.func.vmap`` over the stacked parameters does it for any network. Three operations that it takes apart badly are made whole
again: M convolutions are one with M times the groups, M group norms one with M times the groups, and attention has M times the
batch. What comes out of ``vmap`` is an ordinary tensor of an ordinary autograd graph, so that one backward pass in C++ serves all
models; ``vmap(grad(...))`` would go back through Python operation by operation.

Measured against ``vmap(grad(...))``: docs/retraining.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from attribution.diffusion import Denoiser, denoiser
from attribution.measurements import Measure


def stacked_losses(
    network: nn.Module, state: Mapping[str, Tensor], measure: Measure, x0: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """``measure`` of M models, each at its own B inputs: ``[M, B]``, differentiable by ``state``.

    Args:
        network: any module without randomness; its own parameters are not used.
        state: parameters and buffers of all models by name, ``[M, ...]``.
        x0: ``[M, B, C, H, W]``, as ``noise``; ``t [M, B]``.
    """

    def of_one(state: dict[str, Tensor], x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return measure(denoiser_with(network, state), x0, t, noise)

    with _Whole():
        return vmap(of_one)(dict(state), x0, t, noise)


def denoiser_with(network: nn.Module, state: Mapping[str, Tensor]) -> Denoiser:
    """``ε_θ`` of ``network`` with the parameters and buffers of ``state`` instead of its own, which stay as they are."""
    return denoiser(lambda *inputs: functional_call(network, dict(state), inputs))  # pyright: ignore[reportArgumentType]


class _Whole(TorchFunctionMode):
    """Within it, the operations of ``_WHOLE`` run for all models at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        whole: Any = _WHOLE.get(func, func)
        return whole(*args, **(kwargs or {}))


class _ForAll(torch.autograd.Function):
    """``operation(*inputs)`` with the models' dimension of every tensor laid open in front; autograd sees the operation itself."""

    @staticmethod
    def forward(operation: Callable[..., Tensor], *inputs: Any) -> Tensor:
        raise NotImplementedError("only for use under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> tuple[Tensor, int]:
        operation, *inputs = arguments
        opened = (
            x if not isinstance(x, Tensor) else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(inputs, in_dims[1:], strict=True)
        )
        return operation(*opened), 0


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """As ``torch.conv2d``: grouped, or what is faster than many groups (docs/retraining.md)."""
    if input.dim() != 4:
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def as_products(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        products = weight.flatten(2) @ x.flatten(3).transpose(1, 2).flatten(2)  # [M, out, C] of [M, C, B·H·W]
        products = products if bias is None else products + bias.unsqueeze(2)
        return products.unflatten(2, (x.shape[1], *x.shape[3:])).transpose(1, 2)

    def one_by_one(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        biases = [None] * len(x) if bias is None else bias.unbind()
        inputs = zip(x.unbind(), weight.unbind(), biases, strict=True)
        return torch.stack([torch.conv2d(*of_one, stride, padding, dilation, groups) for of_one in inputs], 1).transpose(0, 1)

    def grouped(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        flat = None if bias is None else bias.flatten()
        whole = torch.conv2d(_models_as_channels(x), weight.flatten(0, 1), flat, stride, padding, dilation, groups * len(x))
        return whole.unflatten(1, (len(x), -1)).transpose(0, 1)

    pointwise = _is_pointwise(weight, stride, padding, groups)
    convolve = as_products if pointwise else one_by_one if len(weight) < _NARROW else grouped
    return _ForAll.apply(convolve, input, weight, bias)  # pyright: ignore[reportReturnType]


def _is_pointwise(weight: Tensor, stride: Any, padding: Any, groups: int) -> bool:
    single = all(s == 1 for s in ([stride] if isinstance(stride, int) else stride))
    unpadded = padding in ("valid", "same") or all(p == 0 for p in ([padding] if isinstance(padding, int) else padding))
    return weight.shape[2:] == (1, 1) and single and unpadded and groups == 1


_NARROW = 8
"""Output channels below which the vendor's grouped convolution is slower than a loop over models: they fill its vectors badly."""


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *unused: Any
) -> Tensor:
    """As ``F.group_norm``, which ``vmap`` alone refuses in torch 2.13 outside of ``grad``."""

    def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        affine = (None if tensor is None else tensor.flatten() for tensor in (weight, bias))
        whole = F.group_norm(_models_as_channels(x), num_groups * len(x), *affine, eps=eps)
        return whole.unflatten(1, (len(x), -1)).transpose(0, 1)

    return _ForAll.apply(normalize, input, weight, bias)  # pyright: ignore[reportReturnType]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, **more: Any
) -> Tensor:
    """As ``F.scaled_dot_product_attention``."""
    if dropout_p:
        raise ValueError(
            "retraining@benchmark.mode=together cannot train with dropout in attention: choose "
            "retraining@benchmark.mode=alone, or turn it off"
        )

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (tensor.flatten(0, 1) for tensor in (query, key, value))
        mask = None if mask is None else mask.flatten(0, 1)
        return F.scaled_dot_product_attention(q, k, v, mask, **more).unflatten(0, query.shape[:2])

    mask = None if attn_mask is None else attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return _ForAll.apply(attend, query, key, value, mask)  # pyright: ignore[reportReturnType]


_WHOLE: dict[Any, Callable[..., Tensor]] = {
    torch.conv2d: _conv2d,
    F.group_norm: _group_norm,
    torch.group_norm: _group_norm,
    F.scaled_dot_product_attention: _attention,
}


def _models_as_channels(x: Tensor) -> Tensor:
    """``[M, B, C, ...]`` to ``[B, M·C, ...]``: what came out of a convolution lies so in memory already, and is not copied."""
    return x.transpose(0, 1).flatten(1, 2)
