"""How much memory of a device is free."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)
"""The limit, the use and its composition, of control groups version 2 and 1: containers and batch systems set them."""
_PROCESSES = "ATTRIBUTION_PROCESSES"
FREED_MEMORY_KEPT = 2**29
"""Freed bytes that a process keeps for its next tensors, at most, where the C library is glibc."""
UNKNOWN = 8e9
"""Bytes that are assumed where a system does not say what is free."""


def free_memory(device: torch.device) -> float:
    """Return the bytes of ``device`` that were free when this process first asked, or its part of them.

    What it has taken since then, such as queries that stay on the device, is still its own.
    """
    return _free_at_first(device) / int(os.environ.get(_PROCESSES) or 1)


@functools.cache
def _free_at_first(device: torch.device) -> float:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    return min(_free_in_system(), _free_in_container())


def process_bytes(peak: bool = False) -> float | None:
    """Return the bytes of memory that this process holds, or the most that it has held; None if the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines() if ":" in line)
        return float(lines["VmHWM" if peak else "VmRSS"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


@contextmanager
def shared(processes: int) -> Iterator[None]:
    """Within the context, this process and those that it starts count only their part of the free memory as theirs."""
    before = os.environ.get(_PROCESSES)
    os.environ[_PROCESSES] = str(processes)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PROCESSES]
        else:
            os.environ[_PROCESSES] = before


def _free_in_system() -> float:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return UNKNOWN


def _free_in_container() -> float:
    for limit, used, composition in _CGROUPS:
        try:
            # Pages of files count as used, although the system gives them up on request.
            files = dict(line.split() for line in composition.read_text().splitlines()).get("inactive_file", "0")
            return float(limit.read_text()) - float(used.read_text()) + float(files)
        except (OSError, ValueError):  # no such control group, or no limit ("max")
            continue
    return float("inf")
