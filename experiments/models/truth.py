"""What retraining on subsets does: the measurements that predictions are compared with, and that datamodels are fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Get
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained, in_blocks
from experiments.models.trained import TrainedModel


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Models trained like ``record``, on each of M ``selections`` with each of K ``seeds``.

    They are trained for ``steps`` steps; None: for as many epochs as ``record``, on the mean over the selections.
    The first ``repeats`` selections are trained once more, with the seed after the last: what differs between trainings of the
    same subset can then be told even for K = 1. Measurements are means over ``draws``, the same for all models.
    """

    record: TrainedModel
    selections: Sequence[Selection]
    seeds: Sequence[int]
    steps: int | None
    draws: DrawScheme
    mode: Mode
    execution: Execution
    repeats: int = 0

    def __post_init__(self):
        """Raises ValueError: ``mode`` cannot train this network. Better now than when the explained model is trained."""
        with torch.device("meta"):
            self.mode.prepare(self.record.model())

    def models(self) -> list[Retrained]:
        """The K·M models, all subsets of the first seed before those of the next, and then the repeated ones."""
        chosen = [(selection, seed) for seed in self.seeds for selection in self.selections]
        chosen += [(selection, self.seeds[-1] + 1) for selection in self.selections[: self.repeats]]
        share = sum(map(len, self.selections)) / len(self.selections) / self.record.data.count
        steps = self.steps or max(1, round(share * self.record.recipe.steps))
        return in_blocks([Retrained.of(self.record, *pair, steps, self.mode, self.execution) for pair in chosen])

    def nodes(self, measurement: Measure, images: ImageSet) -> list[Measured]:
        """The measurement of ``images`` under each of the models."""
        return [
            Measured(model=model, images=images, measure=measurement, draws=self.draws, execution=self.execution)
            for model in self.models()
        ]

    def measured(self, nodes: Sequence[Measured], get: Get) -> np.ndarray:
        """What ``nodes`` say, ``[K, Q, M]``."""
        K, M = len(self.seeds), len(self.selections)
        return self._values(nodes[: K * M], get).reshape(K, M, -1).transpose(0, 2, 1)

    def replicates(self, nodes: Sequence[Measured], get: Get) -> np.ndarray:
        """The same for the subsets that have most seeds: ``[K + 1, Q, repeats]``, or ``[K, Q, M]`` where nothing is repeated."""
        measured = self.measured(nodes, get)
        if not self.repeats:
            return measured
        again = self._values(nodes[len(self.seeds) * len(self.selections) :], get).T
        return np.concatenate([measured[:, :, : self.repeats], again[None]])

    def _values(self, nodes: Sequence[Measured], get: Get) -> np.ndarray:
        return np.stack([costs.values for costs in get.many(nodes, "measuring")])
