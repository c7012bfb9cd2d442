"""Devices other than the CPU, by a stand-in: no computation mixes devices, and float64 stays off a device that has none."""

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
