"""Where and how attribution runs."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Execution:
    """How attribution is computed: no part of any identity.

    ``batch_size``: most network inputs (examples × draws) in one pass; ``shard``: training examples (and ``query_shard``: queries)
    in one unit of stored work, which is what a killed run loses at most; ``gradient_memory``: bytes that a block of per-example
    gradients may take; ``device``: auto, cpu, cuda, ...
    """

    batch_size: int = 512
    shard: int = 512
    query_shard: int = 16
    gradient_memory: float = 2e9
    device: str = "auto"

    def __post_init__(self):
        for name in ("batch_size", "shard", "query_shard", "gradient_memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"execution.{name}={getattr(self, name)}: must be at least 1")

    def examples_at_once(self, parameters: int) -> int:
        """How many examples' whole gradients (float32) to hold at a time."""
        return max(1, min(self.batch_size, int(self.gradient_memory / (4 * parameters))))

    def torch_device(self) -> torch.device:
        """Raises ValueError: no such device."""
        if self.device != "auto":
            try:
                return torch.zeros(0, device=self.device).device
            except (RuntimeError, AssertionError) as error:
                raise ValueError(f"execution.device={self.device} is not to be had here ({error}): choose auto or cpu") from error
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ranges(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    """start..stop-1 cut into consecutive (start, stop) of at most ``size``."""
    return [(first, min(first + size, stop)) for first in range(start, stop, size)]
