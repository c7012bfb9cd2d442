"""The suite of ``task=speed task.suite=scaling`` at tiny sizes. Times are not tested."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import figures
from experiments.speed.scaling import AXES, PAPER, Law, Measured, ScalingSuite, laws, rows

ROOT = Path(__file__).parents[3]
SIZES = {"images": [8, 16, 32], "queries": [2, 4], "draws": [2], "widths": [1]}


def points() -> list[Measured]:
    """Time 1 + N/8, memory 3, disk 2 N for two estimators, over three N and two Q."""
    found = []
    for name in ("kfac", "trak"):
        for images, queries in ((8, 2), (16, 2), (32, 2), (8, 4)):
            sizes = {"N": images, "Q": queries, "K": 2, "P": 100}
            planned = {"planned_memory": 1e6, "planned_disk": 1e6}
            found.append(Measured(name, sizes, 10, 1 + images / 8, 3e6, 2e6 * images, **planned))
    return found


def test_points_of_the_suite():
    """Claim: the smallest sizes once, then one size at a time larger."""
    suite = ScalingSuite(estimators=["kfac"], **SIZES)
    found = [(one.images, one.queries, one.draws, one.widths) for one in suite.sizes()]
    assert found == [(8, 2, 2, 1), (16, 2, 2, 1), (32, 2, 2, 1), (8, 4, 2, 1)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": []}, "ScalingSuite.images"),
        ({"queries": [4, 2]}, "must ascend"),
        ({"draws": [0]}, "at least 1"),
        ({"widths": [1.5]}, "whole numbers"),
        ({"estimators": []}, "must be a list of estimators"),
    ],
)
def test_suites_that_are_refused(changes, message):
    """Claim: every list has whole numbers that ascend, and there is an estimator."""
    with pytest.raises(ValueError, match=message):
        ScalingSuite(**{"estimators": ["kfac"], **SIZES, **changes})


def test_laws_are_fitted_to_three_sizes_or_more():
    """Claim: of the sizes that grow alone, those with three values have a law for each metric; it goes through an affine cost."""
    found = {(law.estimator, law.metric, law.axis): law for law in laws(points())}
    metrics = ("seconds", "memory, MB", "disk, MB")
    assert found.keys() == {(name, metric, "N") for name in ("kfac", "trak") for metric in metrics}
    time = found["kfac", "seconds", "N"]
    assert time.at(PAPER["N"]) == pytest.approx(1 + PAPER["N"] / 8)
    assert time.growth.error < 1e-9
    shown = {
        (row.subject.settings["quantity"], row.metric): row.estimate.value
        for row in rows(points())
        if row.benchmark == "scaling_laws"
    }
    assert shown["disk, MB", "exponent"] == pytest.approx(1)
    assert shown["memory, MB", "exponent"] == pytest.approx(0, abs=1e-9)
    assert shown["memory, MB", "extrapolated to the paper's size"] == pytest.approx(3)


def test_a_bad_fit_is_not_extrapolated():
    """Claim: values that follow no law within 15 % have no value at the paper's size, and no line in the figure."""
    law = Law("trak", "disk, MB", "N", [1, 2, 3], [1.0, 10.0, 1.0])
    assert law.growth.error > 0.15
    assert math.isnan({row.metric: row.estimate.value for row in law.rows()}["extrapolated to the paper's size"])
    assert [np.size(line.get_xdata()) for line in figures.scaling([law], AXES, PAPER).axes[0].get_lines()] == [3]


def test_the_figure_has_a_panel_for_each_metric_and_growing_size():
    """Claim: sizes that do not grow have no column; the value at the paper's size is an open marker, which the legend names."""
    figure = figures.scaling(laws(points()), AXES, PAPER)
    assert len(figure.axes) == 3
    assert [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()] == [AXES["N"]]
    assert "extrapolated" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.slow
def test_the_suite_runs_from_the_command_line(tmp_path):
    """Claim: all points are measured in processes of their own, and reported with their laws and a figure; nothing else remains."""
    sizes = {**SIZES, "queries": [2]}
    lists = [f"task.scaling.{name}=[{','.join(map(str, values))}]" for name, values in sizes.items()]
    settings = ["task=speed", "task.suite=scaling", "task.scaling.estimators=[trak]", *lists, "hydra.run.dir=out"]
    command = [sys.executable, str(ROOT / "run.py"), *settings]
    run = subprocess.run(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    written = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    passes = {r["settings"]["N"]: r["value"] for r in written if r["metric"] == "passes"}
    assert passes == {8: 20, 16: 36, 32: 68}  # K (N + Q): the Gram matrix and the scores share those of training images
    measured = [row for row in written if row["benchmark"] == "scaling"]
    assert all(row["value"] > 0 for row in measured)
    assert (tmp_path / "out" / "scaling.png").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
