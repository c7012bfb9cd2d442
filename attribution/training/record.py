"""The training record: one format, its reader and the table layouts that its writer shares.

A record is a folder:

    record.json            schema version, seed, batch size, number of examples, recorded steps, most processes of a step if not 1
    visits.npy             one row per visit of an example in a step (``VISIT``)
    steps.npy              one row per step (``step_dtype``): loss, learning rate per group, clip factor, dropout seed
    checkpoints/N.safetensors   parameters after N steps
    average.safetensors    averaged parameters (EMA) at the end, if training kept an average

Everything is read lazily. Steps in ``visits`` and ``steps`` count from 0; checkpoint N comes after steps 0..N-1. Where training
drops conditions at random, the schema is ``SCHEMA_WITH_DROPOUT`` and visits have the bool column ``condition_dropped``.
"""

import json
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attribution.images import Images
from attribution.images.draws import Draws
from attribution.models.trained import Trained, TrainingResult, with_parameters
from attribution.nodes import Get

SHARED = ("attribution.models.trained",)

AVERAGE = "average.safetensors"
SCHEMA = 1
SCHEMA_WITH_DROPOUT = 2
VISIT = np.dtype([("step", "<i4"), ("example", "<i8"), ("timestep", "<i4"), ("noise_seed", "<i8"), ("flip", "?")])
VISIT_WITH_DROPOUT = np.dtype([*VISIT.descr, ("condition_dropped", "?")])

LEVEL_VISIT = np.dtype([*VISIT.descr, ("level", "<f8")])
"""A visit at a continuous noise level, for external training loops; ``timestep`` is the nearest level of the process."""


def step_dtype(groups: int) -> np.dtype:
    """One training step; ``rank`` is the process that wrote the row, ``learning_rate`` has one value per parameter group."""
    return np.dtype(
        [
            ("step", "<i4"),
            ("rank", "<i4"),
            ("loss", "<f8"),
            ("learning_rate", "<f8", (groups,)),
            ("clip_factor", "<f8"),
            ("dropout_seed", "<i8"),
        ]
    )


def checkpoint_file(folder: Path, step: int) -> Path:
    """The file of a record in ``folder`` with the parameters after ``step`` steps."""
    return folder / "checkpoints" / f"{step}.safetensors"


def draws_of(visits: np.ndarray) -> Draws:
    """The draw of each visit, ``[B, 1]``. A continuous noise level takes the place of the timestep."""
    names = ("timestep", "noise_seed", "flip", "condition_dropped")
    columns = {name: torch.from_numpy(visits[name].copy()) for name in names if name in (visits.dtype.names or ())}
    level = _levels(visits) if "level" in (visits.dtype.names or ()) else columns["timestep"].long()
    return Draws(**{name: column[:, None] for name, column in {**columns, "timestep": level}.items()})


def positions_of(images: Images, visits: np.ndarray) -> np.ndarray:
    """The rows of the visited images.

    Raises:
        ValueError: a visited example is not among the images.
    """
    order = np.argsort(images.index)
    places = np.minimum(np.searchsorted(images.index, visits["example"], sorter=order), len(images) - 1)
    positions = order[places]
    if (absent := visits["example"][images.index[positions] != visits["example"]]).size:
        raise ValueError(f"training visited the example {absent[0]}, which is not among the images: give all that it visited")
    return positions


def _levels(visits: np.ndarray) -> Tensor:
    """The levels in float32, as most training has them, if that is exact."""
    level = torch.from_numpy(visits["level"].copy())
    return level.float() if torch.equal(level.float().double(), level) else level


