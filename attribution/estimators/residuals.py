"""Residuals of training images: how far the network's output is from its target, at the draws of an estimator."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion import denoiser
from attribution.execution import FLOAT64_BYTES, Execution, ranges
from attribution.gradients.forward_passes import at_draws, forward_cost
from attribution.gradients.network_cache import engine
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Inputs, Measure
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, Node, execution

SHARED = ("attribution.gradients.forward_passes", "attribution.gradients.network_cache", "attribution.measurements.base")


@dataclass(frozen=True, eq=False)
class ResidualTable(Arrays):
    """``mean`` and ``square``: the means over draws of r and of r² (``root_error``), float64 ``[N]``."""

    mean: np.ndarray
    square: np.ndarray


@dataclass(frozen=True, kw_only=True)
class _OfImages(Node[ResidualTable]):
    """Residuals of ``images`` at the draws of ``role``, mirrored as training mirrors them if ``flips``."""

    ARTIFACT = ResidualTable

    trained: Trained
    images: ImageSet
    draws: DrawScheme
    role: str
    flips: bool
    execution: Execution = execution(default=Execution())

    def _cost(self, images: int) -> Cost:
        return replace(forward_cost(images * self.draws.count, self.execution), disk=2 * FLOAT64_BYTES * images)


@dataclass(frozen=True, kw_only=True)
class ResidualShard(_OfImages):
    """The residuals of the images ``rows[0]..rows[1]-1``."""

    NAME = "ResidualShard"
    VERSION = 1
    TITLE = "residuals of training images, in shards"
    TRANSIENT = True

    rows: tuple[int, int]

    def cost(self) -> Cost:
        return self._cost(self.rows[1] - self.rows[0])

    def compute(self, get: Get) -> ResidualTable:
        per_example, objective = engine(self.trained, None, self.execution, get), self.trained.objective

        def value(network: torch.nn.Module, inputs: Inputs) -> Tensor:
            return root_error(objective, network, inputs)

        images = get(self.images)
        r = at_draws(value, per_example, objective, images, self.rows, self.draws, self.role, self.flips).numpy()
        if not np.isfinite(r).all():
            raise FloatingPointError(f"{int((~np.isfinite(r)).sum())} of {r.size} residuals are not finite: did training diverge?")
        return ResidualTable(r.mean(1), np.square(r).mean(1))


@dataclass(frozen=True, kw_only=True)
class Residuals(_OfImages):
    """The residuals of all images: r = √(mean over pixels of (y - o)²), y the target of the output o.

    The weight of the training loss does not enter.
    """

    NAME = "Residuals"
    VERSION = 1
    TITLE = "residuals of training images"

    def parts(self, get: Get) -> list[ResidualShard]:
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return [ResidualShard(**settings, rows=rows) for rows in ranges(0, self.images.count, self.execution.shard)]

    def cost(self) -> Cost:
        return self._cost(self.images.count)

    def compute(self, get: Get) -> ResidualTable:
        shards = get.many(self.parts(get))
        return ResidualTable(*(np.concatenate([getattr(shard, name) for shard in shards]) for name in ("mean", "square")))


def root_error(objective: Measure, network: torch.nn.Module, inputs: Inputs) -> Tensor:
    """Return √(mean over pixels of (y - o)²) for each of the inputs, ``[B]``."""
    x0, t, noise, condition = inputs
    process = objective.process
    output = objective.output(denoiser(network), process.add_noise(x0, t, noise), t, condition).to(x0.dtype)
    return (process.target(x0, t, noise) - output).square().flatten(1).mean(1).sqrt()
