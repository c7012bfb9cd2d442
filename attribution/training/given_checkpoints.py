"""Checkpoints of a network that was trained elsewhere: weights, steps and learning rates, without a record of the visits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attribution.checks import FieldError, listed, number, whole
from attribution.images.draws import Draws, random_draws
from attribution.models.given import Weights
from attribution.nodes import Cost, Get
from attribution.nodes.files import write_json
from attribution.training.checkpoints import check_selection
from attribution.training.record import SCHEMA, Recorded, TrainingRecord, checkpoint_file

SHARED = ("attribution.images.draws", "attribution.training.checkpoints", "attribution.training.record")

OWN_DRAWS = (
    "the visits of training are unknown: each training image is taken at a timestep and noise drawn anew for every checkpoint, in "
    "place of those of its last visit"
)
NO_RATES = "the checkpoints were given without learning rates: every checkpoint has weight 1"


@dataclass(frozen=True, eq=False)
class Checkpoints(TrainingRecord):
    """Checkpoints without visits. ``latest_draws`` makes draws of its own; without learning rates every rate is 1."""

    @property
    def losses(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride]
        """None: they are unknown."""
        return np.zeros(0)

    def learning_rate(self, step: int) -> float:
        rates = self.info["learning_rates"]
        return 1.0 if rates is None else rates[self.steps.index(step)]

    def latest_draws(self, step: int, examples: np.ndarray) -> Draws:
        """A draw of each of ``examples [B]``, a function of (seed, step, id): t ~ U{1..T}, noise and flip ``[B, 1]``."""
        ids, first = torch.from_numpy(np.array(examples, dtype=np.int64))[:, None], torch.zeros(1, dtype=torch.int64)
        return random_draws(self.info["seed"], f"training at {step}", ids, first, self.info["T"], self.info["flips"])


@dataclass(frozen=True, kw_only=True)
class GivenCheckpoints(Recorded):
    """A model with given ``weights`` after each of ``steps``, the last of which is the explained model.

    ``learning_rates``: of each checkpoint; None: unknown. ``seed``, ``flips``: of the draws that take the place of visits.
    The store keeps a copy of the parameters.

    Raises:
        FieldError: the lists have different lengths, the steps do not ascend, or every learning rate is 0.
    """

    NAME = "GivenCheckpoints"
    VERSION = 1
    TITLE = "the given checkpoints"
    ARTIFACT = Checkpoints
    GIVEN = True
    VISITS = False

    weights: Sequence[Weights]
    steps: Sequence[int]
    learning_rates: Sequence[float] | None = None
    seed: int = 0
    flips: bool = False

    def __post_init__(self):
        check_listed_checkpoints(self, "weights")

    def check_checkpoints(self, wanted: int | str | Sequence[int], owner: Any, visited: bool = False) -> None:
        check_selection(wanted, self.steps, len(self.steps), owner, "recorded")

    def check_learning_rates(self, owner: Any, field: str) -> None:
        if self.learning_rates is None:
            raise FieldError(owner, field, "the checkpoints were given without learning rates: give these too, or leave it false")

    def notes(self, replayed: bool) -> list[str]:
        more = [OWN_DRAWS, *([NO_RATES] if self.learning_rates is None else [])]
        return [*super().notes(replayed), *(more if replayed else [])]

    def cost(self) -> Cost:
        return Cost(disk=len(self.steps) * sum(tensor.nbytes for tensor in self.outline.state_dict().values()))

    def compute(self, get: Get) -> Checkpoints:
        folder = get.workspace(self)
        for weights, step in zip(self.weights, self.steps, strict=True):
            weights.copy(checkpoint_file(folder, step))
        info = {
            "schema": SCHEMA,
            "checkpoints": list(self.steps),
            "learning_rates": None if self.learning_rates is None else list(self.learning_rates),
            "T": self.process.T,
            "seed": self.seed,
            "flips": self.flips,
        }
        write_json(folder / "record.json", info)
        return Checkpoints(folder)


def check_listed_checkpoints(owner: Any, first: str) -> None:
    """Check the fields ``steps`` and ``learning_rates`` beside the list ``first``.

    Raises:
        FieldError: no checkpoint, lists of different lengths, steps that do not ascend, or learning rates that are all 0.
    """
    count = len(getattr(owner, first))
    if not count:
        raise FieldError(owner, first, "give at least one checkpoint")
    listed(owner, "steps", lambda owner, field: whole(owner, field, least=0))
    if len(owner.steps) != count:
        raise FieldError(owner, "steps", f"give one step for each of the {count} checkpoints")
    if list(owner.steps) != sorted(set(owner.steps)):
        raise FieldError(owner, "steps", "must ascend: list the checkpoints in the order of training, the explained model last")
    if owner.learning_rates is not None:
        listed(owner, "learning_rates", lambda owner, field: number(owner, field, least=0, below=math.inf))
        if len(owner.learning_rates) != count:
            raise FieldError(owner, "learning_rates", f"give one for each of the {count} checkpoints, or leave it out")
        if not any(owner.learning_rates):
            raise FieldError(owner, "learning_rates", "are all 0, so all scores would be 0: give those of training")
