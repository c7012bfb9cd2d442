"""The recursion of LiSSA (Agarwal et al. 2017): inverse-curvature products from mini-batches.

(H + λI)⁻¹ v ≈ r_J/σ,      r_j = v + (I - (H_batch + λI)/σ) r_{j-1},      r_0 = v

Where a product samples H_batch, every step has samples of its own: then E[r_j] obeys the recursion with the mean of H_batch. With
the same samples in every step, r_J/σ would tend to the inverse of their mean, which is far from the mean of H_batch in all
directions that few samples leave out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.curvature.vector_products import CurvatureProduct
from attribution.gradients.inner_products import finite
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images import Images
from attribution.images.draws import Draws, DrawScheme
from attribution.models.trained import Trained
from attribution.transfers import to_device

SHARED = ("attribution.gradients.inner_products", "attribution.gradients.per_example")

SLACK = 1e-3
"""Tolerance for rounding in the bound on the growth of r."""
CHECKED = 16
"""The number of steps that are checked for growth at once, because the host waits for the device in each check."""


@dataclass(frozen=True, kw_only=True)
class Recursion:
    """The settings of a recursion, as in ``LiSSA``; ``draws`` are those of every training image."""

    NAME = "Recursion"
    VERSION = 1

    product: CurvatureProduct
    damping: float
    scale: float
    depth: int
    repeats: int
    batch_size: int
    draws: DrawScheme
    flips: bool

    def passes(self, queries: int) -> float:
        """The number of passes for ``queries`` vectors."""
        return self.repeats * self.depth * self.batch_size * self.product.passes(queries)

    def held(self, queries: int, at_once: int) -> int:
        """The number of gradients in memory for ``queries`` vectors: of queries, v, r, the sum, and the product with its own."""
        return 4 * queries + self.product.held(min(self.batch_size, at_once))

    def __call__(self, per_example: PerExampleGradients, trained: Trained, train: Images, v: LayerGradients) -> LayerGradients:
        """Return the mean of r_J/σ over the repeats, for all vectors ``[Q, ..]`` in ``v`` at once.

        Raises:
            FloatingPointError: v is not finite, or r grows beyond (j + 1) ‖v‖, which it cannot if every step shrinks it.
        """
        total = {layer: torch.zeros_like(block) for layer, block in v.items()}
        length = norms(v)
        finite(length, v)
        for repeat in range(self.repeats):
            r, bounded = dict(v), []
            for j, (x0, draws, condition) in enumerate(self.batches(trained, train, repeat, length.device), 1):
                sample = repeat * self.depth + j - 1
                Hr = self.product(per_example, trained.objective, x0, draws, r, condition, sample)
                for layer in v:  # one at a time, so that a second r is never held
                    r[layer] = v[layer] + r[layer] - (Hr.pop(layer) + self.damping * r[layer]) / self.scale
                bounded.append((norms(r) <= (1 + SLACK) * (j + 1) * length).all())
                if len(bounded) == CHECKED or j == self.depth:
                    self._check(bounded, j, repeat)
                    bounded = []
            for layer, block in r.items():
                total[layer] += block / (self.scale * self.repeats)
        return total

    def _check(self, bounded: Sequence[Tensor], last: int, repeat: int) -> None:
        """Check the steps up to ``last``.

        Raises:
            FloatingPointError: one of them was not bounded.
        """
        held = torch.stack(list(bounded)).tolist()
        if not all(held):
            step = last - len(held) + 1 + held.index(False)
            raise FloatingPointError(
                f"the recursion grows without bound (step {step} of repeat {repeat + 1}): a batch's curvature has eigenvalues "
                f"above 2 scale = {2 * self.scale:g} or below -damping; raise scale, damping or batch_size"
            )

    def batches(
        self, trained: Trained, train: Images, repeat: int, device: torch.device
    ) -> Iterator[tuple[Tensor, Draws, Tensor | None]]:
        """Yield ``depth`` mini-batches (images, draws, conditions) of the N·K draws of the training set, shuffled in every round.

        The batches do not depend on the order of the training images.
        """
        K = self.draws.count
        by_id = np.argsort(train.index)
        random = np.random.default_rng([self.draws.seed, repeat, 0x11554])
        left = np.empty(0, np.int64)
        for _ in range(self.depth):
            if len(left) < self.batch_size:
                left = np.concatenate([left, random.permutation(len(train) * K)])
            taken, left = left[: self.batch_size], left[self.batch_size :]
            example, draw = by_id[taken // K], to_device(torch.from_numpy(taken % K), device)
            ids, objective = to_device(train.ids(example), device), trained.objective
            draws = self.draws.draw("curvature", ids, objective.process.T, self.flips, objective.condition_dropout)
            column, condition = draw.unsqueeze(1), train.conditions(example)
            condition = None if condition is None else to_device(condition, device)
            yield to_device(train.x0(example), device), draws.map(lambda tensor, column=column: tensor.gather(1, column)), condition


def norms(vectors: LayerGradients) -> Tensor:
    """Return ‖v_q‖ over all layers, ``[Q]``."""
    return torch.stack([block.flatten(1).norm(dim=1) for block in vectors.values()]).norm(dim=0)
