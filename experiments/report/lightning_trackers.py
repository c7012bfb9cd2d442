"""Trackers that write local files by Lightning's own loggers: TensorBoard and CSV."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from experiments.report.description import RunDescription
from experiments.report.row import Row
from experiments.report.summary import summary
from experiments.report.trackers import CLOSED, Tracker


class TensorBoard(Tracker):
    """Event files in ``folder/tensorboard``: curves, figures, and the numbers of ``summary.py`` with choices and axes."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._description = RunDescription()
        self._rows: list[Row] = []
        self._open: TensorBoardLogger | None = None

    def start(self, config: Mapping[str, Any], run: RunDescription = RunDescription()) -> None:
        self._description, self._rows, self._open = run, [], self._logger("run")
        self._open.experiment.add_text("settings", f"```json\n{json.dumps(dict(config), indent=2, default=str)}\n```")

    def _logger(self, version: str, prefix: str = "") -> TensorBoardLogger:
        try:
            logger = TensorBoardLogger(self.folder, "tensorboard", version, default_hp_metric=False, prefix=prefix)
        except ModuleNotFoundError as error:
            raise ValueError("tracker=tensorboard needs the package tensorboard: pip install -e '.[tensorboard]'") from error
        logger.LOGGER_JOIN_CHAR = "/"  # pyright: ignore[reportAttributeAccessIssue]
        return logger

    @property
    def logger(self) -> TensorBoardLogger:
        """The logger of the open run.

        Raises:
            RuntimeError: before ``start`` and after ``finish``.
        """
        if self._open is None:
            raise RuntimeError(CLOSED)
        return self._open

    def lightning_logger(self, name: str) -> TensorBoardLogger:
        return self._logger(name, prefix="training_run")

    def rows(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        numbers = summary(self._rows, self._description.estimator)
        self.logger.log_metrics(numbers, step=0)
        chosen = {name: value for name, value in numbers.items() if not name.startswith("compare/")}
        self.logger.log_hyperparams(self._description.facts, metrics=chosen)

    def figure(self, name: str, path: Path) -> None:
        self.logger.experiment.add_image(name, matplotlib.image.imread(path)[..., :3], dataformats="HWC")

    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        for key, series in values.items():
            for step, value in zip(steps, series, strict=True):
                self.logger.experiment.add_scalar(f"{name}/{key}", float(value), int(step))

    def finish(self, failed: bool = False) -> str:
        logger, self._open = self.logger, None
        logger.finalize("failed" if failed else "success")
        return "" if self._description.sweep else f"to look at it: tensorboard --logdir {self.folder / 'tensorboard'}"

    @classmethod
    def of_sweep(cls, folder: Path) -> str:
        return f"to look at it: tensorboard --logdir {folder}"


class CSV(Tracker):
    """Files in ``folder/csv``: choices, axes and settings (``run/hparams.yaml``), and ``metrics.csv`` for results and curves.

    ``run/metrics.csv`` has the numbers of ``summary.py``, and each curve has a folder of its own.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._description = RunDescription()
        self._rows: list[Row] = []
        self._open: CSVLogger | None = None

    def start(self, config: Mapping[str, Any], run: RunDescription = RunDescription()) -> None:
        self._description, self._rows, self._open = run, [], self._logger("run")
        self._open.log_hyperparams({**run.facts, "settings": dict(config)})
        self._open.save()

    @property
    def logger(self) -> CSVLogger:
        """The logger of the open run.

        Raises:
            RuntimeError: before ``start`` and after ``finish``.
        """
        if self._open is None:
            raise RuntimeError(CLOSED)
        return self._open

    def _logger(self, version: str) -> CSVLogger:
        return CSVLogger(self.folder, "csv", version)

    def lightning_logger(self, name: str) -> CSVLogger:
        return self._logger(name)

    def rows(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        self.logger.log_metrics({**summary(self._rows, self._description.estimator)}, step=0)
        self.logger.save()

    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        logger = self._logger(name)
        for step, *numbers in zip(steps, *values.values(), strict=True):
            point: dict[str, Any] = {key: float(value) for key, value in zip(values, numbers, strict=True)}
            logger.log_metrics(point, int(step))
        logger.save()

    def finish(self, failed: bool = False) -> str:
        self.logger.finalize("failed" if failed else "success")
        self._open = None
        return "" if self._description.sweep else f"curves and results as CSV: {self.folder / 'csv'}"
