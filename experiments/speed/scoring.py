"""Speed of the scoring pass of influence functions, with queries in memory, relative to the plain pass of the same draws."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from attribution.curvature import KroneckerBasis
from attribution.curvature.pseudo_gradients import kronecker_modules
from attribution.diffusion import eval_mode
from attribution.estimators.draw_means import prefix_means
from attribution.estimators.held_queries import HeldQueries, multiply
from attribution.estimators.influence import GRID
from attribution.gradients.compression import Uncompressed
from attribution.gradients.layers import pieces
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Measure
from experiments.report.row import Row
from experiments.speed.timing import Run, inputs, plain, ratio, speed_row

QUERIES = 50
PASSES = 8
"""The number of passes in one block of training examples, whose gradients are scored at once."""


def scoring_speed(
    model: nn.Module, shape: tuple[int, int, int], objective: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Measure the scoring pass for every number of ``draws``, with ``examples`` of ``shape`` (C, H, W) in a pass.

    The rows for each number of draws are ratios of times:

    - ``scoring pass / plain``: gradients, their rotation and the scores of 50 queries under the dampings that are always stored,
      over the plain pass
    - ``20 dampings / one``: a scoring pass with 20 additional dampings over one with a single additional damping
    """
    rows: list[Row] = []
    for count in draws:
        x0, batch = inputs(model, shape, PASSES * examples, count, objective.process.T)
        scored = Scoring(model, objective, x0, batch, batch_size=examples * count)
        reference = _passes(model, objective, x0, batch, examples)
        one, twenty = scored.run([3e-7]), scored.run(np.logspace(-9.5, -1.5, 20).tolist())
        with eval_mode(model):
            for metric, pair in {"scoring pass / plain": (one, reference), "20 dampings / one": (twenty, one)}.items():
                rows.append(speed_row(metric, ratio(*pair, repeats), examples, count))
    return rows


def _passes(model: nn.Module, objective: Measure, x0: Tensor, draws: Draws, examples: int) -> Run:
    """Return the plain pass of all inputs, in parts of ``examples``."""
    parts = [plain(model, objective, x0[rows], draws.rows(rows)) for rows in pieces(len(x0), examples)]

    def run() -> None:
        for part in parts:
            part()

    return run


class Scoring:
    """Scores of a block of training examples and random queries, with the identity as basis, which costs as much as any."""

    def __init__(self, model: nn.Module, objective: Measure, x0: Tensor, draws: Draws, batch_size: int):
        self.per_example, self.measure, self.x0, self.draws = PerExampleGradients(model, batch_size), objective, x0, draws
        blocks = {name: layer.block for name, layer in kronecker_modules(self.per_example).values()}
        random = torch.Generator().manual_seed(0)
        self.basis = KroneckerBasis(
            QA={name: torch.eye(columns) for name, (_, columns) in blocks.items()},
            QB={name: torch.eye(rows) for name, (rows, _) in blocks.items()},
            values={name: torch.rand(block, generator=random).double() for name, block in blocks.items()},
        ).to(x0.device)
        self.coefficients = {
            name: {"x": torch.randn(1, 1, QUERIES, *block, generator=random).to(x0.device)} for name, block in blocks.items()
        }

    def run(self, additional: Sequence[float]) -> Run:
        """Return the scoring pass under the dampings that are always stored and ``additional`` ones."""
        dampings = sorted({*GRID, *additional})

        def score() -> None:
            held = HeldQueries(self.basis, self.coefficients, dampings, Uncompressed())
            plain_mean = Uniform(self.draws.count), [lambda captured, _: captured.mean()]
            ((mean,),) = prefix_means(self.per_example, self.measure, self.x0, self.draws, None, *plain_mean)
            multiply([(held, [0])], mean)
            held.products()

        return score
