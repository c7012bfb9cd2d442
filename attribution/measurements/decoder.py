"""The discretized Gaussian decoder: the probability of an image whose pixels take finitely many values (Ho et al. 2020, eq. 13).

The values are ``2k/levels - 1``, k = 0..levels, as in ``Images``: ``levels`` is 255 for 256 values. A value represents the bin of
half a step on either side; the bins of the first and the last value extend to infinity.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.special import erfcx, log_ndtr


def nearest_level(x0: Tensor, levels: int) -> Tensor:
    """k of the value nearest to each pixel, in the dtype and shape of ``x0``; pixels outside [-1, 1] get the first or the last."""
    return ((x0 + 1) * (levels / 2)).round().clamp(0, levels)


def value(level: Tensor, levels: int) -> Tensor:
    """The value ``2k/levels - 1`` of level k."""
    return level * (2 / levels) - 1


def log_probability(level: Tensor, error: Tensor, std: float, levels: int) -> Tensor:
    """The log probability of the bin of k under N(value(k) + error, std²), elementwise.

    ``error`` is the decoder's mean minus the pixel. Value and gradient are finite for any error, also in float32.
    """
    center = -error / std
    outermost = (level == 0) | (level == levels)
    # log Φ is precise in the lower tail, so bins are mirrored: an inner one has its center at or below 0, an outermost one is open
    # below.
    mirror = torch.where(outermost, 1 - 2 * (level == levels).to(error), -center.sign())
    result: Any = _LogMass.apply(mirror * center, 1 / (levels * std), outermost)
    return result


class _LogMass(torch.autograd.Function):
    """The log of the standard normal mass between ``center`` ± ``half``, or below ``center + half`` where ``is_open``.

    With b = center + half and a = center - half, the derivative with respect to the center is (φ(b) - φ(a)) / (Φ(b) - Φ(a)). It is
    written as φ(b)/Φ(b) · (1 - φ(a)/φ(b)) / (1 - Φ(a)/Φ(b)), where every factor is precise to rounding. The chain rule through
    log_ndtr would give differences of large numbers instead, and NaN in the far tail.
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
    """log Φ(a)/Φ(b), limited to log φ(a)/φ(b), its upper bound since Φ is log-concave: rounding then cannot make it 0."""
    ratio = torch.minimum(log_ndtr(center - half) - log_ndtr(center + half), 2 * center * half)
    return torch.where(is_open, -math.inf, ratio)
