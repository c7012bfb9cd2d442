"""Explained models of which more than the final parameters is given: several checkpoints, or a record of its training."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attribution.checks import FieldError
from attribution.models.weights import WeightsFile
from attribution.nodes import InMemory
from attribution.training.given_checkpoints import GivenCheckpoints, check_listed_checkpoints
from attribution.training.given_record import GivenRecord, RecordFolder, given_record
from experiments.models.explained import Explained
from experiments.models.trained import TrainedModel

COLUMNS = ("path", "step", "learning_rate")
"""The columns of a listing of checkpoints."""


@dataclass(frozen=True)
class FromCheckpoints(Explained):
    """The network of the run (``model=``) with the weights in several files, in the order of training, the explained model last.

    ``paths``, ``steps`` and ``learning_rates`` list them, or the file ``listing`` does: a CSV file with the columns path, step and,
    if known, learning_rate, or a JSON list of objects with these keys. Its paths are relative to its folder. ``prefix``: as in
    ``FromCheckpoint``.

    Raises:
        FieldError: the lists do not fit together, or ``listing`` cannot be read; in ``of``: there is no such file, or it does not
            have the weights of the network.
    """

    paths: Sequence[str] | None = None
    steps: Sequence[int] | None = None
    learning_rates: Sequence[float] | None = None
    listing: str | None = None
    prefix: str | None = None

    def __post_init__(self):
        if self.listing is not None:
            if given := [name for name in ("paths", "steps", "learning_rates") if getattr(self, name) is not None]:
                raise FieldError(self, given[0], "the file of listing has these: leave it null")
            read_listing(self, self.listing)
            return
        if self.paths is None:
            raise FieldError(self, "paths", "list the files of the checkpoints, or give a listing of them")
        if self.steps is None:
            raise FieldError(self, "steps", "list the step of each checkpoint")
        check_listed_checkpoints(self, "paths")

    def of(self, training: TrainedModel) -> GivenCheckpoints:
        paths, steps, rates = self.paths, self.steps, self.learning_rates
        if self.listing is not None:
            paths, steps, rates = read_listing(self, self.listing)
        assert paths is not None
        assert steps is not None
        weights = tuple(self._weights(i, path, training) for i, path in enumerate(paths))
        return GivenCheckpoints(
            model=training.model,
            objective=training.objective,
            weights=weights,
            steps=tuple(steps),
            learning_rates=None if rates is None else tuple(rates),
            seed=training.seed,
            flips=training.flips,
        )

    def _weights(self, i: int, path: str, training: TrainedModel) -> WeightsFile:
        try:
            return WeightsFile(path, self.prefix or "").of_network(training.outline)
        except FieldError as error:
            if error.field == "path":
                field, message = (f"paths[{i}]", error.message) if self.listing is None else ("listing", f"{path} {error.message}")
                raise FieldError(self, field, message) from error
            raise FieldError(self, error.field, error.message) from error


@dataclass(frozen=True)
class _Listed:
    """The checkpoints of a listing, with the names of its columns."""

    path: Sequence[str]
    steps: Sequence[int]
    learning_rates: Sequence[float] | None


def read_listing(owner: Any, listing: str) -> tuple[list[str], list[int], list[float] | None]:
    """Paths, steps and learning rates (None: unknown) in the file ``listing``, the field of that name of ``owner``.

    Raises:
        FieldError: it cannot be read, or is no such list.
    """
    file = Path(listing).expanduser()
    try:
        if file.suffix == ".json":
            rows = json.loads(file.read_text())
        else:
            with file.open(newline="", encoding="utf-8-sig") as text:
                rows = list(table := csv.DictReader(text, skipinitialspace=True))
            if lacking := {"path", "step"} - {*(table.fieldnames or ())}:
                raise ValueError(f"no column {min(lacking)} in its first line")
        paths = [str(file.parent / str(row["path"])) for row in rows]
        steps = [int(str(row["step"])) for row in rows]  # 1.5 is refused
        known = [row.get("learning_rate") not in (None, "") for row in rows]
        rates = [float(row["learning_rate"]) for row in rows] if all(known) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        columns = f"{', '.join(COLUMNS[:-1])} and, if known, {COLUMNS[-1]}"
        message = f"must be a CSV or JSON file with {columns} of each checkpoint ({type(error).__name__}: {error})"
        raise FieldError(owner, "listing", message) from error
    if any(known) and rates is None:
        raise FieldError(owner, "listing", "has the learning rates of some checkpoints only: give all of them, or none")
    try:
        check_listed_checkpoints(_Listed(paths, steps, rates), "path")
    except FieldError as error:
        raise FieldError(owner, "listing", f"{error.field}: {error.message}") from error
    return paths, steps, rates


@dataclass(frozen=True)
class FromRecord(Explained):
    """The network of the run (``model=``), and the record of its training that ``LoopRecorder`` left in the folder ``path``.

    Raises (in ``of``):
        FieldError: there is no such record, or it does not fit the network, the process or the training images.
    """

    path: str

    def of(self, training: TrainedModel) -> GivenRecord:
        def read(file: Path) -> WeightsFile:
            return WeightsFile(str(file)).of_network(training.outline)

        ids = InMemory()(training.data).index
        try:
            return given_record(training.model, training.objective, RecordFolder(self.path), ids, read)
        except FieldError as error:
            raise FieldError(self, "path", error.message) from error
