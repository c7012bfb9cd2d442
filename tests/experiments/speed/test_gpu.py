"""The suite of ``task=speed task.suite=gpu``, on the CPU at a tiny size. Times are not tested."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from attribution.execution import Execution
from experiments.report.row import Row
from experiments.speed.gpu import DeviceSuite
from tests.worlds import OBJECTIVE, UNET

ROOT = Path(__file__).parents[3]
SMALL: Any = functools.partial(UNET, dropout=0.0)
PRECISIONS = ["float32", "TF32", "bf16", "bf16, channels_last"]
PASSES = {f"attribution, float32: {name}" for name in ("K-FAC factors", "K-FAC scoring, 50 queries", "TRAK features, sjlt 2048")}


def suite(**changes: Any) -> DeviceSuite:
    sizes = {"batch_size": 2, "steps": 1, "group": 2, "draws": 2, "repeats": 1}
    return DeviceSuite(**{"model": "unet_digits", "data": "digits", **sizes, **changes})


def rows(**changes: Any) -> list[Row]:
    adam: Any = functools.partial(torch.optim.Adam, lr=1e-3)
    execution = Execution(device="cpu", batch_size=4, pass_memory=1e9)
    return suite(**changes).rows(SMALL, (1, 8, 8), OBJECTIVE, adam, execution)


@pytest.mark.slow
def test_rows_of_the_suite():
    """Claim: every precision has the times of training and of both modes of retraining, every pass of attribution its own time,
    and all have the planned memory; measured peaks are left out on a CPU."""
    found = {(row.subject.name, row.metric): row.estimate.value for row in rows()}
    assert all(value > 0 for value in found.values())
    times = ["training, ms a step", "retraining alone, ms a step", "retraining 2 together, ms a step and model", "planned, GB"]
    expected = {(name, metric) for name in PRECISIONS for metric in times}
    expected |= {(name, metric) for name in PASSES for metric in ("µs per image and draw", "planned, GB")}
    assert found.keys() == expected


@pytest.mark.slow
def test_what_is_left_out_and_what_is_refused():
    """Claim: without a group nothing is retrained together; a compiler adds compiled training only; numbers are checked."""
    found = {(row.subject.name, row.metric) for row in rows(group=0, compiler="eager")}
    assert not any("together" in metric for _, metric in found)
    compiled = {metric for name, metric in found if name == "bf16, channels_last, eager"}
    assert compiled == {"training, ms a step", "planned, GB"}
    with pytest.raises(ValueError, match=r"DeviceSuite\.steps=0"):
        suite(steps=0)
    with pytest.raises(ValueError, match=r"DeviceSuite\.compiler=gcc: must be null or one of"):
        suite(compiler="gcc")


@pytest.mark.slow
def test_the_suite_runs_from_the_command_line(tmp_path):
    """Claim: without a GPU it says that these are times of the CPU, and its rows name the images of the suite."""
    sizes = ["model=unet_digits", "data=digits", "batch_size=2", "steps=1", "draws=2", "repeats=1"]
    places = [f"hydra.run.dir={tmp_path / 'run'}", f"store.root={tmp_path / 'store'}", "execution.device=cpu"]
    command = [sys.executable, "run.py", "task=speed", "task.suite=gpu", *(f"task.gpu.{size}" for size in sizes), *places]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "no GPU is used, so these are times of the CPU" in run.stdout
    lines = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert {line["estimator"] for line in lines} == {*PRECISIONS, *PASSES}
    assert {line["data"] for line in lines} == {"digits"}
