"""Guided normalization (Xie et al. 2024, "Data Attribution for Diffusion Models", appendix B, which has no equation).

ReTrac makes every training gradient equally long: with the length that the timestep gave it goes the one that the image gave it.
Here the direction G/‖G‖ gets a length that depends on the image alone, by its gradient norm n_z at a timestep t* that is the same
for all images:

    τ[q, z] = Σ_k η_k n_max s_z ⟨Q_k(q), G_k(z)/‖G_k(z)‖⟩,      s_z = λ + (1 - λ) (n_z - n_min) / (n_max - n_min)

with Q_k as in ReTrac. The image of the largest norm keeps it, that of the smallest gets λ n_max; λ = 1 is ReTrac, but for n_max,
which weighs the checkpoints. τ is affine in λ: what is stored are the scores at 0 and at 1, and any other λ lies between them. They
come from ReTrac's own products.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from attribution.checks import listed, number, whole
from attribution.estimators.base import Estimator, as_list
from attribution.estimators.guided_timestep import NormCurve
from attribution.estimators.retrac import ReTrac
from attribution.estimators.scores import Scores
from attribution.estimators.trajectory import TrajectoryScores, refuse_zero_rates
from attribution.estimators.trajectory_nodes import FLOAT, CheckpointScores, step_of
from attribution.gradients.gradient_sets import GradientsAtScheme
from attribution.gradients.norms import GradientNorms
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme, Fixed
from attribution.measurements import Measure
from attribution.nodes import Cost, Get, Node
from attribution.training import Recorded
from attribution.training.checkpoints import at_least, select

SETTING = "estimator.strength"
ENDS = (0.0, 1.0)
"""The strengths whose scores are stored."""


@dataclass(frozen=True, kw_only=True)
class Guided(Estimator):
    """ReTrac with training gradients as long as their images' norms at one timestep say.

    ``strength``: λ in 0..1, one value or a list. ``timestep``: t*; None is, at each checkpoint, the one of 50 evenly spaced
    timesteps at which 32 training examples have the highest mean gradient norm. ``measurement``, ``draws``, ``checkpoints``: as in
    ReTrac. Scores have the axis "strength" with its ENDS; ``at_strength`` and ``variants`` give those at other strengths.
    """

    NAME = "Guided"
    VERSION = 1

    measurement: Measure
    draws: DrawScheme
    checkpoints: int | str | Sequence[int] = 4
    strength: float | Sequence[float] = 0.5
    timestep: int | None = None

    def __post_init__(self):
        check = partial(number, least=0, most=1)
        if isinstance(self.strength, Sequence) and not isinstance(self.strength, str):
            listed(SETTING, self.strength, check)
        else:
            check(SETTING, self.strength)
        self.draws.refuse_lists("estimator.draws", "guided normalization")

    @property
    def strengths(self) -> tuple[float, ...]:
        """The strengths asked for."""
        return as_list(self.strength)

    @property
    def retrac(self) -> ReTrac:
        """Whose products with the training set are used."""
        shared = {field.name: getattr(self, field.name) for field in fields(ReTrac)}
        return ReTrac(**shared)

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.retrac.scores(record, train, queries)  # refuses what it cannot work with
        if self.timestep is not None:  # null is for the one of highest norm
            whole("estimator.timestep", self.timestep, 1, record.process.T)
        return GuidedScores(replace(self, strength=ENDS), record, train, queries)

    def at_strength(self, scores: Scores, strength: float) -> Scores:
        """The scores ``[Q, N]`` at any λ: ``λ τ_1 + (1 - λ) τ_0``."""
        none, full = (scores.at(strength=end) for end in ENDS)
        values = strength * full.values.astype(np.float64) + (1 - strength) * none.values
        return replace(full, values=values.astype(np.float32))

    def variants(self, scores: Scores) -> list[tuple[dict[str, Any], Scores]]:
        return [
            ({SETTING: strength} if len(self.strengths) > 1 else {}, self.at_strength(scores, strength))
            for strength in self.strengths
        ]


@dataclass(frozen=True)
class GuidedScores(Node[Scores]):
    """All queries and training examples, at the strengths 0 and 1: ``[2, Q, N]``."""

    NAME = "GuidedScores"
    VERSION = 1
    TITLE = "guided scores"
    ARTIFACT = Scores

    estimator: Guided  # at the strengths ENDS, whatever was asked for
    record: Recorded
    train: ImageSet
    queries: ImageSet

    def parts(self, get: Get) -> list[Node]:
        return [*self._products.parts(get), *self._curves(get), *self._norms(get).values()]

    def cost(self) -> Cost:
        below, pairs = self._products.cost(), self.queries.count * self.train.count
        size, steps = FLOAT * len(ENDS) * pairs, at_least(self.estimator.checkpoints)
        norms = steps * self.train.count + sum(curve.cost().passes for curve in self._curves_at([0] * steps))
        return Cost(passes=below.passes + norms, memory=below.memory + 4 * size, disk=size)

    def compute(self, get: Get) -> Scores:
        record, steps, norms_at = get(self.record), self._steps(get), self._norms(get)
        refuse_zero_rates({step: record.learning_rate(step) for step in steps})
        shards = [part for part in self._products.parts(get) if isinstance(part, CheckpointScores)]
        total: Any = 0
        for step in steps:
            products = get.many([shard for shard in shards if step_of(shard.estimator) == step])
            values = np.concatenate([p.values[0].astype(np.float64) for p in products], axis=2)  # [half, Q, N]
            retrac = record.learning_rate(step) * np.tensordot(products[0].weights, values, axes=1)
            norms = get(norms_at[step]).norms[0, :, 0]
            total = total + np.stack([lengths(norms, strength) * retrac for strength in ENDS])
        return Scores(
            values=total.astype(np.float32),
            query_index=np.array(get(self.queries).index),
            train_index=np.array(get(self.train).index),
            axes={"strength": list(ENDS)},
        )

    @property
    def _products(self) -> TrajectoryScores:
        how = self.estimator
        return TrajectoryScores(how.retrac, self.record, self.train, self.queries)

    def _norms(self, get: Get) -> dict[int, GradientNorms]:
        """n_z of every training example, by checkpoint: unmirrored, one ε each."""
        steps, how = self._steps(get), self.estimator
        if how.timestep is None:
            timesteps = [curve.highest for curve in get.many(self._curves(get))]
        else:
            timesteps = [how.timestep] * len(steps)
        return {step: self._norms_at(step, timestep) for step, timestep in zip(steps, timesteps, strict=True)}

    def _norms_at(self, step: int, timestep: int) -> GradientNorms:
        scheme = Fixed((timestep,), seed=self.estimator.draws.seed)
        settings = {"images": self.train, "record": self.record, "execution": self.estimator.execution}
        return GradientNorms(GradientsAtScheme(step=step, scheme=scheme, role="reference norms", **settings))

    def _curves(self, get: Get) -> list[NormCurve]:
        """What t* is read from, of each checkpoint. Parts, not parents: which checkpoints there are is in the record."""
        return self._curves_at(self._steps(get))

    def _curves_at(self, steps: Sequence[int]) -> list[NormCurve]:
        how = self.estimator
        if how.timestep is not None:
            return []
        return [NormCurve(self.record, self.train, step, how.draws.seed, how.execution) for step in steps]

    def _steps(self, get: Get) -> list[int]:
        record = get(self.record)
        return select(self.estimator.checkpoints, record.steps, record.losses)


def lengths(norms: np.ndarray, strength: float) -> np.ndarray:
    """``s_z n_max`` for the norms n_z ``[N]``: from λ n_max for the smallest to n_max for the largest, in proportion between.

    n_max for all where all norms are equal: each is then the largest.
    """
    spread = norms.max() - norms.min()
    place = (norms - norms.min()) / spread if spread > 0 else np.ones_like(norms)
    return norms.max() * (strength + (1 - strength) * place)
