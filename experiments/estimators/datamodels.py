"""Datamodels (Ilyas et al. 2022), and exact retraining as an estimator (``estimator=retraining``), which is their case λ = 0.

Datamodels are a linear regression of the measurements of models that are retrained on subsets on the images that the subsets leave
out. With r_i(S) the weight that a subset S takes away from example i,

    m(q | S) ≈ const + (1/N) Σ_i r_i(S) τ[q, i],

fitted over M subsets by ridge regression. With R ``[M, N]`` and Y ``[Q, M]``, r and m minus their means over the subsets,

    τ = N · Y (RRᵀ/M + λI)⁻¹ R/M = N/M · Σ_j (Y u_j) s_j / (s_j²/M + λ) v_jᵀ,      R = Σ_j s_j u_j v_jᵀ.

λ is added to RᵀR/M, the curvature of the mean over subsets. λ = 0 is the solution of minimum norm. If R has rank M - 1, as for
random subsets of a training set with M examples or more, this solution predicts the measurement of every subset exactly. Fitted to
the subsets of a benchmark, it is therefore exact retraining.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from attribution.checks import whole
from attribution.estimators.base import Estimator, as_tuple, check_dampings
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, InMemory, Node, added, execution
from attribution.precision import FLOAT32, check_precision
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from attribution.training.selected import unselected
from experiments.models.measured import Measured
from experiments.models.quadrature import quadrature_notes
from experiments.models.subsets import Subsets, check_variation
from experiments.models.trained import TrainedModel
from experiments.models.truth import Truth

SHARED = ("attribution.training.selected", "attribution.estimators.base", "attribution.estimators.sharded")

GRID = (0.0, *(10.0**e for e in range(-6, 5)))
"""The dampings that are always computed and stored."""


@dataclass(frozen=True, kw_only=True)
class Datamodels(Estimator):
    """Regresses ``measurement`` of the queries, a mean over ``measurement_draws``, on the weights that ``subsets`` take away.

    On each subset, ``seeds`` models are trained for ``steps`` steps (None: for as many epochs as the explained model). The mean of
    their measurements, computed in ``measurement_precision``, is fitted. ``damping``: λ, one value or a list; 0 is the solution of
    minimum norm. The draws are independent of those of benchmarks, whatever their seed. Without ``keep_models`` a model is deleted
    when its measurements are stored.
    """

    NAME = "Datamodels"
    VERSION = 2
    GRADIENTS = False

    FIRST_SEED: ClassVar[int] = 1000
    """The first training seed minus that of the explained model. Benchmarks retrain with other seeds."""

    measurement: Measure
    measurement_draws: DrawScheme
    subsets: Subsets
    mode: Mode
    seeds: int = 1
    steps: int | None = None
    damping: float | Sequence[float] = 0.0
    measurement_precision: str = added(default=FLOAT32)
    keep_models: bool = execution(default=True)

    def __post_init__(self):
        check_dampings(self)
        self.measurement_draws.refuse_lists("a measurement")
        self.measurement_draws.refuse_sides("n is the number of draws of every query")
        check_precision(self, "measurement_precision")
        whole(self, "seeds", least=1)
        if self.steps is not None:
            whole(self, "steps", least=1)

    @property
    def dampings(self) -> tuple[float, ...]:
        """The dampings as a tuple."""
        return as_tuple(self.damping)

    def notes(self) -> list[str]:
        return quadrature_notes(self.measurement, self.measurement_draws)

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {"damping": self.dampings}

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        """Return the node of the scores.

        Raises:
            ValueError: ``trained`` is not a ``TrainedModel``, ``train`` is not its training set, or the subsets show nothing.
        """
        trained = unselected(trained)
        if not isinstance(trained, TrainedModel):
            kind = type(trained).__name__
            raise ValueError(f"{kind} cannot be trained again: choose an estimator that trains no models, or train the model here")
        if train.fingerprint != trained.data.fingerprint:
            raise ValueError("datamodels score the images that the model was trained on: give its training set")
        self.measurement.subject(queries)
        images = InMemory()(train)
        check_variation(self, self.subsets.masks(images))
        selections = tuple(self.subsets.selections(images))
        # Scores are stored at the whole grid, so their identity does not depend on which of its dampings were requested.
        mode = self.mode.choose(trained.outline, images.shape, trained.recipe)
        stored = replace(self, damping=tuple(sorted({*GRID, *self.dampings})), mode=mode)
        return DatamodelScores(stored, train, queries, trained, selections)

    def truth(self, trained: TrainedModel, selections: Sequence[Selection]) -> Truth:
        """The retrained models and their measurements."""
        first = trained.seed + self.FIRST_SEED
        return Truth(
            trained=trained,
            selections=selections,
            seeds=range(first, first + self.seeds),
            steps=self.steps,
            draws=self.measurement_draws,
            role="datamodel",
            mode=self.mode,
            precision=self.measurement_precision,
            execution=self.execution,
            keep_models=self.keep_models,
        )


@dataclass(frozen=True)
class DatamodelScores(ShardedScores):
    """The scores under all stored dampings. ``selections``: the training images in each subset."""

    NAME = "DatamodelScores"
    VERSION = 1
    TITLE = "datamodels"

    estimator: Datamodels
    trained: TrainedModel
    selections: tuple[Selection, ...]

    def parts(self, get: Get) -> list[Node]:
        # Models that are parts could not be deleted before the scores are stored.
        return [*(self._truth.models() if self.estimator.keep_models else ()), *self._measured]

    def passes(self, get: Get) -> float:
        return sum(node.passes(get) for node in (*self._truth.models(), *self._measured))

    def cost(self) -> Cost:
        """No passes: all of them are those of the parts, which are always known."""
        size = FLOAT32_BYTES * len(self.estimator.dampings) * self.pairs
        return Cost(memory=4 * FLOAT64_BYTES * len(self.selections) * self.train.count + 2 * size, disk=size)

    def compute(self, get: Get) -> Scores:
        measured = self._truth.measured(self._measured, get).mean(0)
        dampings = self.estimator.dampings
        values = fit(measured, removed(self.selections, self.train.count), dampings)
        return self.assembled(values, get, axes={"damping": list(dampings)})

    @cached_property
    def _truth(self) -> Truth:
        return self.estimator.truth(self.trained, self.selections)

    @cached_property
    def _measured(self) -> list[Measured]:
        return self._truth.nodes(self.estimator.measurement, self.queries)


def removed(selections: Sequence[Selection], count: int) -> np.ndarray:
    """The weight that each of M selections takes away from each of ``count`` examples, ``[M, N]``."""
    lost = np.ones((len(selections), count))
    for row, selection in zip(lost, selections, strict=True):
        row[selection.rows] -= selection.weights_of(np.arange(len(selection)))
    return lost


def fit(measured: np.ndarray, removed: np.ndarray, dampings: Sequence[float]) -> np.ndarray:
    """τ under each damping, float32 ``[D, Q, N]``: the ridge regression of ``measured [Q, M]`` on ``removed [M, N]``."""
    M, N = removed.shape
    R, Y = removed - removed.mean(0), measured - measured.mean(1, keepdims=True)
    u, s, vT = np.linalg.svd(R, full_matrices=False)
    resolved = s > s[0] * max(M, N) * np.finfo(s.dtype).eps
    u, s, vT = u[:, resolved], s[resolved], vT[resolved]
    values = np.empty((len(dampings), len(Y), N), np.float32)
    for scores, damping in zip(values, dampings, strict=True):
        scores[:] = N / M * (Y @ u * (s / (s**2 / M + damping))) @ vT
    return values
