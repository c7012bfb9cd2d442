"""The discretised Gaussian decoder: the probability of an image whose pixels take finitely many values (Ho et al. 2020, eq. 13).

The values are ``2k/levels - 1``, k = 0..levels, as in ``Images``: ``levels`` is 255 where there are 256 of them. A value stands for
the bin of half a step on either side, the outermost ones for all that lies beyond.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr


def nearest_level(x0: Tensor, levels: int) -> Tensor:
    """k of the value nearest to each pixel, in the dtype and shape of ``x0``; pixels outside [-1, 1] get the outermost."""
    return ((x0 + 1) * (levels / 2)).round().clamp(0, levels)


def value(level: Tensor, levels: int) -> Tensor:
    """``2k/levels - 1``."""
    return level * (2 / levels) - 1


def log_probability(level: Tensor, error: Tensor, std: float, levels: int) -> Tensor:
    """log of what N(value(k) + error, std²) puts into the bin of k, elementwise: the decoder's mean misses the pixel by ``error``.

    In float32 too, value and gradient are finite however large the error is.
    """
    center = -error / std
    outermost = (level == 0) | (level == levels)
    # log Φ has its digits in the lower tail: mirrored into it, an inner bin is at or below 0, an outermost one open downwards.
    mirror = torch.where(outermost, 1 - 2 * (level == levels).to(error), -center.sign())
    result: Any = _LogMass.apply(mirror * center, 1 / (levels * std), outermost)
    return result


class _LogMass(torch.autograd.Function):
    """log of the standard normal's mass between ``center`` ± ``half``, or below ``center + half`` where ``is_open``.

    With b = center + half and a = center - half, the derivative by the center is (φ(b) - φ(a)) / (Φ(b) - Φ(a)), written as
    φ(b)/Φ(b) · (1 - φ(a)/φ(b)) / (1 - Φ(a)/Φ(b)): products of numbers that are good to rounding. The chain rule through log_ndtr
    comes to differences of large ones instead, and far out to NaN.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(center: Tensor, half: float, is_open: Tensor) -> Tensor:
        return log_ndtr(center + half) + torch.log(-torch.expm1(_log_ratio(center, half, is_open)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, Tensor], output: Tensor) -> None:
        center, ctx.half, is_open = inputs
        ctx.save_for_backward(center, is_open)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        center, is_open = ctx.saved_tensors
        hazard = math.sqrt(2 / math.pi) / erfcx(-(center + ctx.half) / math.sqrt(2))
        shares = torch.expm1(2 * center * ctx.half) / torch.expm1(_log_ratio(center, ctx.half, is_open))
        return grad_outputs[0] * hazard * torch.where(is_open, 1, shares), None, None


def _log_ratio(center: Tensor, half: float, is_open: Tensor) -> Tensor:
    """log Φ(a)/Φ(b). At most log φ(a)/φ(b), Φ being log-concave: so it stays below 0 where rounding would lose the difference."""
    ratio = torch.minimum(log_ndtr(center - half) - log_ndtr(center + half), 2 * center * half)
    return torch.where(is_open, -math.inf, ratio)
