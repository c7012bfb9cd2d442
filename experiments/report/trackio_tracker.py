"""Trackio, a local dashboard that needs no account."""

import contextlib
import io
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.image
from lightning.pytorch.loggers import Logger

from experiments.report.attributions import Attributions
from experiments.report.description import RunDescription
from experiments.report.proponents import PROPONENT_COLUMNS, proponent_lines
from experiments.report.row import Row
from experiments.report.summary import summary
from experiments.report.trackers import CLOSED, Tracker


class Trackio(Tracker):
    """Curves, the numbers of ``summary.py``, figures and proponents in Trackio's own folder, TRACKIO_DIR.

    ``name`` and ``group`` are by default the estimator with swept values, and the sweep.
    """

    def __init__(self, project: str, name: str | None = None, group: str | None = None):
        self.project, self.name, self.group = project, name, group
        self._description = RunDescription()
        self._rows: list[Row] = []
        self._run: Any = None

    def start(self, config: Mapping[str, Any], run: RunDescription = RunDescription()) -> None:
        self._description, self._rows = run, []
        with _silent():
            self._run = _trackio().init(
                project=self.project,
                name=self.name or run.name,
                group=self.group or run.sweep,
                config={**run.facts, "settings": dict(config)},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    @property
    def run(self) -> Any:
        """The open run.

        Raises:
            RuntimeError: before ``start`` and after ``finish``.
        """
        if self._run is None:
            raise RuntimeError(CLOSED)
        return self._run

    def lightning_logger(self, name: str) -> Logger:
        return _Curves(self, name)

    def rows(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        self.run.log(summary(self._rows, self._description.estimator))

    def figure(self, name: str, path: Path) -> None:
        image = (matplotlib.image.imread(path)[..., :3] * 255).round().astype("uint8")
        self.run.log({name: _trackio().Image(image, caption=name)})

    def proponents(self, attributions: Attributions) -> None:
        image = _trackio().Image
        lines = proponent_lines(attributions, lambda pixels, name: image(pixels, caption=name))
        table = _trackio().Table(columns=list(PROPONENT_COLUMNS), data=lines)
        self.run.log({f"proponents/{attributions.kind}": table})

    def curve(self, name: str, steps: Sequence[int], values: Mapping[str, Sequence[float]]) -> None:
        for step, *numbers in zip(steps, *values.values(), strict=True):
            point = zip(values, map(float, numbers), strict=True)
            self.run.log({f"{name}/{key}": value for key, value in point}, step=int(step))

    def finish(self, failed: bool = False) -> str:
        with _silent():
            _trackio().finish()
        self._run = None
        return "" if self._description.sweep else f'to look at it: trackio show --project "{self.project}"'

    @classmethod
    def of_sweep(cls, folder: Path) -> str:
        return "to look at it: trackio show"


class _Curves(Logger):
    """Passes the metrics of a Trainer to Trackio."""

    def __init__(self, tracker: Trackio, name: str):
        super().__init__()
        self._tracker, self._name = tracker, name

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._tracker.run.log({f"{self._name}/{key}": value for key, value in metrics.items()}, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        pass  # the run has them


def _trackio() -> ModuleType:
    try:
        import trackio
    except ModuleNotFoundError as error:
        raise ValueError("tracker=trackio needs the package trackio: pip install -e '.[trackio]'") from error
    return trackio


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what Trackio prints off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
