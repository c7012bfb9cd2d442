"""Mean squares of the gradients of training's batches: the second moments with which Adam scales its steps."""

from dataclasses import dataclass

import numpy as np

from attribution.execution import Execution, ranges
from attribution.gradients.network_cache import engine, gradient_shapes
from attribution.images import ImageSet
from attribution.nodes import Arrays, Cost, Get, Node, execution
from attribution.training.record import Recorded, draws_of, positions_of
from attribution.transfers import to_device

SHARED = ("attribution.gradients.network_cache", "attribution.training.record")

BATCHES = 8
"""The number of batches, the last ones before the checkpoint."""


@dataclass(frozen=True, eq=False)
class LayerSquares(Arrays):
    """``values [layers]`` float64, in the order of ``gradient_shapes``."""

    values: np.ndarray


@dataclass(frozen=True)
class BatchSquares(Node[LayerSquares]):
    """The mean over the parameters of each layer, and over the last batches before a checkpoint, of the squared batch gradient.

    The batches are the recorded ones, with their timesteps and noises; the parameters are those of the checkpoint.
    """

    NAME = "BatchSquares"
    VERSION = 1
    TITLE = "squares of batch gradients"
    ARTIFACT = LayerSquares

    trained: Recorded
    train: ImageSet
    step: int
    execution: Execution = execution(default=Execution())

    def cost(self) -> Cost:
        of_training = self.trained.cost()
        return Cost(passes=min(self.step, BATCHES) * (of_training.inputs or 0.0), at_once=self._examples_at_once)

    @property
    def _examples_at_once(self) -> int:
        """The number of examples whose gradients are held at a time."""
        return self.execution.examples_at_once(self.trained.parameter_count)

    def compute(self, get: Get) -> LayerSquares:
        record, images, device = get(self.trained), get(self.train), self.execution.torch_device()
        per_example = engine(self.trained, self.step, self.execution, get)
        steps = range(max(0, self.step - BATCHES), self.step)
        total = dict.fromkeys(gradient_shapes(self.trained), 0.0)
        for step in steps:
            visits = record.visits_of_step(step)
            rows, of_visits, summed = positions_of(images, visits), draws_of(visits).to(device), {}
            for start, stop in ranges(0, len(rows), self._examples_at_once):
                part = rows[start:stop]
                x0, draws = to_device(images.x0(part), device), of_visits.rows(slice(start, stop))
                gradients = per_example.capture(self.trained.objective, x0, draws, images.conditions(part)).mean()
                for layer, block in gradients.items():
                    summed[layer] = summed.get(layer, 0.0) + block.sum(0)
            for layer, block in summed.items():
                total[layer] += float((block / len(rows)).square().mean()) / len(steps)
        return LayerSquares(np.array(list(total.values())))
