"""The interface of benchmarks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.estimators.replicated import in_groups
from attribution.nodes import Get, Node
from attribution.precision import check_precision
from experiments.models.experiment import Experiment
from experiments.queries import NoQueries, Queries
from experiments.report.report import Report


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """Evaluates the chosen estimator and those named in ``compare`` (files of conf/estimator)."""

    compare: Sequence[str] = ()

    @abstractmethod
    def nodes(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> list[Node]:
        """All nodes that ``evaluate`` needs. They are computed beforehand, shared among processes.

        Raises:
            ValueError: a setting is wrong. The check runs before any training.
        """

    @abstractmethod
    def evaluate(self, experiment: Experiment, estimators: Mapping[str, Estimator], get: Get, report: Report) -> None:
        """Add rows and figures to the report. The other estimators are compared with the first one."""

    def with_draw_groups(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, Estimator]:
        """``estimators``, with their draws in groups where they leave that open and the benchmark takes groups."""
        return dict(estimators)

    def notes(self) -> list[str]:
        """Lines to print before anything is computed, about settings that are allowed but may mislead."""
        return []


@dataclass(frozen=True, kw_only=True)
class QueryBenchmark(Benchmark):
    """A benchmark of scores for ``queries``, by kind. A kind with ``NoQueries`` is left out."""

    DRAW_GROUPS: ClassVar[bool] = True
    """Whether estimators may cut their draws into groups: false where a benchmark replays training or takes single checkpoints."""

    queries: Mapping[str, Queries]

    def __post_init__(self):
        kept = {kind: queries for kind, queries in self.queries.items() if not isinstance(queries, NoQueries)}
        object.__setattr__(self, "queries", kept)
        if not self.queries:
            raise FieldError(self, "queries", "name at least one kind of queries")

    def with_draw_groups(self, experiment: Experiment, estimators: Mapping[str, Estimator]) -> dict[str, Estimator]:
        """``estimators`` with their draws in groups if they leave that open, so that benchmarks share their scores.

        Groups are made for all kinds of queries or for none, by the kind with the most.
        """
        if not self.DRAW_GROUPS:
            return dict(estimators)
        try:
            count = max(queries.node(experiment).count for queries in self.queries.values())
        except (ValueError, OSError):  # ``nodes`` says what is wrong, after what is wrong with the benchmark itself
            return dict(estimators)
        trained, train = experiment.attributed, experiment.train.count
        return {name: in_groups(estimator, trained, count, train) for name, estimator in estimators.items()}


def check_measuring(benchmark: Any) -> None:
    """Raises FieldError: ``draws`` that no measurement takes, or an unknown ``precision``, of a benchmark that measures models."""
    benchmark.draws.refuse_lists("a measurement")
    benchmark.draws.refuse_sides("n is the number of draws of every query")
    check_precision(benchmark, "precision")
