"""A W&B dashboard as code, by the library wandb-workspaces: a workspace for a project, and a report with the same panels.

Panels name what the tracker logs: the numbers of ``summary.py``, the axes of ``description.py``, training curves, and tables of
proponents.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from experiments.report import chart

LOGARITHMIC = ("damping", "draws", "draws_train", "timesteps")
"""Axes with values over several powers."""


@dataclass(frozen=True)
class Dashboard:
    """What a dashboard of the runs of ``project`` shows: a ``metric`` of kinds of ``queries`` along ``axes`` of the runs' configs.

    ``metric`` is a name of ``summary.py``, such as lds; ``column`` is what the rows call it, such as lds_%.
    """

    entity: str
    project: str
    metric: str
    column: str
    queries: Sequence[str]
    axes: Sequence[str]

    def sections(self) -> Mapping[str, list[Any]]:
        """The panels, by the title of their section."""
        wr = reports()
        numbers = [f"{self.metric}/{kind}" for kind in self.queries]
        return {
            f"{self.metric} by estimator": [
                wr.CustomChart(
                    query={"summaryTable": {"tableKey": "rows"}},
                    chart_name=f"{self.entity}/{chart.name()}",
                    chart_fields=chart.FIELDS,
                    chart_strings={"metric": self.column, "title": self.column.replace("_", " ")},
                    layout=wr.Layout(w=24, h=12),
                ),
                *(
                    wr.BarPlot(
                        title=f"{number} of the chosen estimator, mean over runs",
                        metrics=[wr.SummaryMetric(number)],
                        groupby=wr.Config("estimator"),
                        groupby_aggfunc="mean",
                        groupby_rangefunc="minmax",
                        layout=wr.Layout(w=12, h=8),
                    )
                    for number in numbers
                ),
            ],
            "sweeps": [
                *(self._coordinates(number) for number in numbers),
                *(
                    wr.ScatterPlot(
                        title=f"{numbers[0]} over {axis}",
                        x=wr.Config(axis),
                        y=wr.SummaryMetric(numbers[0]),
                        log_x=axis in LOGARITHMIC,
                        layout=wr.Layout(w=8, h=8),
                    )
                    for axis in self.axes
                ),
                *(
                    wr.LinePlot(
                        title=f"{numbers[0]} over {words} of one run",
                        x=f"over_{axis}/{axis}",
                        y=[f"over_{axis}/{numbers[0]}"],
                        log_x=True,
                        layout=wr.Layout(w=12, h=8),
                    )
                    for axis, words in (("damping", "dampings"), ("draws.n", "numbers of draws"))
                ),
            ],
            "training": [
                wr.LinePlot(
                    title=f"training: {name.replace('_', ' ')}",
                    x="training/step",
                    y=[f"training/{name}"],
                    smoothing_type="exponential" if smoothed else "none",
                    smoothing_factor=0.9 if smoothed else 0,
                    smoothing_show_original=smoothed,
                    layout=wr.Layout(w=12, h=8),
                )
                for name, smoothed in (("loss", True), ("learning_rate", False))
            ],
            "proponents": [
                *(
                    wr.WeavePanelSummaryTable(table_name=f"proponents/{kind}", layout=wr.Layout(w=24, h=16))
                    for kind in self.queries
                ),
                wr.MediaBrowser(title="generated images", media_keys=["samples"], num_columns=1, layout=wr.Layout(w=12, h=12)),
            ],
        }

    def _coordinates(self, number: str) -> Any:
        """Parallel coordinates of the estimator, the axes, and a number."""
        wr = reports()
        column = wr.ParallelCoordinatesPlotColumn
        axes = [column(metric=wr.Config(axis), display_name=axis, log=axis in LOGARITHMIC) for axis in self.axes]
        estimator = column(metric=wr.Config("estimator"), display_name="estimator")
        last = column(metric=wr.SummaryMetric(number), display_name=number)
        return wr.ParallelCoordinatesPlot(
            title=f"{number} over {' × '.join(self.axes)}", columns=[estimator, *axes, last], layout=wr.Layout(w=24, h=10)
        )

    def workspace(self) -> Any:
        """The workspace, a ``wandb_workspaces.workspaces.Workspace``."""
        ws = workspaces()
        pinned = [f"config:{name}" for name in ("estimator", *self.axes)] + [
            f"summary:{self.metric}/{kind}" for kind in self.queries
        ]
        return ws.Workspace(
            entity=self.entity,
            project=self.project,
            name=f"{self.metric} of estimators",
            sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in self.sections().items()],
            runset_settings=ws.RunsetSettings(pinned_columns=["run:displayName", *pinned]),
        )

    def report(self) -> Any:
        """The report, a ``wandb_workspaces.reports.v2.Report``."""
        wr = reports()
        blocks: list[Any] = [wr.TableOfContents()]
        for name, panels in self.sections().items():
            runs = wr.Runset(name="all runs")  # of the report's own project; a named one is looked up in the account
            blocks += [wr.H1(text=name), wr.P(text=_TEXTS.get(name, _INTERVALS)), wr.PanelGrid(runsets=[runs], panels=panels)]
        title = f"{self.metric} of estimators: {self.project}"
        return wr.Report(project=self.project, entity=self.entity, title=title, blocks=blocks, width="fluid")


_INTERVALS = (
    "A point is the mean over queries, the line its 95 % interval, the gray tick the noise ceiling: about what a perfect predictor "
    "would reach. Bars show the estimator that a run chose; runs that differ in other settings are averaged."
)
_TEXTS = {
    "sweeps": "Each line or point is a run. Settings that one run sweeps by itself have curves of their own.",
    "training": "The loss of every step and the learning rate, of the model that is explained.",
    "proponents": "For some queries, the training images with the largest (proponent) and smallest (opponent) scores of each "
    "estimator.",
}


def specification(dashboard: Dashboard) -> dict[str, Any]:
    """The workspace, the report and the custom chart as JSON values, in the form in which they are pushed."""
    workspace, report = (made._to_model() for made in (dashboard.workspace(), dashboard.report()))
    return {
        "workspace": workspace.model_dump(mode="json", by_alias=True),
        "report": report.model_dump(mode="json", by_alias=True),
        "charts": {chart.name(): chart.intervals()},
    }


def reports() -> ModuleType:
    """The module for reports and panels.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    return _module("wandb_workspaces.reports.v2")


def workspaces() -> ModuleType:
    """The module for workspaces.

    Raises:
        ValueError: wandb-workspaces is not installed.
    """
    return _module("wandb_workspaces.workspaces")


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError("task=dashboard needs the package wandb-workspaces: pip install -e '.[dashboard]'") from error
