"""The most memory that this process holds at a time during a computation, measured."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from attribution.device_memory import process_bytes

_RESET = Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """The most bytes in the memory of the ``host``, of the whole process, and in tensors on the CUDA ``device``.

    A figure is None where the system does not give it: ``host`` outside Linux, ``device`` without CUDA.
    """

    host: float | None = None
    device: float | None = None

    def include(self) -> None:
        """Raise the figures to the peaks since they were last reset."""
        for kind, value in (("host", process_bytes(peak=True)), ("device", _device())):
            if value is not None:
                setattr(self, kind, max(value, getattr(self, kind) or 0.0))


_running: list[PeakMemory] = []
"""The measurements in progress, the innermost last."""


@contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the memory within the context. Its figures are final when the context ends. Contexts may be nested.

    On Linux this sets the peak of the process back, also that of ``resource.getrusage`` and ``/usr/bin/time``: at the end these
    say what was held since the last context began or ended.
    """
    peak = PeakMemory()
    for outer in _running:
        outer.include()
    _reset()
    _running.append(peak)
    try:
        yield peak
    finally:
        for measured in _running:
            measured.include()
        _running.pop()


def _reset() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        _RESET.write_text("5")  # resets VmHWM (proc(5))


def _device() -> float | None:
    return float(torch.cuda.max_memory_allocated()) if torch.cuda.is_initialized() else None
