"""A trained model as a store node."""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attribution.checks import FieldError
from attribution.images import Images, ImageSet
from attribution.nodes import Cost, Get, execution
from attribution.training import TrainingRecord
from attribution.training.checkpoints import CheckpointRule, check_selection, check_visited
from attribution.training.order import steps_per_epoch
from attribution.training.ranks import Rank
from attribution.training.recipe import Hardware, Recipe
from attribution.training.repeatable import Repeatable
from experiments.models.rank_processes import hardware_of, ranks_of

SHARED = ("attribution.training.checkpoints", "attribution.training.fit", "attribution.training.repeatable")

LoggerFor = Callable[[str], Any]
"""A Lightning logger for the training of the named model, or None."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Repeatable):
    """``model`` trained on ``data`` by ``recipe``, with the record of the training run."""

    NAME = "TrainedModel"
    VERSION = 1
    TITLE = "training"

    data: ImageSet
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    recipe: Recipe
    checkpoints: CheckpointRule
    seed: int
    flips: bool
    hardware: Hardware = execution(default=Hardware())
    logger: LoggerFor | None = execution(default=None)

    def member(self, i: int) -> "TrainedModel":
        """The same training run with the seed ``seed + i``."""
        return replace(self, seed=self.seed + i)

    @property
    def candidates(self) -> list[int]:
        """The steps at which training records a checkpoint, of which ``checkpoints`` may keep only some.

        Raises:
            FieldError: ``checkpoints`` does not fit the steps of training.
        """
        return self.checkpoints.candidates(self.recipe.steps, self._steps_per_epoch)

    @property
    def _steps_per_epoch(self) -> int:
        return steps_per_epoch(self.data.count, self.recipe.batch_size)

    def check_checkpoints(self, wanted: int | str | Sequence[int], owner: Any, visited: bool = False) -> None:
        most = self.checkpoints.most(self.candidates)
        check_selection(wanted, self.candidates, most, owner)
        if visited:
            check_visited(wanted, self.candidates, most, self._steps_per_epoch, owner)

    def check_optimizer(self, optimizer: str, owner: Any) -> None:
        name = getattr(getattr(self.optimizer, "func", self.optimizer), "__name__", "")
        taken = "sgd" if name == "SGD" else "adam" if "Adam" in name else optimizer
        if taken != optimizer:
            raise FieldError(owner, "optimizer", f"training takes {name}: choose {taken}")

    def cost(self) -> Cost:
        state = 4 * self.parameter_count
        return Cost(
            passes=self.recipe.steps * self.recipe.batch_size,
            inputs=self.recipe.batch_size,
            memory=5 * state,  # average, gradients, the two moments of Adam, and a copy in a checkpoint
            disk=len(self.candidates) * state,
        )

    def compute(self, get: Get) -> TrainingRecord:
        from experiments.models.training_bar import TrainingBar

        quiet_lightning()
        folder, images = get.workspace(self), get(self.data)
        logger = (self.logger and self.logger(self.fingerprint)) or False
        self.fit(folder, images, hardware_of(self), ranks_of(self, folder, images), [TrainingBar()], logger)
        return TrainingRecord(folder)

    def without_logger(self) -> "TrainedModel":
        """The same training run, of which another process keeps the log."""
        return replace(self, logger=None)

    def fit(
        self,
        folder: Path,
        images: Images,
        hardware: Hardware,
        ranks: AbstractContextManager[Rank | None],
        callbacks: Sequence[Any] = (),
        logger: Any = False,
    ) -> None:
        """Train in ``folder``, as this process or with others (``attribution.training.fit``)."""
        # Lightning takes seconds to import, and a run with a stored model does without it.
        from attribution.training.fit import fit

        quiet_lightning()
        fit(
            folder,
            images,
            self.model,
            self.objective,
            self.optimizer,
            self.recipe,
            self.checkpoints,
            self.seed,
            self.flips,
            hardware,
            callbacks,
            logger,
            owner=self.fingerprint,
            ranks=ranks,
        )


def quiet_lightning() -> None:
    """Silence Lightning's messages, which importing it turns on: the progress bar says what a user needs."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
