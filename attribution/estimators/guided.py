"""Guided normalization (Xie et al. 2024, "Data Attribution for Diffusion Models", appendix B, in words only).

ReTrac divides every training gradient by its length. This removes the effect of the timestep on the length, but also the effect of
the image. Guided normalization gives the direction G/‖G‖ a length that depends on the image alone: on its gradient norm n_z at a
timestep t* that is the same for all images:

    τ[q, z] = Σ_k η_k n_max s_z ⟨Q_k(q), G_k(z)/‖G_k(z)‖⟩,      s_z = λ + (1 - λ) (n_z - n_min) / (n_max - n_min)

with Q_k as in ReTrac. The image with the largest norm keeps it, and the image with the smallest gets λ n_max. λ = 1 is ReTrac with
checkpoints weighted by n_max. τ is affine in λ, so the scores at λ = 0 and λ = 1 are stored and the others are interpolated. The
inner products are those of ReTrac.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np

from attribution.checks import listed, number, whole
from attribution.estimators.base import SETTINGS, Estimator, as_tuple
from attribution.estimators.guided_timestep import NormCurve
from attribution.estimators.retrac import ReTrac
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores, with_all_queries
from attribution.estimators.training_trajectory import RECORDED, TrajectoryScores, half_shares, refuse_zero_rates
from attribution.execution import FLOAT32_BYTES
from attribution.gradients.gradient_sets import GradientsAtDraws
from attribution.gradients.norms import GradientNorms
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme, Fixed
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node
from attribution.training import Recorded, require_record
from attribution.training.checkpoints import at_least

SHARED = (
    "attribution.estimators.retrac",
    "attribution.estimators.sharded",
    "attribution.estimators.training_trajectory",
    "attribution.training.checkpoints",
)

SETTING = SETTINGS["strength"]
ENDS = (0.0, 1.0)
"""The strengths whose scores are stored."""


@dataclass(frozen=True, kw_only=True)
class Guided(Estimator):
    """ReTrac with the lengths of training gradients set by their images' gradient norms at one timestep.

    ``strength``: λ in 0..1, one value or a list. ``timestep``: t*; by default, at each checkpoint, the one of 50 evenly spaced
    timesteps at which 32 training examples have the highest mean gradient norm. ``measurement``, ``draws``, ``checkpoints``: as in
    ReTrac. Scores have the axis "strength" with the values ENDS; ``at_strength`` and ``variants`` interpolate to other strengths.
    """

    NAME = "Guided"
    VERSION = 1
    RECORDED_DRAWS = True

    measurement: Measure
    draws: DrawScheme
    checkpoints: int | str | Sequence[int] = 4
    strength: float | Sequence[float] = 0.5
    timestep: int | None = None

    def __post_init__(self):
        check = partial(number, least=0, most=1)
        if isinstance(self.strength, Sequence):
            listed(self, "strength", check)
        else:
            check(self, "strength")
        self.draws.refuse_lists("guided normalization")
        self.draws.refuse_sides(RECORDED)

    @property
    def strengths(self) -> tuple[float, ...]:
        """The requested strengths."""
        return as_tuple(self.strength)

    @property
    def retrac(self) -> ReTrac:
        """The ReTrac estimator that computes the inner products."""
        shared = {field.name for field in fields(self)} & {field.name for field in fields(ReTrac)}
        return ReTrac(**{name: getattr(self, name) for name in shared})

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        recorded = require_record(trained, type(self).__name__)
        self.retrac.scores(trained, train, queries)  # raises if ReTrac cannot score these
        if self.timestep is not None:
            whole(self, "timestep", least=1, most=trained.process.T)
        return GuidedScores(replace(self, strength=ENDS), train, queries, recorded)

    def at_strength(self, scores: Scores, strength: float) -> Scores:
        """Return the scores ``[Q, N]`` at any λ: ``λ τ_1 + (1 - λ) τ_0``."""
        zero, one = (scores.at(strength=end) for end in ENDS)
        values = strength * one.values.astype(np.float64) + (1 - strength) * zero.values
        return replace(one, values=values.astype(np.float32))

    def requested(self) -> Mapping[str, Sequence[Any]]:
        return {"strength": self.strengths}

    def variants(self, scores: Scores) -> list[tuple[dict[str, Any], Scores]]:
        return [
            ({SETTING: strength} if len(self.strengths) > 1 else {}, self.at_strength(scores, strength))
            for strength in self.strengths
        ]


@dataclass(frozen=True)
class GuidedScores(ShardedScores):
    """The scores at the strengths 0 and 1: ``[2, Q, N]``."""

    NAME = "GuidedScores"
    VERSION = 1
    TITLE = "guided scores"

    estimator: Guided  # at the strengths ENDS, whichever were requested
    trained: Recorded

    def parts(self, get: Get) -> list[Node]:
        return [*self._retrac.parts(get), *self._curves(self._retrac.steps(get)), *self._norms(get).values()]

    def cost(self) -> Cost:
        products, steps = self._retrac.cost(), at_least(self.estimator.checkpoints)
        size = FLOAT32_BYTES * len(ENDS) * self.pairs
        norms = steps * self.train.count + sum(curve.cost().passes for curve in self._curves([0] * steps))
        return Cost(passes=products.passes + norms, at_once=products.at_once, memory=products.memory + 4 * size, disk=size)

    def compute(self, get: Get) -> Scores:
        record, norms_at = get(self.trained), self._norms(get)
        refuse_zero_rates({step: record.learning_rate(step) for step in norms_at})
        shares = half_shares(self.estimator.retrac)
        total: Any = 0
        for step, norms in norms_at.items():
            products = with_all_queries(get.many(self._retrac.batches(step)))[0].astype(np.float64)  # [half, Q, N]
            retrac = record.learning_rate(step) * np.tensordot(shares, products, axes=1)
            total = total + np.stack([lengths(get(norms).norms[0, :, 0], strength) * retrac for strength in ENDS])
        return self.assembled(total, get, axes={"strength": list(ENDS)})

    @property
    def _retrac(self) -> TrajectoryScores:
        return TrajectoryScores(self.estimator.retrac, self.train, self.queries, self.trained)

    def _norms(self, get: Get) -> dict[int, GradientNorms]:
        """The norms n_z of all training examples by checkpoint, without flips and with one noise per example."""
        steps = self._retrac.steps(get)
        if self.estimator.timestep is None:
            timesteps = [curve.highest for curve in get.many(self._curves(steps))]
        else:
            timesteps = [self.estimator.timestep] * len(steps)
        return {step: self._norms_at(step, timestep) for step, timestep in zip(steps, timesteps, strict=True)}

    def _norms_at(self, step: int, timestep: int) -> GradientNorms:
        scheme = Fixed((timestep,), seed=self.estimator.draws.seed)
        settings = {"images": self.train, "trained": self.trained, "execution": self.estimator.execution}
        return GradientNorms(GradientsAtDraws(step=step, scheme=scheme, role="reference norms", **settings))

    def _curves(self, steps: Sequence[int]) -> list[NormCurve]:
        """The curves that t* is read from, one for each checkpoint; none if t* is given."""
        # These are parts, not parents, because the record decides which checkpoints there are.
        if self.estimator.timestep is not None:
            return []
        seed, execution = self.estimator.draws.seed, self.estimator.execution
        return [NormCurve(self.trained, self.train, step, seed, execution) for step in steps]


def lengths(norms: np.ndarray, strength: float) -> np.ndarray:
    """Return ``s_z n_max`` for the norms n_z ``[N]``: from λ n_max for the smallest to n_max for the largest, linear in between.

    If all norms are equal, every one of them counts as the largest.
    """
    spread = norms.max() - norms.min()
    place = (norms - norms.min()) / spread if spread > 0 else np.ones_like(norms)
    return norms.max() * (strength + (1 - strength) * place)
