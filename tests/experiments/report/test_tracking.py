"""Trackers: the default leaves nothing, wandb really runs, offline."""

import ast
import contextlib
import csv
import inspect
import json
import logging
import math
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import PIL.Image
import pytest
import torch
import wandb
from hydra.utils import get_class, instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from attribution.images import Images
from experiments.report import trackers as tracking
from experiments.report.attributions import Attributions
from experiments.report.description import RunDescription
from experiments.report.lightning_trackers import CSV
from experiments.report.proponents import PROPONENT_COLUMNS, TOP, picture
from experiments.report.row import Estimate, Row, Subject
from tests.experiments.report.wandb_files import OfflineRun, read

ROOT = Path(__file__).parents[3]
ROW = Row(benchmark="targeted", subject=Subject("retrac"), metric="share@10", estimate=Estimate(0.5), swept={"n": 3})

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*:FutureWarning"),  # lightning with recent torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


class Line(pl.LightningModule):
    """Three steps of the smallest training there is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        loss = (self.weight * batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=0.1)


def use(tracker: tracking.Tracker, folder: Path, run: RunDescription = RunDescription()) -> str:
    """A whole life: start, train, rows twice, a figure, a curve, finish."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tracker.start({"estimator": {"draws": {"n": 10}}, "seed": 0}, run)
    data = torch.utils.data.DataLoader(torch.ones(3, 1), batch_size=1)  # pyright: ignore[reportArgumentType]
    logger = tracker.lightning_logger("unet")
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=logger or False, log_every_n_steps=1, default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Line(), data)
    tracker.rows([ROW])
    unknown = replace(ROW, estimate=Estimate(math.nan), queries="generated")
    tracker.rows([unknown, replace(ROW, estimate=Estimate(0.25), queries="validation", about={"k": 10})])
    Figure((1, 1)).savefig(folder / "figure.png")
    tracker.figure("figure", folder / "figure.png")
    page = folder / "index.html"
    page.write_text("<!doctype html>")
    tracker.page(page)
    tracker.curve("training", [0, 10], {"loss": [1.0, 0.5], "lr": [0.1, 0.1]})
    return tracker.finish()


def test_local_leaves_nothing(tmp_path):
    """The default writes no file and gives the trainer no logger."""
    assert tracking.Local().lightning_logger("unet") is None
    assert use(tracking.Local(), tmp_path) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "index.html"]


RUN = RunDescription(
    name="retrac n=3",
    sweep="sweep",
    job_type="evaluate",
    tags=["digits", "targeted"],
    command="python run.py estimator=retrac",
    choices={"estimator": "retrac", "data": "digits", "benchmark": "targeted"},
    axes={"draws": 10, "timesteps": 10, "damping": 1e-8},
)
IMAGES = Images(np.arange(40, dtype=np.uint8).reshape(10, 1, 2, 2) * 6, np.arange(100, 110), np.zeros(10, np.int64))
ATTRIBUTIONS = Attributions("validation", IMAGES.take([0, 1]), IMAGES, {"retrac": np.stack([np.arange(10.0), -np.arange(10.0)])})


@pytest.fixture
def home(tmp_path, monkeypatch):
    """W&B keeps nothing outside of this test."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def offline(folder: Path) -> OfflineRun:
    """The only offline run below a folder."""
    wandb.teardown()  # what a process does at its end: until then its last records may be on their way to the file
    [found] = folder.glob("wandb/offline-run-*")
    return read(found)


def test_wandb_runs_offline_and_silently(tmp_path, home, capfd):
    """A real offline run holds configuration, training curve, rows, figure and curve; nothing reaches the terminal."""
    capfd.readouterr()
    words = use(tracking.Wandb("test", tmp_path / "out"), tmp_path)
    printed = capfd.readouterr()
    assert "wandb" not in printed.out + printed.err
    run = offline(tmp_path / "out")
    assert words == f"to upload: wandb sync {run.folder}"
    assert run.config["settings"] == {"estimator": {"draws": {"n": 10}}, "seed": 0}
    logged = set().union(*run.history)
    assert {"unet/loss", "trainer/global_step", "training/lr", "training/step", "rows", "figure"} <= logged
    assert [point["training/loss"] for point in run.history if "training/loss" in point] == [1.0, 0.5]
    assert run.metrics["training/*"] == "training/step"
    assert run.summary["share@10"] == 0.5
    assert run.summary["share@10/validation"] == 0.25
    assert "share@10/generated" not in run.summary  # a number that is not known is no zero
    tables = [json.loads(path.read_text()) for path in (run.folder / "files" / "media" / "table").iterdir()]
    assert sorted(len(table["data"]) for table in tables) == [1, 3]
    [figure] = [point["figure"] for point in run.history if "figure" in point]
    assert (run.folder / "files" / figure["path"]).exists()
    assert run.exit_code == 0


def test_wandb_takes_the_description_of_a_run(tmp_path, home):
    """Group, job type, tags, name, notes, choices and axes are the description's; settings of the tracker take precedence."""
    tracker = tracking.Wandb("test", tmp_path / "out")
    tracker.start({"seed": 0}, RUN)
    assert tracker.finish(failed=True) == ""  # said once for the sweep
    run = offline(tmp_path / "out")
    assert (run.run.run_group, run.run.job_type, run.run.display_name) == ("sweep", "evaluate", "retrac n=3")
    assert (list(run.run.tags), run.run.notes) == (["digits", "targeted"], "python run.py estimator=retrac")
    config = {name: value for name, value in run.config.items() if name != "_wandb"}
    assert config == {**RUN.choices, **RUN.axes, "command": RUN.command, "settings": {"seed": 0}}
    assert run.exit_code == 1

    chosen = tracking.Wandb("test", tmp_path / "own", name="n", group="g", job_type="j", tags=["t" * 80], notes="words")
    chosen.start({}, RUN)
    chosen.finish()
    run = offline(tmp_path / "own")
    assert (run.run.display_name, run.run.run_group, run.run.job_type, run.run.notes) == ("n", "g", "j", "words")
    assert list(run.run.tags) == ["t" * 64]