@dataclass(frozen=True, eq=False)
class TrainingRecord(TrainingResult):
    """The record of a training run: checkpoints (step, learning rate, parameters) and visits."""

    folder: Path

    @cached_property
    def info(self) -> dict[str, Any]:
        info = json.loads((self.folder / "record.json").read_text())
        if info["schema"] not in (SCHEMA, SCHEMA_WITH_DROPOUT):
            raise ValueError(
                f"the training record in {self.folder} has schema {info['schema']}, this version reads {SCHEMA} and "
                f"{SCHEMA_WITH_DROPOUT}: train again"
            )
        return info

    @property
    def steps(self) -> list[int]:
        """The steps of the recorded checkpoints, ascending."""
        return self.info["checkpoints"]

    @cached_property
    def visits(self) -> np.ndarray:
        """All visits, ordered by step (dtype ``VISIT``), memory-mapped."""
        return np.load(self.folder / "visits.npy", mmap_mode="r")

    @cached_property
    def step_table(self) -> np.ndarray:
        """One row per step and process (``step_dtype``)."""
        return np.load(self.folder / "steps.npy", mmap_mode="r")

    @cached_property
    def losses(self) -> np.ndarray:
        """Mean training loss of every step ``[steps]``, over processes."""
        table = self.step_table
        return np.bincount(table["step"], table["loss"]) / np.bincount(table["step"])

    def learning_rate(self, step: int) -> float:
        """The learning rate η of checkpoint ``step``: the rate of the last step before it.

        Raises:
            ValueError: parameter groups have different learning rates.
        """
        rates = np.unique(self.step_table["learning_rate"][self.step_table["step"] == step - 1])
        if len(rates) != 1:
            raise ValueError(f"checkpoint {step} has learning rates {rates.tolist()}: use one learning rate for all parameters")
        return float(rates[0])

    def parameters(self, step: int) -> dict[str, Tensor]:
        """Parameters and buffers after ``step`` steps."""
        if step not in self.steps:
            raise ValueError(f"no checkpoint at step {step}: training recorded {', '.join(map(str, self.steps))}")
        return load_file(checkpoint_file(self.folder, step))

    def final_parameters(self) -> dict[str, Tensor]:
        """Parameters and buffers of the trained model: the average if training kept one, else the last checkpoint."""
        average = self.folder / AVERAGE
        return load_file(average) if average.exists() else self.parameters(self.steps[-1])

    def visits_of_step(self, step: int) -> np.ndarray:
        """The visits of one step (0-based), in batch order."""
        first, last = np.searchsorted(self.visits["step"], [step, step + 1])
        return np.array(self.visits[first:last])

    def latest_draws(self, step: int, examples: np.ndarray) -> Draws:
        """The draw of the last visit of each of ``examples [B]`` (ids) before checkpoint ``step``: ``[B, 1]``.

        Raises:
            ValueError: an example that training had not yet visited.
        """
        return draws_of(self._latest_visits(step, examples))

    def latest_timesteps(self, step: int, examples: np.ndarray) -> Tensor:
        """The timesteps of ``latest_draws``, int64 ``[B]``: of continuous levels the nearest ones of the process."""
        timestep = self.latest_draws(step, examples).timestep[:, 0]
        if not timestep.is_floating_point():
            return timestep
        return torch.from_numpy(self._latest_visits(step, examples)["timestep"].astype(np.int64))

    def _latest_visits(self, step: int, examples: np.ndarray) -> np.ndarray:
        """The row of the last visit of each of ``examples``."""
        rows = self._latest_rows(step)
        ids, positions = rows["example"], np.searchsorted(rows["example"], examples)
        visited = (positions < len(ids)) & (ids[np.minimum(positions, len(ids) - 1)] == examples)
        if not visited.all():
            raise ValueError(
                f"{(~visited).sum()} of the examples were not yet trained on at checkpoint {step} (first: id "
                f"{examples[~visited][0]}): use checkpoints from step {self.info['steps_per_epoch']} (one epoch) on, and examples "
                "of the training set"
            )
        return rows[positions]

    def _latest_rows(self, step: int) -> np.ndarray:
        """The latest visit before ``step`` of every example, sorted by example."""
        if step not in self._latest:
            stop = int(np.searchsorted(self.visits["step"], step))
            # Each epoch visits every example once, so the last two epochs contain the latest visit of each. External
            # loops may draw examples at random: then look further back.
            span, start = 2 * self.info["steps_per_epoch"], 1
            recent, first = self.visits[:0], np.zeros(0, dtype=np.int64)
            while start and len(first) < self.info["examples"]:
                start = int(np.searchsorted(self.visits["step"], step - span))
                recent = np.array(self.visits[start:stop])[::-1]
                _, first = np.unique(recent["example"], return_index=True)
                span *= 2
            self._latest[step] = recent[first]
        return self._latest[step]

    @cached_property
    def _latest(self) -> dict[int, np.ndarray]:
        return {}

    def save(self, folder: Path) -> None:
        """Do nothing: training writes the record to its final place, the workspace of its node."""
        if folder != self.folder:
            raise ValueError(f"the record is in {self.folder} and cannot be saved to {folder}")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(folder)


@dataclass(frozen=True)
class Recorded(Trained[TrainingRecord], ABC):
    """A trained model with the record of its training, or at least with several checkpoints."""

    ARTIFACT = TrainingRecord
    VISITS: ClassVar[bool] = True
    """Whether the visits and losses of training are recorded."""

    def check_checkpoints(self, wanted: int | str | Sequence[int], owner: Any, visited: bool = False) -> None:
        """Check, before training, that it will record the checkpoints that ``owner.checkpoints`` selects.

        ``visited``: also that training has visited every example before each of them. A class that does not know what training
        records checks nothing.

        Raises:
            FieldError: a checkpoint will not be there, or is too early.
        """

    def check_optimizer(self, optimizer: str, owner: Any) -> None:
        """Check that training takes ``owner.optimizer``, "adam" or "sgd". A class that does not know the optimizer checks nothing.

        Raises:
            FieldError: it takes the other one.
        """

    def check_learning_rates(self, owner: Any, field: str) -> None:
        """Check that the learning rates of checkpoints are known, which ``owner.field`` asks for.

        Raises:
            FieldError: they are unknown.
        """

    def network(self, get: Get, step: int | None = None) -> nn.Module:
        if step is None:
            return super().network(get)
        return with_parameters(self.model(), get(self).parameters(step)).eval()


class RecordError(ValueError):
    """A model without a record of its training, for something that needs the record."""


def require_record(trained: Trained, user: str, visits: bool = False) -> Recorded:
    """Return ``trained`` as a model with checkpoints, and with ``visits`` also their record, which ``user`` needs.

    Raises:
        RecordError: it has none.
    """
    if not isinstance(trained, Recorded):
        raise RecordError(
            f"{user} needs the record of the model's training, but {type(trained).__name__} has none: train the model here, or "
            "choose an estimator that works on a final model, such as K-FAC influence or TRAK"
        )
    if visits and not trained.VISITS:
        raise RecordError(
            f"{user} needs the visits and losses of training, but {type(trained).__name__} has checkpoints only: train the model "
            "here, or record its training"
        )
    return trained
