"""Training runs of several processes on the command line: by torchrun, and by ``hardware.strategy=ddp``."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.experiments.tasks.test_cli import FINAL, ROOT, SMALL_BENCHMARK

pytestmark = pytest.mark.slow

TRAIN = [*FINAL, "task=train", "workers=1", "model.dropout=0"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(folder: Path, *arguments: str, launcher: tuple[str, ...] | list[str] = ()) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *launcher, str(ROOT / "run.py"), *arguments, f"store.root={folder / 'store'}", "hydra.run.dir=out"]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen, seconds: float = 200.0) -> str:
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        if process.poll() is None:  # those of torchrun are in sessions of their own
            for child in (process.pid, *processes(lambda _, parent: parent == process.pid)):
                os.kill(child, signal.SIGKILL)
    return output


def records(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "store" / "TrainedModel").glob("*/record.json"))


def visits(record: Path) -> bytes:
    return np.load(record / "visits.npy").tobytes()


def last(record: Path) -> dict[str, torch.Tensor]:
    return load_file(record / "checkpoints" / "20.safetensors")


def processes(condition: Callable[[dict[str, str], int], bool]) -> list[int]:
    """The processes of this machine with an environment and a parent for which the condition holds."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                lines = (path / "environ").read_bytes().decode(errors="replace").split("\0")
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if condition(dict(line.split("=", 1) for line in lines if "=" in line), parent):
                found.append(int(path.name))
    return found


def wait_for(condition: Callable[[], object], seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.02)


@pytest.mark.parametrize("how", ["torchrun", "ddp"])
def test_the_model_of_one_process(tmp_path, how):
    """Claim: the same record to the bit, parameters to rounding, one folder of results, and every process ends."""
    settings = [*TRAIN, "trainer.precision=64-true", "trainer.ema=0.9"]
    one = start(tmp_path / "one", *settings)
    several = {"torchrun": ([], TORCHRUN), "ddp": (["hardware.strategy=ddp", "hardware.devices=2"], [])}[how]
    two = start(tmp_path / "two", *settings, *several[0], launcher=several[1])
    outputs = finish(one), finish(two)
    assert (one.returncode, two.returncode) == (0, 0), outputs
    assert outputs[1].count("index.html") == 1
    (first,), (second,) = records(tmp_path / "one"), records(tmp_path / "two")
    assert first.name == second.name
    assert json.loads((second / "record.json").read_text())["processes"] == 2
    assert visits(first) == visits(second)
    for name, tensor in last(first).items():
        torch.testing.assert_close(last(second)[name], tensor, rtol=1e-8, atol=1e-10)
    averages = [load_file(record / "average.safetensors") for record in (first, second)]
    for name, tensor in averages[0].items():
        torch.testing.assert_close(averages[1][name], tensor, rtol=1e-8, atol=1e-10)


def test_torchrun_trains_several_models_and_then_one_process_goes_on(tmp_path):
    """Claim: each model of an ensemble is trained by all processes, the rest by one; a second run trains nothing and ends too."""
    settings = [*FINAL, *SMALL_BENCHMARK, "benchmark.compare=[]", "estimator=trak", "estimator.models=2", "estimator.draws.n=2"]
    for _ in range(2):
        run = start(tmp_path, *settings, launcher=TORCHRUN)
        output = finish(run)
        assert run.returncode == 0, output
        assert output.count("index.html") == 1
    found = records(tmp_path)
    assert len(found) == 2
    assert all(json.loads((record / "record.json").read_text())["processes"] == 2 for record in found)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_of_torchrun_that_is_killed_ends_the_run(tmp_path, rank):
    """Claim: soon, with an error; the next run continues from the last save, and ends with the bits of a run without kills."""
    settings = [*TRAIN, "trainer.steps=400", "checkpoints.every=20", "hardware.interval=20"]
    whole = start(tmp_path / "whole", *settings, launcher=TORCHRUN)
    output = finish(whole)
    assert whole.returncode == 0, output
    killed = start(tmp_path / "killed", *settings, launcher=TORCHRUN)
    wait_for(lambda: [*(tmp_path / "killed" / "store").rglob("progress/0*.json")])
    (victim,) = processes(lambda environment, parent: parent == killed.pid and environment.get("RANK") == rank)
    os.kill(victim, signal.SIGKILL)
    begin = time.monotonic()
    output = finish(killed, 90)
    assert killed.returncode != 0, output
    assert time.monotonic() - begin < 60
    assert records(tmp_path / "killed") == []
    again = start(tmp_path / "killed", *settings, launcher=TORCHRUN)
    output = finish(again)
    assert again.returncode == 0, output
    (one,), (other,) = records(tmp_path / "whole"), records(tmp_path / "killed")
    assert visits(one) == visits(other)
    assert all(torch.equal(last(one)[name], tensor) for name, tensor in last(other).items())


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Claim: after SIGKILL of the process that started them, those of ddp end within seconds."""
    run = start(tmp_path, *TRAIN, "trainer.steps=2000", "hardware.strategy=ddp", "hardware.devices=2", "hardware.interval=20")
    wait_for(lambda: [*(tmp_path / "store").rglob("progress/0*.json")])
    (other,) = processes(lambda environment, parent: parent == run.pid)
    run.kill()
    run.communicate()
    wait_for(lambda: not Path(f"/proc/{other}").exists(), 20)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("workers=2", "workers=2: under torchrun"), ("hardware.devices=3", "hardware.devices=3: torchrun started 2")],
)
def test_settings_that_torchrun_decides(tmp_path, setting, message):
    """Claim: another number of devices and more workers are refused by a sentence."""
    settings = [*FINAL, *SMALL_BENCHMARK, "benchmark.compare=[]", "estimator=random", setting]
    run = start(tmp_path, *settings, launcher=TORCHRUN)
    output = finish(run)
    assert run.returncode != 0
    assert message in output
