"""What a search over settings maximizes, and what it must not see."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attribution.estimators import Estimator
from attribution.nodes import Get
from experiments.models.experiment import Experiment
from experiments.report.row import Row


@dataclass(frozen=True)
class Selection:
    """The ``value`` of the chosen estimator on the data for selection, and ``rows`` about the data that selection does not see."""

    value: float
    rows: Sequence[Row]


class Selective(ABC):
    """A benchmark whose number a search over settings can maximize."""

    @abstractmethod
    def check_selection(self, experiment: Experiment) -> None:
        """Raises ValueError: there is too little data to select on one part and report the other. Nothing is trained for it."""

    @abstractmethod
    def selection(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get) -> Selection:
        """Return the value and the held-out rows of the first estimator."""
