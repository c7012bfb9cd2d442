"""Measurements of retrained models. Predictions are compared with them, and datamodels are fitted to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attribution.execution import Execution
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Get
from attribution.precision import FLOAT32
from attribution.retraining.modes import Mode
from attribution.retraining.selection import Selection
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained, in_blocks
from experiments.models.trained import TrainedModel


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Models trained like ``trained``, on each of M ``selections`` with each of K ``seeds``.

    They are trained for ``steps`` steps; None: for as many epochs as ``trained``, averaged over the selections. The first
    ``repeats`` selections are trained once more, with the seed after the last one, which shows the variation between training runs
    on the same subset even for K = 1. Measurements are averaged over ``draws``, which are the same for all models and
    independent of those of another ``role``, and computed in ``precision`` (one of ``attribution.precision.MIXABLE``). Without
    ``keep_models`` a model is deleted when its measurements are stored.
    """

    trained: TrainedModel
    selections: Sequence[Selection]
    seeds: Sequence[int]
    steps: int | None
    draws: DrawScheme
    role: str
    mode: Mode
    execution: Execution
    repeats: int = 0
    precision: str = FLOAT32
    keep_models: bool = True

    def __post_init__(self):
        """Check that ``mode`` can train this network, before any model is trained. Raises ValueError if it cannot."""
        with torch.device("meta"):
            self.mode.prepare(self.trained.model(), self.trained.recipe)

    def models(self) -> list[Retrained]:
        """The K·M models, with all subsets of a seed before those of the next seed, and then the repeated ones."""
        pairs = [(selection, seed) for seed in self.seeds for selection in self.selections]
        pairs += [(selection, self.seeds[-1] + 1) for selection in self.selections[: self.repeats]]
        share = sum(map(len, self.selections)) / len(self.selections) / self.trained.data.count
        steps = self.steps or max(1, round(share * self.trained.recipe.steps))
        kept = self.keep_models
        return in_blocks([Retrained.of(self.trained, *pair, steps, self.mode, self.execution, kept) for pair in pairs])

    def nodes(self, measurement: Measure, images: ImageSet) -> list[Measured]:
        """The nodes that measure ``images`` under each of the models."""
        return [
            Measured(
                model=model,
                images=images,
                measure=measurement,
                draws=self.draws,
                role=self.role,
                precision=self.precision,
                execution=self.execution,
            )
            for model in self.models()
        ]

    def measured(self, nodes: Sequence[Measured], get: Get) -> np.ndarray:
        """The measurements of ``nodes``, ``[K, Q, M]``."""
        K, M = len(self.seeds), len(self.selections)
        return self._values(nodes[: K * M], get).reshape(K, M, -1).transpose(0, 2, 1)

    def replicates(self, nodes: Sequence[Measured], get: Get) -> np.ndarray:
        """The measurements of the subsets with the most seeds: ``[K + 1, Q, repeats]``, or ``[K, Q, M]`` without repeats."""
        measured = self.measured(nodes, get)
        if not self.repeats:
            return measured
        repeated = self._values(nodes[len(self.seeds) * len(self.selections) :], get).T
        return np.concatenate([measured[:, :, : self.repeats], repeated[None]])

    def _values(self, nodes: Sequence[Measured], get: Get) -> np.ndarray:
        return np.stack([costs.values for costs in get.many(nodes, "measuring")])
