"""Trackers, which follow a run while it proceeds. This is the only file that imports wandb.

The report (``report.py``) always writes rows and figures; a tracker receives the same, and training curves as they grow.
"""

import json
import math
import numbers
import shlex
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.attributions import Attributions
from experiments.report.description import RunDescription
from experiments.report.proponents import PROPONENT_COLUMNS, proponent_lines
from experiments.report.row import Row
from experiments.report.summary import curves, summary

if TYPE_CHECKING:
    import wandb
    from lightning.pytorch.loggers import Logger

CLOSED = "the tracker has no open run: call start(config) first"
_LONGEST_NAME, _LONGEST_TAG = 128, 64
"""The most characters that W&B takes."""


class Tracker(ABC):
    """Follows one run. Call ``start`` first, ``finish`` last, and the others any number of times between."""

    @abstractmethod
    def start(self, config: Mapping[str, Any], run: RunDescription = RunDescription()) -> None:
        """Open the run. ``config``: the whole resolved configuration as plain values; ``run``: what else is known of it."""

    @abstractmethod
    def lightning_logger(self, name: str) -> "Logger | None":
        """The logger of a Trainer for the curves of the training run ``name``, or None."""

    @abstractmethod
    def rows(self, rows: Sequence[Row]) -> None:
        """Record rows of the report."""

    def figure(self, name: str, path: Path) -> None:  # noqa: B027
        """Record a PNG that the report saved, where the tracker takes images."""

    def proponents(self, attributions: Attributions) -> None:  # noqa: B027
        """Record the most influential training images of some queries, where the tracker takes tables of images."""

    def page(self, path: Path) -> None:  # noqa: B027
        """Record the page of the run, one HTML file that needs no other, where the tracker takes files."""

    @abstractmethod
    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        """Record complete curves, such as those of a stored training run; each of ``values`` has one number per step."""

    @abstractmethod
    def finish(self, failed: bool = False) -> str:
        """Close the run, or mark it as failed, and return a message that tells the user where it is, or the empty string.

        What ``of_sweep`` says for all jobs of a sweep is not said for each.
        """

    @classmethod
    def of_sweep(cls, folder: Path) -> str:
        """Return a message that tells the user where the runs of a sweep in ``folder`` are, or the empty string."""
        return ""


class Local(Tracker):
    """Records nothing beyond what the report writes."""

    def start(self, config: Mapping[str, Any], run: RunDescription = RunDescription()) -> None:
        pass

    def lightning_logger(self, name: str) -> None:
        return None

    def rows(self, rows: Sequence[Row]) -> None:
        pass

    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        pass

    def finish(self, failed: bool = False) -> str:
        return ""


