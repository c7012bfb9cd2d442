"""Float64 where a device has it, and on the CPU where it does not (MPS, some of Intel's GPUs)."""

from functools import cache

import torch
from torch import Tensor, nn


@cache
def has_float64(device: torch.device) -> bool:
    """Return whether a device has float64. All but CPUs and CUDA GPUs are tried."""
    if device.type in ("cpu", "cuda"):
        return True
    try:
        torch.ones(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):  # as MPS and XPU refuse it
        return False
    return True


def double_device(device: torch.device) -> torch.device:
    """Return ``device``, or the CPU if the device has no float64."""
    return device if has_float64(device) else torch.device("cpu")


def double(tensor: Tensor) -> Tensor:
    """Return ``tensor`` in float64, on the CPU if its device has no float64."""
    return tensor.to(double_device(tensor.device)).double()


def on_device(network: nn.Module, device: torch.device) -> nn.Module:
    """Move ``network`` to ``device`` and return it.

    Raises:
        ValueError: a network in float64, and a device that has none.
    """
    if not has_float64(device) and any(tensor.dtype == torch.float64 for tensor in network.state_dict().values()):
        raise ValueError(f"the network has float64 parameters, but the device {device} has no float64: choose the CPU, or float32")
    return network.to(device)
