"""Training that was recorded elsewhere, by ``LoopRecorder``."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from attribution.checks import FieldError
from attribution.diffusion import Process, RectifiedFlow
from attribution.diffusion.continuous import ContinuousProcess
from attribution.measurements import Measure
from attribution.models.given import Weights
from attribution.nodes import Cost, Get, digest
from attribution.nodes.files import write_json
from attribution.training.checkpoints import check_selection, check_visited
from attribution.training.loop_recorder import RECORDED
from attribution.training.record import AVERAGE, SCHEMA, Recorded, TrainingRecord, checkpoint_file

SHARED = ("attribution.models.given", "attribution.training.checkpoints", "attribution.training.record")

DRAWN_NOISE = (
    "the noise of training was not recorded: each training image is taken at the timestep of its last visit, with noise drawn anew"
)


@dataclass(frozen=True)
class RecordFolder:
    """The visits and steps in the folder ``path`` that ``LoopRecorder.save`` wrote. Their content is their identity."""

    path: str

    def description(self) -> dict[str, Any]:
        """The digests of visits and steps, and what ``record.json`` says."""
        return {"visits": digest(self.visits), "steps": digest(self.steps), "info": self.info}

    @property
    def folder(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def info(self) -> dict[str, Any]:
        """The content of ``record.json``.

        Raises:
            FieldError: there is no record, or one of another version.
        """
        try:
            info = json.loads((self.folder / "record.json").read_text())
            lacking = {"checkpoints", "examples", "steps_per_epoch", "precision"} - info.keys()
        except (OSError, ValueError, AttributeError) as error:
            raise FieldError(self, "path", "is no folder with a record: give the one that LoopRecorder.save wrote") from error
        if info.get("schema") != SCHEMA or lacking:
            raise FieldError(self, "path", "has a record of another version: record the training again")
        return info

    @cached_property
    def visits(self) -> np.ndarray:
        """All visits, by step."""
        return self._table("visits.npy")

    @cached_property
    def steps(self) -> np.ndarray:
        """One row per step."""
        return self._table("steps.npy")

    @property
    def noise_is_known(self) -> bool:
        """Whether the noise of training is recorded."""
        return self.info.get("noise", RECORDED) == RECORDED

    @property
    def is_continuous(self) -> bool:
        """Whether it has continuous noise levels."""
        return "level" in (self.visits.dtype.names or ())

    def checkpoint(self, step: int) -> Path:
        """The file of a checkpoint."""
        return checkpoint_file(self.folder, step)

    @property
    def average(self) -> Path | None:
        """The file of the averaged parameters, if there is one."""
        path = self.folder / AVERAGE
        return path if path.is_file() else None

    def check(self, process: Process, ids: np.ndarray) -> None:
        """Check that the record fits the process and the ids of the training images.

        Raises:
            FieldError: it does not.
        """
        self.info  # noqa: B018 (raises)
        kind = type(process).__name__
        if self.is_continuous != isinstance(process, ContinuousProcess):
            levels = "continuous noise levels" if self.is_continuous else "timesteps"
            raise FieldError(self, "path", f"has {levels}, but the process is {kind}: choose the process of that training")
        self._check_levels(process)
        if (absent := np.setdiff1d(ids, self.visits["example"])).size:
            message = (
                f"has no visit of {absent.size} of the {ids.size} training images (first: id {absent[0]}): give the images that "
                "the loop trained on, and record the ids that these have here"
            )
            raise FieldError(self, "path", message)

    def _check_levels(self, process: Process) -> None:
        if self.is_continuous:
            levels, flow = self.visits["level"], isinstance(process, RectifiedFlow)
            known = (levels >= 0) & (levels <= 1) if flow else (levels > 0) & np.isfinite(levels)
            if not known.all():
                right = "s, in 0..1" if flow else "σ, which is above 0"
                raise FieldError(self, "path", f"has the noise level {levels[~known][0]:g}: record {right}, as levels=")
            return
        least, most = int(self.visits["timestep"].min()), int(self.visits["timestep"].max())
        if least < 1:
            raise FieldError(self, "path", f"has the timestep {least - 1}: record timesteps as the network gets them, 0..T-1")
        if most > process.T:
            message = f"has timesteps up to {most} of 1..T, but the process has T={process.T}: choose the process of that training"
            raise FieldError(self, "path", message)

    def _table(self, name: str) -> np.ndarray:
        try:
            return np.load(self.folder / name)
        except (OSError, ValueError) as error:
            raise FieldError(self, "path", f"has no readable {name}: record the training again") from error


@dataclass(frozen=True, kw_only=True)
class GivenRecord(Recorded):
    """A model whose training was recorded elsewhere: ``weights`` of each checkpoint, in order, and the ``record`` of its visits.

    ``average``: averaged parameters, which are then the explained model. The store keeps a copy of everything.
    """

    NAME = "GivenRecord"
    VERSION = 1
    TITLE = "the given record of training"
    GIVEN = True

    weights: Sequence[Weights]
    record: RecordFolder
    average: Weights | None = None

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints."""
        return self.record.info["checkpoints"]

    def check_checkpoints(self, wanted: int | str | Sequence[int], owner: Any, visited: bool = False) -> None:
        check_selection(wanted, self.steps, len(self.steps), owner, "recorded")
        if visited:
            check_visited(wanted, self.steps, len(self.steps), self.record.info["steps_per_epoch"], owner)

    def notes(self, replayed: bool) -> list[str]:
        return [*super().notes(replayed), *([DRAWN_NOISE] if replayed and not self.record.noise_is_known else [])]

    def cost(self) -> Cost:
        state = sum(tensor.nbytes for tensor in self.outline.state_dict().values())
        return Cost(disk=len(self.weights) * state + self.record.visits.nbytes)

    def compute(self, get: Get) -> TrainingRecord:
        folder = get.workspace(self)
        for weights, step in zip(self.weights, self.steps, strict=True):
            weights.copy(checkpoint_file(folder, step))
        if self.average is not None:
            self.average.copy(folder / AVERAGE)
        visits = np.array(self.record.visits)
        if self.record.is_continuous:
            assert isinstance(self.process, ContinuousProcess)
            visits["timestep"] = nearest(self.process, visits["level"])
        np.save(folder / "visits.npy", visits)
        np.save(folder / "steps.npy", self.record.steps)
        write_json(folder / "record.json", self.record.info)
        return TrainingRecord(folder)


def given_record(
    model: Callable[[], nn.Module], objective: Measure, record: RecordFolder, ids: np.ndarray, read: Callable[[Path], Weights]
) -> GivenRecord:
    """The model of ``record``, whose training images have the ``ids``; ``read`` opens the file of a checkpoint.

    Raises:
        FieldError: the record does not fit the process of ``objective`` or the images.
        ValueError: as ``read`` does.
    """
    record.check(objective.process, ids)
    weights = tuple(read(record.checkpoint(step)) for step in record.info["checkpoints"])
    average = None if record.average is None else read(record.average)
    return GivenRecord(model=model, objective=objective, weights=weights, record=record, average=average)


def nearest(process: ContinuousProcess, levels: np.ndarray) -> np.ndarray:
    """The t in 1..T of a process whose level is the nearest to each of ``levels``."""
    grid = process.levels[1:]
    return 1 + np.searchsorted((grid[1:] + grid[:-1]) / 2, levels)