def test_wandb_logs_proponents_and_the_page(tmp_path, home):
    """The table has a picture of each query and training image, ranks and scores; the page is an artifact with its content."""
    tracker = tracking.Wandb("test", tmp_path / "out")
    tracker.start({}, RUN)
    tracker.proponents(ATTRIBUTIONS)
    (tmp_path / "index.html").write_text("<p>page</p>")
    tracker.page(tmp_path / "index.html")
    tracker.finish()
    run = offline(tmp_path / "out")
    table = run.table("proponents/validation")
    assert table["columns"] == list(PROPONENT_COLUMNS)
    assert len(table["data"]) == 2 * 2 * TOP
    line = dict(zip(table["columns"], table["data"][0], strict=True))
    best = {"query_id": 100, "query_name": "100", "estimator": "retrac", "side": "proponent", "rank": 1, "id": 109, "score": 9.0}
    assert best.items() <= line.items()
    shown = PIL.Image.open(run.files("proponents/validation")[line["training_image"]["path"]])
    np.testing.assert_array_equal(np.asarray(shown), picture(IMAGES, 9))
    [page] = [artifact for artifact in run.artifacts if artifact.type == "page"]
    assert [entry.path for entry in page.manifest.contents] == ["index.html"]


def test_wandb_plots_what_a_run_sweeps_itself(tmp_path, home):
    """A list of dampings has a name for each, and a curve over the damping with its interval."""
    at = {d: replace(ROW, subject=Subject("retrac", {"estimator.damping": d}), estimate=Estimate(v, v - 1, v + 1)) for d, v in
          ((1e-7, 3.0), (1e-9, 5.0))}  # fmt: skip
    tracker = tracking.Wandb("test", tmp_path / "out")
    tracker.start({}, RUN)
    tracker.rows(list(at.values()))
    tracker.finish()
    run = offline(tmp_path / "out")
    assert run.summary["share@10/damping=1e-07"] == 3.0
    assert "share@10" not in run.summary
    points = [point for point in run.history if "over_damping/share@10" in point]
    assert [(p["over_damping/damping"], p["over_damping/share@10"], p["over_damping/share@10/high"]) for p in points] == [
        (1e-9, 5.0, 6.0),
        (1e-7, 3.0, 4.0),
    ]
    assert run.metrics["over_damping/*"] == "over_damping/damping"


def test_one_command_uploads_a_sweep(tmp_path):
    """The pattern names the offline runs of all jobs and nothing else."""
    for job in ("0", "1"):
        (tmp_path / "a sweep" / job / "wandb" / f"offline-run-{job}").mkdir(parents=True)
    words = tracking.Wandb.of_sweep(tmp_path / "a sweep")
    assert words == f"to upload: wandb sync '{tmp_path}/a sweep'/*/wandb/offline-run-*"
    listed = subprocess.run(
        ["bash", "-c", words.replace("to upload: wandb sync", "ls -d")], capture_output=True, text=True, check=True
    )
    assert len(listed.stdout.splitlines()) == 2
    assert tracking.Wandb.of_sweep(tmp_path / "nothing") == ""


def test_tensorboard_has_curves_numbers_figures_and_axes(tmp_path):
    """Event files are read back by TensorBoard's own reader."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from experiments.report.lightning_trackers import TensorBoard

    words = use(TensorBoard(tmp_path / "out"), tmp_path, RUN)
    assert words == ""
    run = EventAccumulator(str(tmp_path / "out" / "tensorboard" / "run")).Reload()
    assert [event.value for event in run.Scalars("training/loss")] == [1.0, 0.5]
    assert [event.step for event in run.Scalars("training/loss")] == [0, 10]
    assert [event.value for event in run.Scalars("share@10/validation")] == [0.25] * len(run.Scalars("share@10/validation"))
    assert run.Images("figure")
    assert {"damping", "draws", "estimator", "command"} <= hyperparameters(run)
    curves = EventAccumulator(str(tmp_path / "out" / "tensorboard" / "unet")).Reload()
    assert len(curves.Scalars("training_run/loss")) == 3


def hyperparameters(run: Any) -> set[str]:
    """The names of the hyperparameters that the HPARAMS plugin shows."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = run.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    return set(plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams)


