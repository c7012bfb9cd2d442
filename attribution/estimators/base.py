"""What an estimator is: a recipe for a node of scores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from attribution.images import ImageSet
from attribution.node import Get, Node, execution
from attribution.scores import Scores
from attribution.training import Recorded


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


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """Scores every training example for every query; τ > 0 means that training on it lowered the query's cost."""

    VERSION: ClassVar[int] = 1
    """Raised when the same settings come to mean other scores; stored ones are then not found any more."""

    execution: Execution = execution(default=Execution())

    @abstractmethod
    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        """The node whose artifact is the scores ``[.., Q, N]``."""

    def variants(self, scores: Scores) -> list[tuple[dict[str, Any], Scores]]:
        """The scores ``[Q, N]`` for each of the swept values that were asked for, with the settings that tell them apart."""
        return [({}, scores)]

    def score(self, record: Recorded, train: ImageSet, queries: ImageSet, get: Get) -> Scores:
        """The scores themselves."""
        return get(self.scores(record, train, queries))
