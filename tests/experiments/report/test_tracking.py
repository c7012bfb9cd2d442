"""Trackers: the default leaves nothing, wandb really runs, offline."""

import ast
import inspect
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import wandb
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from experiments.report import trackers as tracking
from experiments.report.row import Estimate, Row, Subject

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


def use(tracker: tracking.Tracker, folder: Path) -> str:
    """A whole life: start, train, rows twice, a figure, a curve, finish."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    tracker.start({"estimator": {"draws": {"n": 10}}, "seed": 0})
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


def test_wandb_runs_offline_and_silently(tmp_path, monkeypatch, capfd):
    """A real offline run holds configuration, training curve, rows, figure and curve; nothing reaches the terminal."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    capfd.readouterr()
    words = use(tracking.Wandb("test", tmp_path / "out"), tmp_path)
    printed = capfd.readouterr()
    assert "wandb" not in printed.out + printed.err
    wandb.teardown()  # what a process does at its end: until then its last records may be on their way to the file
    [run_file] = (tmp_path / "out" / "wandb").glob("offline-run-*/run-*.wandb")
    assert words == f"to upload: wandb sync {run_file.parent}"
    text = run_file.read_bytes().decode("utf-8", errors="replace")  # records of plain protobuf: names stand in it as they are
    names = ("unet/loss", "trainer/global_step", "training/lr", "training/step", "table-file", "image-file", '{"draws":{"n":10}}')
    numbers = ("targeted/retrac/share@10", "targeted/retrac/share@10/validation")
    assert [name for name in (*names, *numbers) if name not in text] == []
    assert "share@10/generated" not in text  # a number that is not known is no zero
    tables = [json.loads(path.read_text()) for path in (run_file.parent / "files" / "media" / "table").iterdir()]
    assert sorted(len(table["data"]) for table in tables) == [1, 3]
    assert list((run_file.parent / "files" / "media" / "images").iterdir())


def test_a_closed_tracker_says_so(tmp_path):
    """Use before start is an error that says what to do, and so is an unknown mode."""
    with pytest.raises(RuntimeError, match=r"call start\(config\) first"):
        tracking.Wandb("test", tmp_path).rows([ROW])
    with pytest.raises(ValueError, match=r"tracker\.mode='on': choose offline or online"):
        tracking.Wandb("test", tmp_path, mode="on")


def test_summary_names():
    """Benchmark, estimator and metric; kinds of queries do not overwrite each other."""
    assert tracking.summary_name(ROW) == "targeted/retrac/share@10"
    assert tracking.summary_name(replace(ROW, queries="generated")) == "targeted/retrac/share@10/generated"


@pytest.mark.parametrize("name", ["local", "wandb"])
def test_shipped_configurations_instantiate(name, tmp_path):
    """Every argument of a tracker is in its file and none else; the files build trackers, wandb's offline."""
    config = OmegaConf.load(ROOT / "conf" / "tracker" / f"{name}.yaml")
    kind = getattr(tracking, name.capitalize())
    parameters = inspect.signature(kind.__init__).parameters if kind is tracking.Wandb else {"self": None}
    assert {*config, "self"} == {*parameters, "_target_"}
    if name == "wandb":
        assert config["mode"] == "offline"
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
