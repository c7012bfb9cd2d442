"""The attribution problem on which whole methods are timed, and its scores by this program, from a checkpoint on."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribution.curvature import KFAC
from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.estimators import Estimator
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.trak import TRAK
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Inputs, Measure
from attribution.nodes import InMemory
from attribution.projection import SJLT
from attribution.training import TrainingRecord
from experiments.datasets import Split
from experiments.models.experiment import Experiment
from experiments.models.trained import TrainedModel
from experiments.store.store import Store

DAMPING = 1e-2
"""λ, added to the curvature of the mean loss, at which all methods are compared."""

Method = Callable[[], Tensor]
"""A run from the checkpoint to scores ``[Q, N]``."""


@dataclass(frozen=True)
class Side:
    """Images, their draws, and the batches of images in which libraries take them: ``batch`` at a time."""

    x0: Tensor
    draws: Draws
    batch: int

    def __len__(self) -> int:
        return len(self.x0)

    def inputs(self, measure: Measure, rows: slice = slice(None)) -> Inputs:
        """The inputs of the measure: a row for every draw of the images in ``rows``."""
        return measure.inputs(self.x0[rows], self.draws.rows(rows))

    def batches(self) -> list[slice]:
        """The rows of each batch."""
        return [slice(start, start + self.batch) for start in range(0, len(self), self.batch)]


class _FromCheckpoint(InMemory):
    """A ``Get`` that has a trained model and computes everything else in memory."""

    def __init__(self, trained: TrainedModel, record: TrainingRecord):
        super().__init__()
        self._artifacts[trained.fingerprint] = record


class Problem:
    """Scores of ``queries`` validation images for the first ``train`` training images, on which the model was briefly trained.

    ``draws``: of every image, for the curvature and on each side. All methods take the same ones. ``batch``: the images that a
    library takes at a time; this program has its own rule (``Execution``).
    """

    def __init__(self, experiment: Experiment, train: int, queries: int, draws: int, steps: int, batch: int, folder: Path):
        splits = Split(experiment.data, "train"), Split(experiment.data, "validation")
        counts = min(train, splits[0].count), min(queries, splits[1].count)
        self._images = [replace(split, rows=tuple(range(n))) for split, n in zip(splits, counts, strict=True)]
        trained = replace(experiment.training, data=self._images[0], recipe=replace(experiment.trainer, steps=steps))
        self.trained: TrainedModel = replace(trained, flips=False)
        self.scheme, self.batch, self.execution = Uniform(draws), batch, experiment.execution
        self._store = Store(folder)
        self._store(self.trained)

    @property
    def objective(self) -> Measure:
        return self.trained.objective

    @property
    def probe(self) -> OutputProbe:
        """The measure whose gradients are the pseudo-gradients of the Gauss-Newton matrix."""
        return OutputProbe(self.trained.process)

    @property
    def draws(self) -> int:
        """The number of draws of every image."""
        return self.scheme.count

    def network(self) -> nn.Module:
        """The trained network, loaded from its checkpoint, in eval mode."""
        return self.trained.network(self._store, None).to(self.execution.torch_device()).eval()

    @cached_property
    def train(self) -> Side:
        """The training images at the draws of their gradients."""
        return self._side(0, "attribution")

    @cached_property
    def curvature(self) -> Side:
        """The training images at the draws of the curvature."""
        return self._side(0, "curvature")

    @cached_property
    def queries(self) -> Side:
        """The queries at their draws."""
        return self._side(1, "query")

    def kfac(self) -> Tensor:
        """The scores of K-FAC influence by this program."""
        curvature = KFAC(draws=self.scheme, execution=self.execution)
        return self._scores(
            KFACInfluence(
                measurement=self.objective, curvature=curvature, damping=DAMPING, draws=self.scheme, execution=self.execution
            )
        )

    def trak(self, projection: SJLT) -> Tensor:
        """The scores of TRAK by this program."""
        return self._scores(
            TRAK(measurement=self.objective, projection=projection, damping=DAMPING, draws=self.scheme, execution=self.execution)
        )

    def _scores(self, estimator: Estimator) -> Tensor:
        """Compute the scores in memory. The trained model is copied to a new folder, so that each run loads the network."""
        train, queries = self._images
        with TemporaryDirectory() as folder:
            record = TrainingRecord(shutil.copytree(self._store(self.trained).folder, Path(folder) / "model"))
            get = _FromCheckpoint(self.trained, record)
            scores = get(estimator.scores(self.trained, train, queries)).at(damping=DAMPING, **self._draws_axis(estimator))
            return torch.from_numpy(np.array(scores.values))

    def _draws_axis(self, estimator: Estimator) -> dict[str, int]:
        return {name: values[0] for name, values in estimator.requested().items() if name == "draws"}

    def _side(self, which: int, role: str) -> Side:
        images, device = self._store(self._images[which]), self.execution.torch_device()
        draws = self.scheme.draw(role, images.ids(), self.trained.process.T).to(device)
        return Side(images.x0().to(device), draws, self.batch)


def agreement(scores: Tensor, others: Tensor) -> float:
    """Return the correlation of two tables of scores ``[Q, N]`` over the training images, averaged over the queries."""
    ours, theirs = (values.double() - values.double().mean(1, keepdim=True) for values in (scores, others))
    return F.cosine_similarity(ours, theirs).mean().item()
