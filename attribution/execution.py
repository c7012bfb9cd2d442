"""Execution settings: device, memory and the division of the work. They change results by rounding at most."""

from dataclasses import dataclass
from typing import Literal

import torch

from attribution.checks import FieldError, number, whole
from attribution.device_memory import free_memory

FLOAT32_BYTES = 4
FLOAT64_BYTES = 8
PASS_MEMORY_ON_CPU, PASS_MEMORY_ELSEWHERE = 2e9, 8e9
"""Bytes of ``pass_memory=auto``."""
FORWARD_ACTIVATIONS = 0.2
"""The memory of a forward pass without gradients over that of a pass that keeps its activations, roughly."""
FORWARD_TIME = 1 / 3
"""The time of a forward pass over that of a forward and a backward pass, roughly."""
MARGIN = 0.1
"""The share of the free memory that ``memory=auto`` leaves free."""


@dataclass(frozen=True)
class Execution:
    """How attribution is computed. Not part of the identity of any node.

    Rounding depends on ``batch_size`` and ``pass_memory``, which decide what is computed in one pass. It does not depend on
    ``memory``, so that a run can be continued on a machine with more or less of it.

    - ``device``: auto, cpu, cuda, ...; auto is cuda if available
    - ``memory``: bytes of the device that this process may take; auto: what is free, less ``MARGIN``. Queries' gradients stay there
      during a pass over the training images; if they do not fit, the passes are repeated.
    - ``pass_memory``: bytes that the activations of one pass may take, and as many for a block of per-example gradients; auto: 2 GB
      on a CPU, 8 GB on an accelerator
    - ``batch_size``: the largest number of network inputs (examples × draws) in one pass
    - ``scratch``: bytes on disk that the queries' gradients of an estimator may take at a time; if they take more, the queries are
      divided, and every part of them takes passes over the training images
    - ``shard``, ``query_shard``: training examples and queries in one unit of stored work. A killed run loses at most one unit.

    Raises:
        ValueError: a number is below 1.
    """

    device: str = "auto"
    memory: float | Literal["auto"] = "auto"
    pass_memory: float | Literal["auto"] = "auto"
    batch_size: int = 512
    scratch: float = 3e10
    shard: int = 512
    query_shard: int = 16

    def __post_init__(self):
        for name in ("batch_size", "shard", "query_shard"):
            whole(self, name, least=1)
        number(self, "scratch", least=1)
        for name in ("memory", "pass_memory"):
            if getattr(self, name) != "auto":
                number(self, name, least=1)

    @property
    def pass_bytes(self) -> float:
        """``pass_memory`` in bytes."""
        if self.pass_memory != "auto":
            return self.pass_memory
        return PASS_MEMORY_ON_CPU if self.torch_device().type == "cpu" else PASS_MEMORY_ELSEWHERE

    @property
    def memory_bytes(self) -> float:
        """``memory`` in bytes."""
        return (1 - MARGIN) * free_memory(self.torch_device()) if self.memory == "auto" else self.memory

    def resident_bytes(self, working: float) -> float:
        """Return the bytes of the device that queries may take during passes: what the passes leave of ``memory``, or a quarter.

        Passes take ``pass_memory`` for activations and ``working`` bytes beside.
        """
        return max(self.memory_bytes - self.pass_bytes - working, self.memory_bytes / 4)

    def examples_at_once(self, parameters: int) -> int:
        """Return the number of examples for which gradients of ``parameters`` float32 values may be held at once."""
        return max(1, min(self.batch_size, int(self.pass_bytes / (FLOAT32_BYTES * parameters))))

    def query_batches(self, count: int, size: float) -> list[tuple[int, int]]:
        """Divide ``count`` queries of ``size`` bytes each into ranges of whole query shards that ``scratch`` holds."""
        shards = max(1, int(self.scratch / (size * self.query_shard)))
        return ranges(0, count, shards * self.query_shard)

    def torch_device(self) -> torch.device:
        """Return the device.

        Raises:
            ValueError: the device does not exist or cannot be used.
        """
        if self.device != "auto":
            if self.device.startswith("meta"):
                raise FieldError(self, "device", "computes nothing, choose auto or cpu")
            try:
                return torch.zeros(0, device=self.device).device
            except (RuntimeError, AssertionError) as error:
                raise FieldError(self, "device", f"not available ({error}), choose auto or cpu") from error
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ranges(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Divide start..stop-1 into consecutive ranges (start, stop) of at most ``size``."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]


def halves(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """Divide start..stop-1 into two ranges; return none if it is at most ``size``, which is one unit of work.

    The first has a power of two of units. A sum over n units whose halves are divided again, down to single units, can be merged
    early: if w processes go through the units in order, about w + log2(n) sums are waiting at any time.
    """
    count = -(-(stop - start) // size)
    if count < 2:
        return []
    middle = start + size * 2 ** ((count - 1).bit_length() - 1)
    return [(start, middle), (middle, stop)]
