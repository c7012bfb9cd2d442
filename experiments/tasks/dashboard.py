"""``task=dashboard``: a workspace and a report in W&B, or their specification as a file."""

import json
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from experiments.disk import explained
from experiments.report import chart
from experiments.report.dashboard import Dashboard, specification
from experiments.report.report import write_file
from experiments.report.trackers import Wandb
from experiments.tasks.settings import SettingError, build

FILE = "dashboard.json"
_COLUMNS = {"lds": "lds_%", "lds_held_out_damping": "lds_%_held_out_damping"}
"""Metrics that rows call otherwise than summaries."""


def dashboard(config: DictConfig, metric: str, axes: list[str]) -> None:
    """Write the specification of a dashboard of the tracker's project, and push it with ``tracker.mode=online``.

    Raises:
        SettingError: the tracker is not wandb, or there is nothing to show.
        ValueError: wandb-workspaces is not installed, or W&B refuses.
    """
    tracker = build(config, "tracker")
    if not isinstance(tracker, Wandb):
        choice = HydraConfig.get().runtime.choices["tracker"]
        raise SettingError(f"tracker={choice}: task=dashboard makes a dashboard of W&B; choose tracker=wandb")
    queries = list(OmegaConf.select(config, "benchmark.queries") or ())
    if not queries:
        raise SettingError("benchmark.queries: name at least one kind of queries for the dashboard")
    if not axes:
        raise SettingError("task.axes=[]: name at least one axis, such as damping")
    online = tracker.mode == "online"
    entity = tracker.account() if online else tracker.entity or ""
    shown = Dashboard(entity, tracker.project, metric, _COLUMNS.get(metric, metric), queries, axes)
    path = Path(HydraConfig.get().runtime.output_dir) / FILE
    text = json.dumps(specification(shown), indent=2, ensure_ascii=False) + "\n"
    with explained(path.parent, "hydra.run.dir", "nothing else is lost"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(f"specification of the dashboard: {path}")
    if online:
        tracker.push_chart(chart.name(), "metric with intervals", chart.intervals())
        for name, made in (("workspace", shown.workspace()), ("report", shown.report())):
            print(f"{name}: {made.save().url}")
    else:
        print("to push it: wandb login, then the same command with tracker.mode=online")
