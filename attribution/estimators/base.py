"""What an estimator is: a recipe for a node of scores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.node import Get, Node, execution
from attribution.scores import Scores
from attribution.training import Recorded


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
