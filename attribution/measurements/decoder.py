"""The discretised Gaussian decoder: the probability of an image whose pixels take finitely many values (Ho et al. 2020, eq. 13).

The values are ``2k/levels - 1``, k = 0..levels, as in ``Images``: ``levels`` is 255 where there are 256 of them. A value stands for
the bin of half a step on either side, the outermost ones for all that lies beyond.
"""

import torch
from torch import Tensor
from torch.special import log_ndtr


def nearest_level(x0: Tensor, levels: int) -> Tensor:
    """k of the value nearest to each pixel, in the dtype and shape of ``x0``; pixels outside [-1, 1] get the outermost."""
    return ((x0 + 1) * (levels / 2)).round().clamp(0, levels)


def value(level: Tensor, levels: int) -> Tensor:
    """``2k/levels - 1``."""
    return level * (2 / levels) - 1


def log_probability(level: Tensor, error: Tensor, std: float, levels: int) -> Tensor:
    """log of what N(value(k) + error, std²) puts into the bin of k, elementwise: the decoder's mean misses the pixel by ``error``.

    Value and gradient are finite, and right to float precision, however far out the bin lies: differences are taken of log Φ in the
    lower tail, into which symmetry brings either side.
    """
    half = 1 / (levels * std)
    center = -error / std
    lower_side = -center.abs()
    top, bottom = log_ndtr(lower_side + half), log_ndtr(lower_side - half)
    inner = top + torch.log(-torch.expm1(bottom - top))
    outer = log_ndtr(torch.where(level == 0, center, -center) + half)
    return torch.where((level == 0) | (level == levels), outer, inner)
