"""Devices other than the CPU, by a stand-in: no computation mixes devices, float64 stays off a device that has none, and the host
seldom waits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device_checks import CHECKS

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results() -> dict[str, str]:
    """The name of each check → its traceback, from a process of its own, because the stand-in cannot be unregistered."""
    # An error in the backward pass of the stand-in aborts the process; the fault handler then says where.
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.device_checks"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr[-5000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("check", CHECKS)
def test_results_are_those_of_the_cpu_without_float64_on_the_device(results, check):
    """Claim: the device refuses float64 and tensors of the CPU, everything runs on it, and results equal the CPU's to rounding."""
    assert not results[check], results[check]


BOUNDS = {
    "training": 0,
    "retraining alone, 2 models": 0,
    "retraining together, 2 models": 0,
    "recursion of LiSSA": 1 / 16,
    "gradients": 0,
    "K-FAC factors": 0,
    "EK-FAC eigenvalues": 0,
    "measuring": 0,
    "scores of K-FAC": 0.5,
    "scores of TRAK": 0.5,
    "scores of D-TRAK": 0.5,
    "scores of TracIn": 0.5,
    "scores of ReTrac": 0.5,
}
"""The largest number of waits in a step or a pass: once for each block of per-example gradients, of two passes, in scores."""


def test_the_host_waits_for_the_device_no_more_often_than_needed():
    """Claim: what a step or a pass makes the host wait for is bounded, and docs/speed.md has the counts."""
    run = subprocess.run([sys.executable, "-m", "tests.device_counts"], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr[-5000:]
    rows = [line for line in run.stdout.splitlines() if line.startswith("| ")]
    counts = {name: float(each.split()[0]) for name, each in (line.strip("| ").split(" | ") for line in rows)}
    assert counts.keys() == BOUNDS.keys()
    assert {name: each for name, each in counts.items() if each > BOUNDS[name]} == {}
    documented = (ROOT / "docs" / "speed.md").read_text()
    assert [row for row in rows if row not in documented] == []
