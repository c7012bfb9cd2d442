"""Copies of tensors to a device for which the host does not wait."""

import torch
from torch import Tensor

ASYNCHRONOUS = {"cuda"}
"""The types of devices that copy from pinned memory while the host continues."""


def to_device(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``tensor`` on ``device``, cast to ``dtype`` before it is copied.

    A copy from the CPU to a CUDA GPU is made from pinned memory, which PyTorch keeps until the copy is complete.
    """
    device, dtype = torch.device(device), dtype or tensor.dtype
    if tensor.device.type == "cpu" and device.type in ASYNCHRONOUS:
        return tensor.to(dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype)
