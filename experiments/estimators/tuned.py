"""TRAK and its relatives at the damping with the best LDS, for evaluations other than LDS (K-FAC influence, app. G.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from attribution.checks import FieldError, whole
from attribution.estimators.base import SETTINGS
from attribution.estimators.kernel import KernelScores
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.estimators.trak import TRAK
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Get, InMemory, Node, added, execution
from attribution.precision import FLOAT32, check_precision
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from attribution.training.selected import unselected
from experiments.metrics import lds
from experiments.models.measured import Measured
from experiments.models.samples import Samples
from experiments.models.subsets import Subsets, check_variation
from experiments.models.trained import TrainedModel
from experiments.models.truth import Truth

SHARED = (
    "attribution.training.selected",
    "attribution.estimators.base",
    "attribution.estimators.kernel",
    "attribution.estimators.sharded",
    "attribution.estimators.trak",
    "experiments.metrics.lds",
)


@dataclass(frozen=True, kw_only=True)
class TunedTRAK(TRAK):
    """TRAK at the damping whose scores have the best LDS for ``target``, a mean over ``target_draws``, on models of ``subsets``.

    Generated queries are tuned on ``pool`` images of the same stream, other queries on themselves. The models are those of
    ``benchmark=lds`` with the same settings, whose LDS must not be reported at this damping. ``damping`` adds values to the stored
    ones. ``target_precision``: that in which the target is measured. Without ``keep_models`` a model is deleted when its
    measurements are stored.
    """

    NAME = "TunedTRAK"
    VERSION = 1
    REPLICATED = ()

    target: Measure
    target_draws: DrawScheme
    subsets: Subsets
    mode: Mode
    pool: int = 64
    target_precision: str = added(default=FLOAT32)
    keep_models: bool = execution(default=True)

    def __post_init__(self):
        super().__post_init__()
        whole(self, "pool", least=1)
        if not self.dampings:
            raise FieldError(self, "damping", "give at least one value", "[]")
        whole(self, "models", least=1, most=1)
        check_precision(self, "target_precision")
        self.target_draws.refuse_lists("a measurement")
        self.target_draws.refuse_sides("n is the number of draws of every query")

    def measuring(self, measure: Measure) -> Self:
        return self if self.measurement is None else replace(self, measurement=measure, target=measure)

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {}

    def variants(self, scores: Scores) -> list[tuple[dict[str, Any], Scores]]:
        (damping,) = scores.axes["damping"]
        return [({SETTINGS["damping"]: damping}, scores.at(damping=damping))]

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        """Return the node of the scores.

        Raises:
            ValueError: ``trained`` is not a ``TrainedModel``, or the subsets show nothing.
        """
        retrained = unselected(trained)
        if not isinstance(retrained, TrainedModel):
            kind = type(retrained).__name__
            raise ValueError(f"{kind} cannot be trained again: choose an estimator that trains no models, or train the model here")
        plain = TRAK(**{field.name: getattr(self, field.name) for field in fields(TRAK)})
        pool = replace(queries, n=self.pool) if isinstance(queries, Samples) else queries
        self.target.subject(pool)
        images = InMemory()(train)
        check_variation(self, self.subsets.masks(images))
        selections = tuple(self.subsets.selections(images))
        of_queries, of_pool = plain.scores(trained, train, queries), plain.scores(trained, train, pool)
        assert isinstance(of_queries, KernelScores)
        assert isinstance(of_pool, KernelScores)
        mode = self.mode.choose(retrained.outline, images.shape, retrained.recipe)
        chosen = replace(self, mode=mode, projection=of_queries.estimator.projection)
        return TunedScores(chosen, train, queries, retrained, of_queries, of_pool, selections)


@dataclass(frozen=True)
class TunedScores(ShardedScores):
    """The scores ``of_queries`` at the damping with the best LDS of the scores ``of_pool``."""

    NAME = "TunedScores"
    VERSION = 1
    TITLE = "tuned scores"

    estimator: TunedTRAK
    trained: TrainedModel
    of_queries: KernelScores
    of_pool: KernelScores
    selections: tuple[Selection, ...]

    def parts(self, get: Get) -> list[Node]:
        models = self._truth.models() if self.estimator.keep_models else ()
        return [self.of_queries, self.of_pool, *models, *self._measured]

    def passes(self, get: Get) -> float:
        return self.of_queries.passes(get)

    def compute(self, get: Get) -> Scores:
        of_queries, of_pool = get.many([self.of_queries, self.of_pool])
        measured = self._truth.measured(self._measured, get).mean(0)
        removed = self.estimator.subsets.removed(get(self.train))
        dampings = [damping for damping in of_pool.axes["damping"] if damping in of_queries.axes["damping"]]
        sweep = np.stack([lds.predicted(of_pool.at(damping=damping).values, removed) for damping in dampings])
        damping = dampings[lds.choose(sweep, measured)]
        return self.assembled(np.array(of_queries.at(damping=damping).values)[None], get, axes={"damping": [damping]})

    @cached_property
    def _truth(self) -> Truth:
        estimator = self.estimator
        return Truth(
            trained=self.trained,
            selections=self.selections,
            seeds=[self.trained.seed + 1],
            steps=None,
            draws=estimator.target_draws,
            role="measurement",
            mode=estimator.mode,
            precision=estimator.target_precision,
            execution=estimator.execution,
            keep_models=estimator.keep_models,
        )

    @cached_property
    def _measured(self) -> list[Measured]:
        return self._truth.nodes(self.estimator.target, self.of_pool.queries)
