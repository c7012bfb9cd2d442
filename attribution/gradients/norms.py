"""Norms of per-example gradients of the training loss (ReTrac §4.2 and app. A)."""

from dataclasses import dataclass

import numpy as np

from attribution.execution import FLOAT32_BYTES, ranges
from attribution.gradients.gradient_sets import GradientSet
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import Images
from attribution.nodes import Arrays, Cost, Get, Node
from attribution.transfers import to_device

SHARED = (
    "attribution.gradients.network_cache",
    "attribution.gradients.inner_products",
)


@dataclass(frozen=True, eq=False)
class Norms(Arrays):
    """Gradient norms ``norms`` (float64) and their ``timestep`` (int64), ``[S, n, K]``: K draws of n images under S models."""

    norms: np.ndarray
    timestep: np.ndarray


@dataclass(frozen=True)
class NormShard(Node[Norms]):
    """The norms of the images ``rows[0]..rows[1]-1`` under one model."""

    NAME = "NormShard"
    VERSION = 1
    TITLE = "gradient norms, in shards"
    ARTIFACT = Norms
    TRANSIENT = True

    gradients: GradientSet
    rows: tuple[int, int]

    def cost(self) -> Cost:
        count = self.rows[1] - self.rows[0]
        if self.gradients.count > 1:
            return Cost(passes=count * self.gradients.count)
        parameters = self.gradients.parameter_count
        at_once = min(count, self.gradients.execution.examples_at_once(parameters))
        return Cost(passes=count, at_once=at_once, memory=FLOAT32_BYTES * at_once * parameters)

    def compute(self, get: Get) -> Norms:
        return compute_norms(self.gradients, get(self.gradients.images).take(slice(*self.rows)), get)


@dataclass(frozen=True)
class GradientNorms(Node[Norms]):
    """The norms of all images under all models."""

    NAME = "GradientNorms"
    VERSION = 1
    TITLE = "gradient norms"
    ARTIFACT = Norms

    gradients: GradientSet

    def cost(self) -> Cost:
        values = self.gradients.models * self.gradients.images.count * self.gradients.count
        return Cost(passes=values, disk=16 * values)

    def parts(self, get: Get) -> list[NormShard]:
        return [shard for shards in self._shards(get) for shard in shards]

    def compute(self, get: Get) -> Norms:
        models = [get.many(shards) for shards in self._shards(get)]
        return Norms(
            np.concatenate([np.concatenate([shard.norms for shard in shards], axis=1) for shards in models]),
            np.concatenate([np.concatenate([shard.timestep for shard in shards], axis=1) for shards in models]),
        )

    def _shards(self, get: Get) -> list[list[NormShard]]:
        """The shards of each model."""
        rows = ranges(0, self.gradients.images.count, self.gradients.execution.shard)
        return [[NormShard(gradients, block) for block in rows] for gradients in self.gradients.per_model(get)]


def compute_norms(gradients: GradientSet, images: Images, get: Get) -> Norms:
    """Return the norms of ``gradients``, of a single model, for ``images``, a subset of its images: ``[1, n, K]``.

    Raises:
        FloatingPointError: a norm is not finite; the message names the model and the timestep.
    """
    per_example, device = gradients.engine(get), gradients.execution.torch_device()
    norms, timesteps = [], []
    for start, stop in ranges(0, len(images), _examples_at_once(gradients, per_example, images, get)):
        draws = gradients.draws(np.array(images.index[start:stop]), get)
        rows = slice(start, stop)
        x0, condition = to_device(images.x0(rows), device), images.conditions(rows)
        captured = per_example.capture(gradients.objective, x0, draws.to(device), condition)
        norms.append(captured.norms().cpu().double().numpy())
        timesteps.append(draws.timestep.numpy())
    norm, timestep = np.concatenate(norms), np.concatenate(timesteps)
    if (bad := ~np.isfinite(norm)).any():
        first = f"the first at timestep {timestep[bad][0]} under {gradients.diverged_message}"
        raise FloatingPointError(f"{bad.sum()} of {norm.size} gradient norms are not finite, {first}")
    return Norms(norm[None], timestep[None])


def _examples_at_once(gradients: GradientSet, per_example: PerExampleGradients, images: Images, get: Get) -> int:
    """The number of examples to capture at once.

    With one draw per example, its norm is computed from the whole gradient, which has to fit into memory. With several draws, the
    norms are computed without forming any gradient.
    """
    if gradients.count == 1:
        return gradients.execution.examples_at_once(sum(p.numel() for p in per_example.parameters))
    first, device = slice(2), gradients.execution.torch_device()
    draws = gradients.draws(np.array(images.index[first]), get).to(device)
    inputs = per_example.inputs_per_pass(gradients.objective, images.x0(first).to(device), draws, images.conditions(first))
    return max(1, inputs // gradients.count)
