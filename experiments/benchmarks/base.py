"""What a benchmark is."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attribution.estimators import Estimator
from attribution.nodes import Get, Node
from experiments.models.experiment import Experiment
from experiments.report.report import Report


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """Judges estimators. ``compare`` names more of them (files of conf/estimator) to run beside ``estimator``."""

    compare: Sequence[str] = ()

    @abstractmethod
    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        """What ``evaluate`` will ask the store for. It is computed before, as one list, which processes divide."""

    @abstractmethod
    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        """Adds rows and figures to the report; the first estimator is the one the others are compared with."""
