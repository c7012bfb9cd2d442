"""Float64 where a device has it, and on the CPU where it does not (MPS)."""

import torch
from torch import Tensor

_WITHOUT_FLOAT64 = {"mps"}
"""Types of devices without float64."""


def double_device(device: torch.device) -> torch.device:
    """Return ``device``, or the CPU if the device has no float64."""
    return torch.device("cpu") if device.type in _WITHOUT_FLOAT64 else device


def double(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, on the CPU if its device has no float64."""
    return tensor.to(double_device(tensor.device)).double()
