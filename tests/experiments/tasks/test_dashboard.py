"""``task=dashboard``: the specification of a W&B workspace and report."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.report import chart
from experiments.report.row import Row, Subject
from experiments.report.trackers import Wandb
from tests.experiments.report.test_summary import LDS
from tests.experiments.tasks.test_cli import run

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")  # of wandb-workspaces


def panels(node: Any) -> Iterator[dict]:
    """All panels in a specification."""
    if isinstance(node, dict):
        if "viewType" in node and "config" in node:
            yield node
        for child in node.values():
            yield from panels(child)
    elif isinstance(node, list):
        for child in node:
            yield from panels(child)


def specification(folder: Path, *arguments: str) -> dict[str, Any]:
    pytest.importorskip("wandb_workspaces")
    printed = run(folder, "task=dashboard", *arguments, f"hydra.run.dir={folder / 'out'}")
    path = folder / "out" / "dashboard.json"
    assert f"specification of the dashboard: {path}" in printed
    return json.loads(path.read_text())


def test_workspace_and_report_show_what_runs_log(tmp_path):
    """Claim: without an account, the file has intervals by estimator, parallel coordinates, training curves and proponents."""
    spec = specification(tmp_path)
    sections = spec["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["lds by estimator", "sweeps", "training", "proponents"]
    for part in ("workspace", "report"):
        found = list(panels(spec[part]))
        by_kind: dict[str, list[dict]] = {}
        for panel in found:
            by_kind.setdefault(panel["viewType"], []).append(panel["config"])
        [intervals] = by_kind["Vega2"]
        assert intervals["panelDefId"].endswith(chart.name())
        assert intervals["stringSettings"]["metric"] == LDS.metric
        columns = [[column["accessor"] for column in plot["columns"]] for plot in by_kind["Parallel Coordinates Plot"]]
        axes = [f"config:{name}.value" for name in ("estimator", "damping", "draws", "timesteps")]
        assert columns == [[*axes, "summary:lds/validation"], [*axes, "summary:lds/generated"]]
        lines = [panel["metrics"] for panel in by_kind["Run History Line Plot"]]
        assert lines[-2:] == [["training/loss"], ["training/learning_rate"]]
        assert ["over_damping/lds/validation"] in lines
        bars = [(bar["metrics"], bar["groupBy"]) for bar in by_kind["Bar Chart"]]
        assert bars == [([f"summary_metrics.lds/{kind}"], "estimator.value") for kind in ("validation", "generated")]
        text = json.dumps(spec[part])
        assert all(f"proponents/{kind}" in text for kind in ("validation", "generated"))
    assert spec["workspace"]["project"] == "diffusion-attribution"


def test_metric_queries_and_axes_are_settings(tmp_path):
    """Claim: kinds of queries, the metric, the axes and the project are those of the command."""
    arguments = ["task.metric=lds_held_out_damping", "task.axes=[draws]", "tracker.project=p", "tracker.entity=e"]
    spec = specification(tmp_path, *arguments, "~benchmark.queries.generated")
    assert (spec["workspace"]["project"], spec["workspace"]["entity"]) == ("p", "e")
    text = json.dumps(spec)
    assert "lds_held_out_damping/validation" in text
    assert "/generated" not in text
    assert "config:damping" not in text
    assert "lds_%_held_out_damping" in text


def test_the_chart_takes_the_columns_of_rows():
    """Claim: the fields of the chart are columns of the table of rows, and its filter leaves out differences by their name."""
    row = Row(**{**vars(LDS), "minus": Subject("trak")})
    assert set(chart.FIELDS.values()) <= LDS.to_dict().keys()
    assert " − " in row.to_dict()["estimator"]
    text = json.dumps(chart.intervals())
    assert all(f"${{field:{name}}}" in text for name in chart.FIELDS)


def test_with_an_account_it_is_pushed(tmp_path, monkeypatch):
    """Claim: online, the chart, the workspace and the report are pushed to the account, and their addresses are printed."""
    reports = pytest.importorskip("wandb_workspaces.reports.v2")
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    pushed = []

    def save(self: Any) -> Any:
        pushed.append((type(self).__name__, self.entity, self.project))
        return self

    monkeypatch.setattr(Wandb, "account", lambda self: "someone")
    monkeypatch.setattr(
        Wandb, "push_chart", lambda self, name, title, spec: pushed.append(("chart", name, spec == chart.intervals()))
    )
    for kind in (workspaces.Workspace, reports.Report):
        monkeypatch.setattr(kind, "save", save)
        monkeypatch.setattr(kind, "url", property(lambda self: f"https://{type(self).__name__}"))
    printed = run(tmp_path, "task=dashboard", "tracker.mode=online", f"hydra.run.dir={tmp_path / 'out'}")
    project = "diffusion-attribution"
    assert pushed == [("chart", chart.name(), True), ("Workspace", "someone", project), ("Report", "someone", project)]
    assert "workspace: https://Workspace" in printed
    assert "report: https://Report" in printed


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["tracker=local"], "tracker=local: task=dashboard makes a dashboard of W&B; choose tracker=wandb"),
    (["task.axes=[]"], "task.axes=[]: name at least one axis"),
])  # fmt: skip
def test_what_cannot_be_shown_is_refused(arguments, sentence, tmp_path):
    """Claim: one sentence says what to change."""
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "task=dashboard", *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    assert sentence in str(ended.value.code)


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    """Claim: without wandb-workspaces, the error says what to install."""
    for name in [name for name in sys.modules if name.startswith("wandb_workspaces")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "task=dashboard", f"hydra.run.dir={tmp_path / 'out'}")
    assert "task=dashboard needs the package wandb-workspaces: pip install -e '.[dashboard]'" in str(ended.value.code)


def test_nobody_logged_in(tmp_path, monkeypatch):
    """Claim: online without an account is an error that says how to go on."""
    pytest.importorskip("wandb_workspaces")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "task=dashboard", "tracker.mode=online", f"hydra.run.dir={tmp_path / 'out'}")
    assert "run `wandb login`, or set tracker.mode=offline" in str(ended.value.code)
