"""Leverages of training images under a Kronecker-factored curvature, for ``rescaled_kfac``.

Without z the curvature of the loss is H - H_z/N, H_z the Gauss-Newton matrix of z's own loss, and a Newton step moves parameters by

    (H + λI - H_z/N)⁻¹ g/N = 1/(1 - h) (H + λI)⁻¹ g/N,    g = ∇ℓ(z)

if H_z has rank one (Sherman & Morrison), as for a loss of one output at one draw. The loss of a diffusion model has a rank up to
pixels × draws, and its trace ``tr (H + λI)⁻¹ H_z/N``, the leverage of regression, can be far above 1. The part of it that z's own
gradient meets is the Rayleigh quotient

    h(z) = 1/N E[Σ_l (p_lᵀ u_l)²] / gᵀu,    u = (H + λI)⁻¹ g

over the pseudo-gradients p of z, the same ones that H consists of, so that E[p pᵀ] = H_z; H has blocks for the layers l, and so has
H_z here. It is the leverage where the rank is one, and else a lower bound: 1/(1 - h) is at most the factor by which gᵀu grows. If H
were the mean of the blocks H_z, h would be at most 1; with Kronecker factors it may be more.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from attribution.curvature.basis import Basis, KroneckerBasis
from attribution.curvature.kfac import KroneckerCurvature
from attribution.curvature.pseudo_gradients import PseudoGradients
from attribution.estimators.draw_means import prefix_means
from attribution.estimators.influence import KFACInfluence
from attribution.execution import FLOAT32_BYTES, ranges
from attribution.gradients import hooks
from attribution.gradients.layers import pieces, step
from attribution.gradients.network_cache import engine
from attribution.gradients.per_example import LayerGradients
from attribution.gradients.training_inputs import training_inputs
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, Node

SHARED = ("attribution.gradients.training_inputs", "attribution.curvature.kfac", "attribution.estimators.influence")


@dataclass(frozen=True, eq=False)
class Leverage(Arrays):
    """``values [dampings, N]`` float32."""

    values: np.ndarray


@dataclass(frozen=True)
class _LeverageNode(Node[Leverage]):
    """What shards and the whole have in common."""

    ARTIFACT = Leverage

    estimator: KFACInfluence
    trained: Trained
    train: ImageSet

    @property
    def basis(self) -> Node[Basis]:
        """The eigenbasis of the curvature."""
        return self.estimator.basis(self.trained, self.train)

    @property
    def pseudo(self) -> PseudoGradients:
        """The pseudo-gradients of the curvature."""
        return cast(KroneckerCurvature, self.estimator.curvature).pseudo_gradients(self.trained, self.train, self.estimator.flips)


@dataclass(frozen=True)
class LeverageShard(_LeverageNode):
    """The leverages of the training images ``rows[0]..rows[1]-1``."""

    NAME = "LeverageShard"
    VERSION = 1
    TITLE = "leverages of the training images"
    TRANSIENT = True

    rows: tuple[int, int]

    def cost(self) -> Cost:
        count, estimator = self.rows[1] - self.rows[0], self.estimator
        draws = estimator.draws.side("train").count + self.pseudo.draws.count
        held = self._at_once * (1 + len(estimator.dampings)) * FLOAT32_BYTES * self.trained.parameter_count
        return Cost(
            passes=count * draws,
            products=count * (1 + len(estimator.dampings)) * estimator.rotation_products("train", self.trained)
            + count * self.pseudo.draws.count * len(estimator.dampings) * self.trained.parameter_count,
            memory=2 * held + self.basis.cost().disk,
        )

    @property
    def _at_once(self) -> int:
        """The number of images whose directions, one for each damping, are held at a time."""
        copies = 1 + len(self.estimator.dampings)
        return min(self.rows[1] - self.rows[0], self.estimator.execution.examples_at_once(copies * self.trained.parameter_count))

    def compute(self, get: Get) -> Leverage:
        parts = []
        for start, stop in ranges(*self.rows, self._at_once):
            directions, products = self._directions(start, stop, get)
            squares = PseudoSquares(directions, self.pseudo.draws.count)
            self.pseudo.run(get, (start, stop), squares.add)
            parts.append((squares.total / products.clamp(min=torch.finfo(torch.float64).tiny) / self.train.count).cpu())
        values = torch.cat(parts, 1)
        if not values.isfinite().all():
            raise FloatingPointError("leverages are not finite: did training diverge, or is the damping too small? raise it")
        return Leverage(values.float().numpy())

    def _directions(self, start: int, stop: int, get: Get) -> tuple[LayerGradients, Tensor]:
        """u of the images start..stop-1, ``[D, n, out, in]``, and gᵀu, ``[D, n]`` float64, at every damping."""
        estimator, objective, images = self.estimator, self.trained.objective, get(self.train)
        device, scheme = estimator.execution.torch_device(), estimator.draws.side("train")
        inputs = training_inputs(images, slice(start, stop), scheme, objective, estimator.flips, device)
        per_example = engine(self.trained, None, estimator.execution, get)
        mean = estimator.mean_of("train", self.trained, self.train, get)
        [[gradients]] = prefix_means(per_example, objective, *inputs, scheme, [mean])
        basis = cast(KroneckerBasis, get(self.basis)).to(device)
        scaled: LayerGradients = {}
        products = torch.zeros(len(estimator.dampings), stop - start, dtype=torch.float64)
        for layer, rotated in basis.rotations(gradients):
            damped = torch.stack([basis.values[layer] + damping for damping in estimator.dampings])
            scaled[layer] = rotated / damped.to(rotated)[:, None]  # rotated has one bin, [1, n, out, in]
            products += (scaled[layer] * rotated).flatten(2).sum(2).cpu().double()
        return basis.restored(scaled), products


class PseudoSquares:
    """The mean over draws of Σ_l (p_lᵀ u_l)² for each image; ``add`` is the ``on_layer`` of ``PseudoGradients.run``.

    ``directions``: u, ``[D, n, out, in]`` per layer; ``draws``: of each image. The draws of an image follow each other.
    """

    def __init__(self, directions: LayerGradients, draws: int):
        self.directions, self.draws = directions, draws
        first = next(iter(directions.values()))
        self.total = torch.zeros(*first.shape[:2], dtype=torch.float64)
        self._seen = dict.fromkeys(directions, 0)

    def add(self, name: str, calls: list[hooks.Call]) -> None:
        u, first = self.directions[name], self._seen[name]
        self._seen[name] += (count := len(calls[0].input))
        for image in range(first // self.draws, -(-(first + count) // self.draws)):
            start, stop = max(0, image * self.draws - first), min(count, (image + 1) * self.draws - first)
            for piece in pieces(stop - start, max(1, step(u) // u[0, 0].numel())):
                draws = slice(start + piece.start, start + piece.stop)
                p = sum(call.layer.contract(call.input[draws], cast(Tensor, call.gradient)[draws], 1) for call in calls)
                squares = (u[:, image].flatten(1) @ cast(Tensor, p).flatten(1).to(u).T).square().sum(1)
                self.total[:, image] += squares.cpu().double() / self.draws


@dataclass(frozen=True)
class Leverages(_LeverageNode):
    """h of all training images at every damping of the estimator."""

    NAME = "Leverages"
    VERSION = 1
    TITLE = "leverages of the training images, joined"

    def parts(self, get: Get) -> list[LeverageShard]:
        shards = ranges(0, self.train.count, self.estimator.execution.shard)
        return [LeverageShard(self.estimator, self.trained, self.train, rows) for rows in shards]

    def parents(self) -> list[Node]:
        balance = self.estimator.balance_of("train")
        norms = [self.estimator.norms(self.trained, self.train)] if balance is not None and balance.by == "timestep" else []
        return [*super().parents(), self.basis, *norms]

    def compute(self, get: Get) -> Leverage:
        return Leverage(np.concatenate([shard.values for shard in get.many(self.parts(get))], axis=1))
