"""Execution settings: device, batch size and memory. They do not change results."""

from dataclasses import dataclass

import torch

from attribution.checks import FieldError, number, whole

FLOAT32_BYTES = 4
FLOAT64_BYTES = 8


@dataclass(frozen=True)
class Execution:
    """How attribution is computed. Not part of the identity of any node.

    - ``batch_size``: the largest number of network inputs (examples × draws) in one pass
    - ``shard``, ``query_shard``: training examples and queries in one unit of stored work. A killed run loses at most one unit.
    - ``gradient_memory``: bytes that a block of per-example gradients may take
    - ``device``: auto, cpu, cuda, ...; auto is cuda if available

    Raises:
        ValueError: a number is below 1.
    """

    batch_size: int = 512
    shard: int = 512
    query_shard: int = 16
    gradient_memory: float = 2e9
    device: str = "auto"

    def __post_init__(self):
        for name in ("batch_size", "shard", "query_shard"):
            whole(self, name, least=1)
        number(self, "gradient_memory", least=1)

    def examples_at_once(self, parameters: int) -> int:
        """Return the number of examples for which gradients of ``parameters`` float32 values may be held at once."""
        return max(1, min(self.batch_size, int(self.gradient_memory / (FLOAT32_BYTES * parameters))))

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
