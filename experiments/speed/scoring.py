"""How long a pass of influence functions over the training set takes, queries held, over the plain pass of the same draws."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attribution.curvature import KroneckerBasis
from attribution.curvature.pseudo import kronecker_homes
from attribution.diffusion import eval_mode
from attribution.estimators.influence import GRID
from attribution.estimators.influence_nodes import HeldQueries, prefix_means
from attribution.gradients.compression import Uncompressed
from attribution.gradients.layers import pieces
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Measure
from experiments.speed.timing import Row, Run, inputs, plain, ratio

QUERIES = 50
PASSES = 8
"""How many passes' gradients are scored at once: a block of training examples is larger than a pass."""


def scoring_speed(
    model: nn.Module, shape: tuple[int, int, int], objective: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Rows for every number of draws, ``examples`` of ``shape`` (C, H, W) in a pass.

    - ``scoring pass / plain``: gradients, their rotation and the scores for 50 queries under the dampings that are always stored.
    - ``20 dampings / one``: such a pass where 20 more dampings are asked for, over one with one more.
    """
    rows: list[Row] = []
    for count in draws:
        x0, some = inputs(model, shape, PASSES * examples, count, objective.process.T)
        scored = _Scoring(model, objective, x0, some, batch_size=examples * count)
        reference = _passes(model, objective, x0, some, examples)
        one, twenty = scored.run([3e-7]), scored.run(np.logspace(-9.5, -1.5, 20).tolist())
        with eval_mode(model):
            for metric, pair in {"scoring pass / plain": (one, reference), "20 dampings / one": (twenty, one)}.items():
                rows.append({"metric": metric, **ratio(*pair, repeats), "examples": examples, "draws": count})
    return rows


def _passes(model: nn.Module, objective: Measure, x0: Tensor, draws: Draws, examples: int) -> Run:
    """The plain pass of all inputs, in parts of ``examples``."""
    parts = [plain(model, objective, x0[rows], draws.rows(rows)) for rows in pieces(len(x0), examples)]

    def run() -> None:
        for part in parts:
            part()

    return run


class _Scoring:
    """A block of training examples and random queries in the basis of the identity: any other takes as long."""

    def __init__(self, model: nn.Module, objective: Measure, x0: Tensor, draws: Draws, batch_size: int):
        self.per_example, self.measure, self.x0, self.draws = PerExampleGradients(model, batch_size), objective, x0, draws
        blocks = {name: layer.block for name, layer in kronecker_homes(self.per_example).values()}
        random = torch.Generator().manual_seed(0)
        self.basis = KroneckerBasis(
            QA={name: torch.eye(columns) for name, (_, columns) in blocks.items()},
            QB={name: torch.eye(rows) for name, (rows, _) in blocks.items()},
            values={name: torch.rand(block, generator=random).double() for name, block in blocks.items()},
        ).to(x0.device)
        self.coefficients = {
            name: {"x": torch.randn(1, 1, QUERIES, *block, generator=random).to(x0.device)} for name, block in blocks.items()
        }

    def run(self, asked: Sequence[float]) -> Run:
        dampings = sorted({*GRID, *asked})

        def score() -> None:
            held = HeldQueries(self.basis, self.coefficients, dampings, Uncompressed())
            scheme = Uniform(self.draws.count)
            (mean,) = prefix_means(self.per_example, self.measure, self.x0, self.draws, scheme, lambda captured, _: captured.mean())
            held.add(0, self.basis.rotate(mean))
            held.products()

        return score
