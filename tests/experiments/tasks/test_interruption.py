"""Signals end a run with an exit code of their own, one line, and nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.tasks.test_cli import FINAL, MAIN, ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

PROGRAM = """
import subprocess, sys, time
from experiments.tasks import interruption
interruption.install()
{setup}
print("ready", flush=True)
with interruption.interruptible():
    {body}
"""


def started(folder: Path, body: str, setup: str = "pass") -> subprocess.Popen:
    """A program that handles signals while it does ``body``."""
    text = PROGRAM.format(body=body.replace("\n", "\n    "), setup=setup)
    text = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n{text}"  # the tests may run under nohup
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_exit_codes(tmp_path, number, code):
    """Claim: the exit code is 128 + the signal's number, and one line says what is kept and how to continue."""
    process = started(tmp_path, "try: time.sleep(60)\nfinally: print('cleaned')")
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert out == "cleaned\n"
    assert re.fullmatch(rf"stopped by {number.name}: .*kept in the store; run the same command again to continue\n", err)


SWALLOWED = """
class Slow:
    def __del__(self):
        time.sleep(1)
Slow()
time.sleep(60)
"""


@pytest.mark.parametrize(
    "body",
    [
        SWALLOWED,
        "try: time.sleep(60)\nexcept BaseException: raise ImportError('initialization failed')",
        "try: time.sleep(60)\nexcept BaseException as error: raise ValueError from error",
    ],
)
def test_an_exception_that_is_lost_on_its_way(tmp_path, body):
    """Claim: a signal ends the run also if Python drops its exception in ``__del__``, or if a module makes another of it."""
    process = started(tmp_path, body)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143
    assert err.count("stopped by SIGTERM") == 1
    assert "Traceback" not in err


def test_a_second_signal_ends_at_once(tmp_path):
    """Claim: after a second Ctrl-C nothing is waited for, and processes that the run started end with it."""
    body = "try: time.sleep(60)\nfinally: time.sleep(60)"
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); interruption.children.append(child)"
    process = started(tmp_path, body, f"{child}; print(child.pid, file=sys.stderr, flush=True)")
    process.send_signal(signal.SIGINT)
    time.sleep(0.8)
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)  # and so the child has closed stderr
    assert time.monotonic() - start < 2
    assert process.returncode == 130
    assert err.count("stopped by SIGINT") == 1


def test_signals_in_quick_succession_are_one(tmp_path):
    """Claim: ``timeout`` signals the process and its group; the run still cleans up."""
    process = started(tmp_path, "try: time.sleep(60)\nfinally: time.sleep(0.4); print('cleaned')")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.count("stopped")) == (143, "cleaned\n", 1)


def test_a_run_that_does_not_stop_is_ended(tmp_path):
    """Claim: there is a time limit, which is shorter than Slurm's."""
    process = started(tmp_path, "try: time.sleep(60)\nfinally: time.sleep(60)", "interruption.SECONDS_TO_STOP = 0.5")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 143
    assert err.count("stopped by SIGTERM") == 1


def test_nohup(tmp_path):
    """Claim: a run under nohup survives the end of its terminal."""
    text = PROGRAM.format(body="time.sleep(1.5); print('done')", setup="pass")
    program = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{text}"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10)[0] == "done\n"
    assert process.returncode == 0


class Run:
    """A run with a process group of its own."""

    def __init__(self, folder: Path, *arguments: str):
        self.folder, self.log = folder, folder / "log"
        command = [sys.executable, str(ROOT / "run.py"), *arguments, f"store.root={folder / 'store'}"]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, start_new_session=True)

    def wait_for(self, pattern: str) -> None:
        """Wait until the store has a file that matches ``pattern``."""
        limit = time.monotonic() + 120
        while not list((self.folder / "store").glob(pattern)):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.05)

    def signal(self, number: int, group: bool = False) -> str:
        """Send a signal, check that the run and its processes end as they should, and return the line."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        code = self.process.wait(timeout=30)
        said = self.log.read_text()
        assert code == 128 + number, said
        assert "Traceback" not in said
        assert "rror" not in said
        assert "worker failed" not in said
        (line,) = re.findall(r"^stopped by .*$", said, re.MULTILINE)
        deadline = time.monotonic() + 5
        while self._left():
            assert time.monotonic() < deadline, f"processes are left: {self._left()}"
            time.sleep(0.1)
        return line

    def _left(self) -> list[str]:
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        return [line for line in listed.splitlines() if str(self.folder / "store") in line]


LONG = [*FINAL, "trainer.steps=100000", "task=train", "workers=1"]


@pytest.mark.parametrize(
    ("number", "settings"),
    [
        (signal.SIGTERM, []),
        (signal.SIGINT, []),
        (signal.SIGTERM, ["-m", "seed=0,1"]),
        pytest.param(signal.SIGTERM, ["hardware.devices=2"], marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, ["hardware.devices=2", "hardware.strategy=ddp"], marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_training_is_interrupted(tmp_path, number, settings):
    """Claim: Lightning does not hide a signal, nor does Hydra in a sweep; processes of ddp_spawn end as well."""
    run = Run(tmp_path, *settings, *LONG)
    run.wait_for("TrainedModel/*.part/progress/*.ckpt")
    assert re.match(rf"stopped by {signal.Signals(number).name} during training", run.signal(number))


@pytest.mark.slow
def test_workers_end_with_the_run(tmp_path):
    """Claim: a signal to the run, or to its process group, ends the workers, and says it once."""
    run = Run(tmp_path, *MAIN, "trainer.steps=500", "workers=2", f"hydra.run.dir={tmp_path / 'out'}")
    run.wait_for("*/*.part/progress*")
    run.signal(signal.SIGINT, group=True)


@pytest.mark.slow
def test_signals_at_random_times(tmp_path):
    """Claim: at any moment, also during imports, a signal ends a run with two workers as it should."""
    rng = np.random.default_rng(0)
    for i, patience in enumerate(np.linspace(0.3, 12, 6)):
        (tmp_path / str(i)).mkdir()
        run = Run(tmp_path / str(i), *MAIN, "trainer.steps=100", "workers=2", f"hydra.run.dir={tmp_path / str(i) / 'out'}")
        try:
            run.process.wait(timeout=float(patience))
        except subprocess.TimeoutExpired:
            run.signal(int(rng.choice([signal.SIGINT, signal.SIGTERM])), group=bool(rng.integers(2)))
