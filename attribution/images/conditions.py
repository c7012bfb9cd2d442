"""Conditions: what a network is told about an image besides the noisy image and its noise level, and what stands for no condition.

Classes are integers ``[B]`` from 0; embeddings are real numbers ``[B, D]`` or ``[B, L, D]``. Training drops conditions at random,
so that the network also learns to do without them, as classifier-free guidance needs (Ho & Salimans 2022).
"""

import torch
from torch import Tensor

NULL_CLASS = -1
"""No class. Networks have a class of their own for it, which ``attribution.diffusion.denoiser`` puts in its place."""


def is_class(condition: Tensor) -> bool:
    """Whether the conditions are classes and not embeddings."""
    return not condition.is_floating_point()


def null(condition: Tensor) -> Tensor:
    """No condition, in the form of ``condition``: ``NULL_CLASS``, or an embedding of zeros."""
    return torch.full_like(condition, NULL_CLASS) if is_class(condition) else torch.zeros_like(condition)


def with_dropped(condition: Tensor, dropped: Tensor) -> Tensor:
    """``condition [B, ...]`` with no condition in the rows where ``dropped`` (bool ``[B]``)."""
    return torch.where(dropped.view(-1, *[1] * (condition.dim() - 1)), null(condition), condition)
