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

from tests import forked
from tests.experiments.tasks.test_cli import FINAL, ROOT, SMALL_BENCHMARK, run

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
    return load_file(max((record / "checkpoints").iterdir(), key=lambda path: int(path.stem)))


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


def test_the_model_of_one_process(tmp_path):
    """Claim: the same record to the bit, parameters to rounding, one folder of results, and every process ends; by both ways."""
    settings = [*TRAIN, "trainer.precision=64-true", "trainer.ema=0.9"]
    (tmp_path / "one").mkdir()
    run(tmp_path / "one", *settings, "hydra.run.dir=out")
    (first,) = records(tmp_path / "one")
    for how, added, launcher in (("torchrun", [], TORCHRUN), ("ddp", ["hardware.strategy=ddp", "hardware.devices=2"], [])):
        two = start(tmp_path / how, *settings, *added, launcher=launcher)
        output = finish(two)
        assert two.returncode == 0, output
        assert output.count("index.html") == 1
        (second,) = records(tmp_path / how)
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
        started = start(tmp_path, *settings, launcher=TORCHRUN)
        output = finish(started)
        assert started.returncode == 0, output
        assert output.count("index.html") == 1
    found = records(tmp_path)
    assert len(found) == 2
    assert all(json.loads((record / "record.json").read_text())["processes"] == 2 for record in found)


def kill(rank: str, folder: Path, *settings: str) -> None:
    """Start a run and kill one of its processes after the next save; the run ends soon, with an error."""

    def saves() -> set[Path]:
        return {*(folder / "store").rglob("progress/0*.json")}

    before, started = saves(), start(folder, *settings, launcher=TORCHRUN)
    wait_for(lambda: saves() - before)
    (victim,) = processes(lambda environment, parent: (parent, environment.get("RANK")) == (started.pid, rank))
    os.kill(victim, signal.SIGKILL)
    begin = time.monotonic()
    output = finish(started, 90)
    assert started.returncode != 0, output
    assert time.monotonic() - begin < 60


def test_a_process_of_torchrun_that_is_killed_ends_the_run(tmp_path, monkeypatch):
    """Claim: soon, with an error, whichever is killed; the next run continues from the last save, and ends with the bits of a run
    without kills, also one of two processes without torchrun."""
    settings = [*TRAIN, "trainer.steps=200", "checkpoints.every=20", "hardware.interval=20"]
    (tmp_path / "whole").mkdir()
    with monkeypatch.context() as patch:
        forked.fork_ranks(patch)
        run(tmp_path / "whole", *settings, "hardware.strategy=ddp", "hardware.devices=2", "hydra.run.dir=out")
    for rank in ("0", "1"):
        kill(rank, tmp_path / "killed", *settings)
        assert records(tmp_path / "killed") == []
    again = start(tmp_path / "killed", *settings, launcher=TORCHRUN)
    output = finish(again)
    assert again.returncode == 0, output
    (one,), (other,) = records(tmp_path / "whole"), records(tmp_path / "killed")
    assert visits(one) == visits(other)
    assert all(torch.equal(last(one)[name], tensor) for name, tensor in last(other).items())


def test_processes_end_with_the_one_that_started_them(tmp_path):
    """Claim: after SIGKILL of the process that started them, those of ddp end within seconds."""
    settings = ["trainer.steps=2000", "hardware.strategy=ddp", "hardware.devices=2", "hardware.interval=20"]
    started = start(tmp_path, *TRAIN, *settings)
    wait_for(lambda: [*(tmp_path / "store").rglob("progress/0*.json")])
    (other,) = processes(lambda environment, parent: parent == started.pid)
    started.kill()
    started.communicate()
    wait_for(lambda: not Path(f"/proc/{other}").exists(), 20)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("workers=2", "workers=2: under torchrun"), ("hardware.devices=3", "hardware.devices=3: torchrun started 2")],
)
def test_settings_that_torchrun_decides(tmp_path, setting, message):
    """Claim: another number of devices and more workers are refused by a sentence."""
    settings = [*FINAL, *SMALL_BENCHMARK, "benchmark.compare=[]", "estimator=random", setting]
    started = start(tmp_path, *settings, launcher=TORCHRUN)
    output = finish(started)
    assert started.returncode != 0
    assert message in output