def test_csv_has_curves_numbers_and_axes(tmp_path):
    """The files are read back."""
    words = use(CSV(tmp_path / "out"), tmp_path)
    assert words == f"curves and results as CSV: {tmp_path / 'out' / 'csv'}"
    use(CSV(tmp_path / "described"), tmp_path, RUN)

    def lines(name: str) -> list[dict[str, str]]:
        text = (tmp_path / "described" / "csv" / name / "metrics.csv").read_text()
        return list(csv.DictReader(text.splitlines()))

    assert [(line["step"], line["loss"]) for line in lines("training")] == [("0", "1.0"), ("10", "0.5")]
    assert len(lines("unet")) == 3
    assert lines("run")[-1]["share@10/validation"] == "0.25"
    kept = OmegaConf.load(tmp_path / "described" / "csv" / "run" / "hparams.yaml")
    assert (kept.estimator, kept.damping, kept.settings.seed) == ("retrac", 1e-8, 0)


def test_trackio_has_curves_numbers_and_axes(tmp_path):
    """The database is read back; nothing reaches the terminal. Trackio's folder is fixed when it is imported: in a process."""
    pytest.importorskip("trackio")
    program = f"""
from pathlib import Path
from tests.experiments.report import test_tracking as tests
from experiments.report.trackio_tracker import Trackio
tracker, folder = Trackio("test"), Path({str(tmp_path)!r})
assert tests.use(tracker, folder, tests.RUN) == ""
tracker.start({{}})
tracker.proponents(tests.ATTRIBUTIONS)
assert tracker.finish() == 'to look at it: trackio show --project "test"'
"""
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "test.db")) as database:
        configs = [json.loads(config) for (config,) in database.execute("select config from configs")]
        lines = [(step, json.loads(line)) for step, line in database.execute("select step, metrics from metrics")]
    [config] = [config for config in configs if "estimator" in config]
    assert (config["estimator"], config["damping"], config["settings"]["seed"], config["_Group"]) == ("retrac", 1e-8, 0, "sweep")
    assert [(step, line["training/loss"]) for step, line in lines if "training/loss" in line] == [(0, 1.0), (10, 0.5)]
    assert len([line for _, line in lines if "unet/loss" in line]) == 3
    assert [line["share@10/validation"] for _, line in lines if "share@10/validation" in line] == [0.25]
    [table] = [line["proponents/validation"]["_value"] for _, line in lines if "proponents/validation" in line]
    assert [list(table[0]), len(table), table[0]["id"], table[0]["score"]] == [list(PROPONENT_COLUMNS), 20, 109, 9.0]
    [figure] = [line["figure"]["file_path"] for _, line in lines if "figure" in line]
    assert (tmp_path / "trackio" / "media" / figure).exists()


@pytest.mark.parametrize(("name", "package", "path"), [
    ("tensorboard", "tensorboard", "experiments.report.lightning_trackers.TensorBoard"),
    ("trackio", "trackio", "experiments.report.trackio_tracker.Trackio"),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(name, package, path, tmp_path, monkeypatch):
    """Without the package, starting the tracker says what to install."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    setting = {"project": "test"} if name == "trackio" else {"folder": str(tmp_path)}
    with pytest.raises(ValueError, match=rf"tracker={name} needs the package {package}: pip install -e '\.\[{name}\]'"):
        instantiate({"_target_": path, **setting}).start({})


def test_a_closed_tracker_says_so(tmp_path):
    """Use before start is an error that says what to do, and so is an unknown mode."""
    for tracker in (tracking.Wandb("test", tmp_path), CSV(tmp_path)):
        with pytest.raises(RuntimeError, match=r"call start\(config\) first"):
            tracker.rows([ROW])
    with pytest.raises(ValueError, match=r"tracker\.mode='on': choose offline or online"):
        tracking.Wandb("test", tmp_path, mode="on")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "tracker").glob("*.yaml")))
def test_shipped_configurations_instantiate(name, tmp_path):
    """Every argument of a tracker is in its file and none else; the files build trackers, wandb's offline."""
    config = OmegaConf.load(ROOT / "conf" / "tracker" / f"{name}.yaml")
    kind = get_class(config["_target_"])
    assert kind.__name__.lower() == name
    parameters = {} if kind is tracking.Local else inspect.signature(kind).parameters
    assert {*config} == {*parameters, "_target_"}
    if name == "wandb":
        assert config["mode"] == "offline"
    if "folder" in config:
        config["folder"] = str(tmp_path)
    tracker = instantiate(config)
    assert isinstance(tracker, kind)


def test_wandb_is_imported_in_one_file_and_only_when_used():
    """No other file imports wandb, and importing the tracking module does not."""
    importing = {}
    for path in [*ROOT.glob("*.py"), *(ROOT / "attribution").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
            if any(str(module).split(".")[0] == "wandb" for module in names):
                importing.setdefault(path.relative_to(ROOT).as_posix(), []).append(getattr(node, "col_offset", 0))
    assert set(importing) == {"experiments/report/trackers.py"}
    assert min(importing["experiments/report/trackers.py"]) > 0
