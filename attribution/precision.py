"""The precision of computation with float32 parameters in training, retraining and measuring: float32, TF32 or bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from attribution.checks import FieldError

FLOAT32, TF32, BFLOAT16 = "32-true", "tf32", "bf16-mixed"
"""Names as in Lightning, which has no name for TF32."""
MIXABLE = (FLOAT32, TF32, BFLOAT16)
"""The precisions of computation with float32 parameters."""


def check_precision(owner: Any, field: str) -> None:
    """Raise :class:`FieldError` unless the field is one of ``MIXABLE``."""
    if getattr(owner, field) not in MIXABLE:
        raise FieldError(owner, field, f"must be one of {', '.join(MIXABLE)}")


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Return the autocast context for forward passes in ``precision``: to bfloat16 in ``bf16-mixed``, none otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == BFLOAT16)


@contextmanager
def tf32_products(allowed: bool) -> Iterator[None]:
    """Compute float32 products and convolutions on CUDA GPUs in TF32 if ``allowed``, and otherwise in float32.

    PyTorch's default is TF32 for convolutions and float32 for matrix products. Other devices have no TF32.
    """
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def allow_tf32(allowed: bool) -> None:
    """Allow or forbid TF32 for the rest of this process, or until ``tf32_products`` changes it for its context."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