class Wandb(Tracker):
    """Weights & Biases: curves, rows (a table, and summary numbers named as in ``summary.py``), figures, proponents, the page.

    ``offline`` writes to ``folder/wandb`` and needs neither network nor account; ``online`` needs ``wandb login``. A run that
    dies before ``finish`` is marked as crashed. What is None is filled in: ``name`` with the estimator and swept values, ``group``
    with the sweep, ``job_type`` with the task, ``tags`` with data, benchmark and experiment, ``notes`` with the command. The config
    of the run has Hydra's choices, the axes of sweeps and the command at its top, and all settings under ``settings``.
    """

    MODES = ("offline", "online")

    def __init__(
        self,
        project: str,
        folder: Path | str,
        mode: str = "offline",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
    ):
        if mode not in self.MODES:
            raise ValueError(f"tracker.mode={mode!r}: choose {' or '.join(self.MODES)}")
        self.project, self.folder, self.mode, self.entity, self.name = project, Path(folder), mode, entity, name
        self.group, self.job_type, self.tags, self.notes = group, job_type, tags, notes
        self._run: wandb.Run | None = None
        self._description = RunDescription()
        self._rows: list[Row] = []

    def start(self, config: Mapping[str, Any], run: RunDescription = RunDescription()) -> None:
        import wandb

        self._description, self._rows = run, []
        name, tags = self.name or run.name, run.tags if self.tags is None else self.tags
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=name and name[:_LONGEST_NAME],
                group=self.group or run.sweep,
                job_type=self.job_type or run.job_type,
                tags=[tag[:_LONGEST_TAG] for tag in tags],
                notes=self.notes or run.command,
                mode=self.mode,  # pyright: ignore[reportArgumentType]
                dir=self.folder,
                config={**run.facts, "settings": dict(config)},
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise ValueError(f"wandb cannot start ({error}): run `wandb login`, or set tracker.mode=offline") from error

    @property
    def run(self) -> "wandb.Run":
        """The open run.

        Raises:
            RuntimeError: before ``start`` and after ``finish``.
        """
        if self._run is None:
            raise RuntimeError(CLOSED)
        return self._run

    def lightning_logger(self, name: str) -> "Logger":
        from lightning.pytorch.loggers import WandbLogger

        self.run.define_metric(f"{name}/*", step_metric="trainer/global_step")
        logger = WandbLogger(experiment=self.run, prefix=name, save_dir=self.folder)
        # wandb groups panels by what stands before a slash.
        logger.LOGGER_JOIN_CHAR = "/"  # pyright: ignore[reportAttributeAccessIssue]
        return logger

    def rows(self, rows: Sequence[Row]) -> None:
        import wandb

        self._rows += rows
        lines = [row.to_dict() for row in self._rows]
        columns: list[Any] = list(dict.fromkeys(name for line in lines for name in line))
        cells = [[_cell(line.get(name)) for name in columns] for line in lines]
        self.run.log({"rows": wandb.Table(columns=columns, data=cells, allow_mixed_types=True)})
        self.run.summary.update(summary(self._rows, self._description.estimator))

    def figure(self, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path))})

    def proponents(self, attributions: Attributions) -> None:
        import wandb

        columns: list[Any] = list(PROPONENT_COLUMNS)
        lines = proponent_lines(attributions, lambda pixels, name: wandb.Image(pixels, caption=name))
        self.run.log({f"proponents/{attributions.kind}": wandb.Table(columns=columns, data=lines)})

    def page(self, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"page-{self.run.id}", type="page")
        artifact.add_file(str(path), name=path.name)
        self.run.log_artifact(artifact)

    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        self._points(name, "step", list(map(int, steps)), values)

    def _points(self, name: str, axis: str, places: Sequence[float], values: Mapping[str, Sequence[float]]) -> None:
        """Log curves over ``name/axis``."""
        self.run.define_metric(f"{name}/*", step_metric=f"{name}/{axis}")
        for place, *numbers_here in zip(places, *values.values(), strict=True):
            point = {key: float(value) for key, value in zip(values, numbers_here, strict=True)}
            known = {key: value for key, value in point.items() if math.isfinite(value)}
            self.run.log({f"{name}/{axis}": place, **{f"{name}/{key}": value for key, value in known.items()}})

    def finish(self, failed: bool = False) -> str:
        if not failed:
            for curve in curves(self._rows, self._description.estimator):
                places, *ends = zip(*curve.points, strict=True)
                keys = curve.name, f"{curve.name}/low", f"{curve.name}/high"
                self._points(f"over_{curve.axis}", curve.axis, places, dict(zip(keys, ends, strict=True)))
        run, self._run = self.run, None
        offline = "" if self._description.sweep else f"to upload: wandb sync {Path(run.dir).parent}"
        message = f"wandb: {run.url}" if self.mode == "online" else offline
        run.finish(exit_code=int(failed))
        return message

    def account(self) -> str:
        """The entity that owns what is pushed: ``entity``, or by default that of the account.

        Raises:
            ValueError: nobody is logged in.
        """
        import wandb

        try:
            entity = self.entity or wandb.Api().default_entity
        except wandb.Error as error:
            raise ValueError(f"wandb has no account ({error}): run `wandb login`, or set tracker.mode=offline") from error
        if not entity:
            raise ValueError("wandb names no default entity of the account: set tracker.entity")
        return entity

    def push_chart(self, name: str, title: str, specification: Mapping[str, Any]) -> None:
        """Create a custom chart in the account, unless it has one of this name.

        Raises:
            ValueError: W&B refuses.
        """
        import wandb

        try:
            wandb.Api().create_custom_chart(self.account(), name, title, "vega2", "private", dict(specification))
        except wandb.Error as error:
            if "exist" not in str(error).lower():
                raise ValueError(f"wandb refuses the chart {name} ({error}): tracker.mode=offline writes the dashboard") from error

    @classmethod
    def of_sweep(cls, folder: Path) -> str:
        """Return one command that uploads the offline runs of all jobs."""
        runs = [run.relative_to(folder).parts for run in folder.rglob("wandb/offline-run-*") if run.is_dir()]
        patterns = sorted({"/".join(["*"] * (len(parts) - 2) + ["wandb", "offline-run-*"]) for parts in runs})
        return (
            f"to upload: wandb sync {' '.join(shlex.join([str(folder)]) + '/' + pattern for pattern in patterns)}" if runs else ""
        )


def _cell(value: Any) -> Any:
    """A plain value for a table; lists and mappings become JSON text."""
    return value if value is None or isinstance(value, str | numbers.Number) else json.dumps(value, ensure_ascii=False)
