"""The interface of estimators: settings that define a node of scores."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar, Self

from attribution.checks import FieldError, listed, number, whole
from attribution.estimators.ensemble import EnsembleScores, members_of
from attribution.estimators.scores import Scores
from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme, Side
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Get, Node, added, execution

SHARED = ("attribution.estimators.ensemble",)


def as_tuple(values: float | Sequence[float]) -> tuple[float, ...]:
    """Return one value or several as a tuple without repetitions."""
    return tuple(dict.fromkeys(values)) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)  # pyright: ignore[reportReturnType]


def check_dampings(owner: Any) -> None:
    """Check the field ``damping``: a number or a list of numbers. An empty list is allowed, because some nodes need no damping.

    Raises:
        FieldError: a damping below 0, or one that is infinite.
    """
    if not isinstance(owner.damping, Sequence):
        number(owner, "damping", least=0)
    elif owner.damping:
        listed(owner, "damping", partial(number, least=0))


SETTINGS = {
    "damping": "estimator.damping",
    "draws": "estimator.draws.n",
    "horizon": "estimator.horizon",
    "strength": "estimator.strength",
    "timestep": "estimator.timestep",
}
"""The setting that each axis of scores sweeps, by the name of the axis."""


def split(scores: Scores, requested: Mapping[str, Sequence[Any]] | None = None) -> list[tuple[dict[str, Any], Scores]]:
    """Return the scores ``[Q, N]`` at each combination of the ``requested`` values, with the settings that distinguish them.

    All values of an axis that is not requested are returned.
    """
    axes = {name: (requested or {}).get(name, values) for name, values in scores.axes.items()}
    variants = []
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        settings = {SETTINGS.get(name, name): value for name, value in point.items() if len(axes[name]) > 1}
        variants.append((settings, scores.at(**point)))
    return variants


@dataclass(frozen=True, kw_only=True)
class Estimator(ABC):
    """Scores every training example for every query; τ > 0 means that training on it lowered the query's cost.

    ``models``: the number of training runs whose scores are averaged: that of the explained model, and others with other seeds.
    """

    VERSION: ClassVar[int] = 1
    """Increment it when the same settings would give different scores. Stored scores of the old version are then computed again."""

    DRAW_LISTS: ClassVar[bool] = False
    """Whether ``draws`` may list several numbers of draws (``draws.n=[16,64]``)."""
    DRAW_BINS: ClassVar[bool] = False
    """Whether ``draws`` may ask for scores by pair of bins of timesteps (``draws.bins``)."""

    RECORDED_DRAWS: ClassVar[bool] = False
    """Whether training images are taken at the draws that training recorded, so that ``draws`` are of the queries alone."""

    REPLICATED: ClassVar[tuple[Side, ...]] = ()
    """The sides whose draws may be cut into groups (``draws.replicates``): those in whose gradients scores are linear."""

    GRADIENTS: ClassVar[bool] = True
    """Whether scores are computed from gradients of the model's parameters."""

    models: int = added(default=1)
    execution: Execution = execution(default=Execution())

    def scores(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        """Return the node that computes the scores ``[.., Q, N]``, the mean over ``models``.

        Raises:
            ValueError: these settings cannot score this model, training set or queries.
            TypeError: the estimator needs a training record and the model has none.
        """
        whole(self, "models", least=1)
        if self.models == 1:
            return self.scores_of_model(trained, train, queries)
        if not self.GRADIENTS:
            message = "an ensemble averages over trained models, and these scores take no gradients of the model: set 1"
            raise FieldError(self, "models", message)
        try:
            trainings = members_of(trained, self.models)
        except ValueError as error:
            message = "the explained model was trained elsewhere and cannot be trained again with another seed: set 1"
            raise FieldError(self, "models", message) from error
        one = replace(self, models=1)
        return EnsembleScores(tuple(one.scores_of_model(training, train, queries) for training in trainings))

    @abstractmethod
    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        """Return the node of the scores ``[.., Q, N]`` under one model. Raises what ``scores`` raises."""

    @property
    def parts(self) -> Mapping[str, "Estimator"]:
        """The estimators that it is made of, by name."""
        return {}

    def of_parts(self, change: Callable[["Estimator"], "Estimator"]) -> Self:
        """This estimator with ``change`` applied to each estimator that it is made of."""
        return self

    def explains(self, queries: ImageSet) -> bool:
        """Whether it can score these queries. Where there are other kinds of queries too, benchmarks leave out those it cannot."""
        return True

    def measuring(self, measure: Measure) -> Self:
        """Return this estimator with another measurement of the queries, or unchanged if it has no field ``measurement``."""
        return replace(self, measurement=measure) if any(field.name == "measurement" for field in fields(self)) else self

    def notes(self) -> list[str]:
        """Lines to print before anything is computed, about settings that are allowed but may mislead."""
        return []

    def requested(self) -> Mapping[str, Sequence[Any]]:
        """The requested values of the scores' axes. All values of an axis that is not named here are returned."""
        return {}

    def variants(self, scores: Scores) -> list[tuple[dict[str, Any], Scores]]:
        """Return the scores ``[Q, N]`` at each combination of requested values, with the settings that distinguish them."""
        return split(scores, self.requested())

    def draws_of(self, settings: Mapping[str, Any]) -> tuple[int, int] | None:
        """The numbers of draws (of a query, of a training image) behind a variant with these settings, at each checkpoint.

        None if the estimator takes no draws.
        """
        scheme = getattr(self, "draws", None)
        if not isinstance(scheme, DrawScheme):
            return None
        query, train = next((pair for pair in scheme.pairs if pair[0] == settings.get(SETTINGS["draws"])), scheme.pairs[-1])
        return query, 1 if self.RECORDED_DRAWS else train

    def score(self, trained: Trained, train: ImageSet, queries: ImageSet, get: Get) -> Scores:
        """Compute the scores."""
        return get(self.scores(trained, train, queries))
