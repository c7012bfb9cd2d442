"""What an estimator is: a recipe for a node of scores."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

from attribution.estimators.scores import Scores
from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.measurements import Measure
from attribution.nodes import Get, Node, execution
from attribution.training import Recorded


def as_list(damping: float | Sequence[float]) -> tuple[float, ...]:
    """One damping or several, each once."""
    return tuple(dict.fromkeys(damping)) if isinstance(damping, Sequence) and not isinstance(damping, str) else (damping,)  # pyright: ignore[reportReturnType]


def check_dampings(damping: Any) -> None:
    """Raises ValueError: no number of at least 0, nor a list of such. An empty list is for nodes, which ask for none."""
    values = as_list(damping)
    if any(isinstance(v, bool) or not isinstance(v, int | float) or not 0 <= v < math.inf for v in values):
        raise ValueError(f"estimator.damping={damping}: give a number of at least 0, or a list of such")


SETTINGS = {"damping": "estimator.damping", "draws": "estimator.draws.n"}
"""The settings that an axis of scores sweeps, by the axis."""


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """Scores every training example for every query; τ > 0 means that training on it lowered the query's cost."""

    VERSION: ClassVar[int] = 1
    """Raised when the same settings come to mean other scores; stored ones are then not found any more."""

    DRAW_LISTS: ClassVar[bool] = False
    """Whether it answers for several numbers of draws at once (``draws.n=[16,64]``)."""
    DRAW_BINS: ClassVar[bool] = False
    """Whether it gives scores by pair of bins of timesteps (``draws.bins``)."""

    execution: Execution = execution(default=Execution())

    @abstractmethod
    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        """The node whose artifact is the scores ``[.., Q, N]``."""

    def measuring(self, measure: Measure) -> Self:
        """This estimator of another measurement of the queries: its field ``measurement``; itself where it has none."""
        return replace(self, measurement=measure) if any(field.name == "measurement" for field in fields(self)) else self

    def asked(self) -> Mapping[str, Sequence[Any]]:
        """Of which values of the scores' axes the user asked for; of an axis not named here, all."""
        return {}

    def variants(self, scores: Scores) -> list[tuple[dict[str, Any], Scores]]:
        """The scores ``[Q, N]`` for each of the swept values that were asked for, with the settings that tell them apart."""
        axes = {name: self.asked().get(name, values) for name, values in scores.axes.items()}
        found = []
        for values in itertools.product(*axes.values()):
            at = dict(zip(axes, values, strict=True))
            shown = {SETTINGS.get(name, name): value for name, value in at.items() if len(axes[name]) > 1}
            found.append((shown, scores.at(**at)))
        return found

    def score(self, record: Recorded, train: ImageSet, queries: ImageSet, get: Get) -> Scores:
        """The scores themselves."""
        return get(self.scores(record, train, queries))
