"""Trackers, which follow a run while it proceeds. This is the only file that imports wandb.

The report (``report.py``) always writes rows and figures; a tracker receives the same, and training curves as they grow.
"""

import json
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.report.row import Row

if TYPE_CHECKING:
    import wandb
    from lightning.pytorch.loggers import Logger


class Tracker(ABC):
    """Follows one run. Call ``start`` first, ``finish`` last, and the others any number of times between."""

    @abstractmethod
    def start(self, config: Mapping[str, Any]) -> None:
        """Open the run. ``config``: the whole resolved configuration as plain values."""

    @abstractmethod
    def lightning_logger(self, name: str) -> "Logger | None":
        """The logger of a Trainer for the curves of the training run ``name``, or None."""

    @abstractmethod
    def rows(self, rows: Sequence[Row]) -> None:
        """Record rows of the report."""

    @abstractmethod
    def figure(self, name: str, path: Path) -> None:
        """Record a PNG that the report saved."""

    @abstractmethod
    def page(self, path: Path) -> None:
        """Record the page of the run, a self-contained HTML file."""

    @abstractmethod
    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        """Record complete curves, such as those of a stored training run; each of ``values`` has one number per step."""

    @abstractmethod
    def finish(self, failed: bool = False) -> str:
        """Close the run, or mark it as failed, and return a message that tells the user where it is, or the empty string."""


class Local(Tracker):
    """Records nothing beyond what the report writes."""

    def start(self, config: Mapping[str, Any]) -> None:
        pass

    def lightning_logger(self, name: str) -> None:
        return None

    def rows(self, rows: Sequence[Row]) -> None:
        pass

    def figure(self, name: str, path: Path) -> None:
        pass

    def page(self, path: Path) -> None:
        pass

    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        pass

    def finish(self, failed: bool = False) -> str:
        return ""


class Wandb(Tracker):
    """Weights & Biases: curves, rows (a table, and one summary number ``benchmark/estimator/metric[/queries]`` each), figures.

    ``offline`` writes to ``folder/wandb`` and needs neither network nor account; ``online`` needs ``wandb login``. A run that
    dies before ``finish`` is marked as crashed.
    """

    MODES = ("offline", "online")

    def __init__(self, project: str, folder: Path | str, mode: str = "offline", entity: str | None = None, name: str | None = None):
        if mode not in self.MODES:
            raise ValueError(f"tracker.mode={mode!r}: choose {' or '.join(self.MODES)}")
        self.project, self.folder, self.mode, self.entity, self.name = project, Path(folder), mode, entity, name
        self._run: wandb.Run | None = None
        self._rows: list[dict[str, Any]] = []

    def start(self, config: Mapping[str, Any]) -> None:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=self.project,
                entity=self.entity,
                name=self.name,
                mode=self.mode,  # pyright: ignore[reportArgumentType]
                dir=self.folder,
                config=dict(config),
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
            raise RuntimeError("the tracker has no open run: call start(config) first")
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

        self._rows += [row.to_dict() for row in rows]
        columns: list[Any] = list(dict.fromkeys(name for row in self._rows for name in row))
        cells = [[_cell(row.get(name)) for name in columns] for row in self._rows]
        self.run.log({"rows": wandb.Table(columns=columns, data=cells, allow_mixed_types=True)})
        self.run.summary.update({summary_name(row): row.estimate.value for row in rows if math.isfinite(row.estimate.value)})

    def figure(self, name: str, path: Path) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path))})

    def page(self, path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"page-{self.run.id}", "page")
        artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        self.run.define_metric(f"{name}/*", step_metric=f"{name}/step")
        for step, *numbers_here in zip(steps, *values.values(), strict=True):
            point = zip(values, map(float, numbers_here), strict=True)
            self.run.log({f"{name}/step": int(step), **{f"{name}/{key}": value for key, value in point}})

    def finish(self, failed: bool = False) -> str:
        run, self._run = self.run, None
        message = f"wandb: {run.url}" if self.mode == "online" else f"to upload: wandb sync {Path(run.dir).parent}"
        run.finish(exit_code=int(failed))
        return message


def summary_name(row: Row) -> str:
    """``benchmark/estimator/metric``, followed by the kind of queries if the row has one."""
    return "/".join(filter(None, (row.benchmark, row.estimator, row.metric, row.queries)))


def _cell(value: Any) -> Any:
    """A plain value for a table; lists and mappings become JSON text."""
    return value if value is None or isinstance(value, str | numbers.Number) else json.dumps(value, ensure_ascii=False)
