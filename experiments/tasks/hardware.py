"""The hardware that a report names."""

import functools
import platform
from pathlib import Path

import torch

from experiments.tasks.cores import cores


@functools.cache
def hardware(device: torch.device) -> str:
    """Name the hardware of a device: "NVIDIA H100" for an accelerator, "2 cores of AMD EPYC 7763" for the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    count = cores()
    return f"{count} core{'s' if count > 1 else ''} of {_processor()}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
