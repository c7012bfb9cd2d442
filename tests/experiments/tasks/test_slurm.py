"""The template for job arrays: its script anywhere, and a preempted array where Slurm runs."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.experiments.tasks.test_cli import MAIN, ROOT, process, rows, written

TEMPLATE = ROOT / "docs" / "slurm" / "array.sbatch"

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")


@pytest.fixture
def script(tmp_path):
    """Starts the template with stand-ins for ``python`` and ``scontrol``, which write what they are called with to ``calls``."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    programs = {
        "python": 'trap "$ON_TERM" TERM\necho "python $*" >>calls\nfor _ in $(seq "$TENTHS"); do sleep 0.1; done\nexit "$CODE"\n',
        "scontrol": 'echo "scontrol $*" >>calls\n',
    }
    for name, text in programs.items():
        (stand_ins / name).write_text(f"#!/bin/bash\n{text}")
        (stand_ins / name).chmod(0o755)
    started = []

    def start(*arguments: str, tenths: int, code: int = 0, ignores_signals: bool = False) -> subprocess.Popen:
        on_term = "" if ignores_signals else "echo stopped >>calls; exit 143"
        variables = {
            "TENTHS": str(tenths),
            "CODE": str(code),
            "ON_TERM": on_term,
            "SLURM_ARRAY_JOB_ID": "17",
            "SLURM_ARRAY_TASK_ID": "3",
        }
        environment = {**os.environ, **variables, "PATH": f"{stand_ins}:{os.environ['PATH']}"}
        started.append(subprocess.Popen(["bash", str(TEMPLATE), *arguments], cwd=tmp_path, env=environment))
        end = time.monotonic() + 30
        while not (tmp_path / "calls").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


@pytest.mark.parametrize("code", [0, 1])
def test_the_script_runs_its_arguments(script, tmp_path, code):
    """Claim: arguments arrive as they are, the exit code is that of the run, and a run that fails is not queued again."""
    assert script("task=work", "data.root=two words", tenths=1, code=code).wait(timeout=30) == code
    assert (tmp_path / "calls").read_text() == "python run.py task=work data.root=two words\n"


@pytest.mark.parametrize(("number", "again"), [(signal.SIGTERM, ""), (signal.SIGUSR1, "scontrol requeue 17_3\n")])
def test_the_script_passes_signals_on(script, tmp_path, number, again):
    """Claim: before a time limit and on preemption the run gets SIGTERM and time to stop; only the former queues it again."""
    started = script("task=work", tenths=300)
    started.send_signal(number)
    assert started.wait(timeout=30) == 143
    assert (tmp_path / "calls").read_text() == f"python run.py task=work\nstopped\n{again}"


def test_a_run_that_is_finished_is_not_queued_again(script, tmp_path):
    """Claim: a run that ends with success although the signal before the time limit came is done."""
    started = script("task=work", tenths=3, ignores_signals=True)
    started.send_signal(signal.SIGUSR1)
    assert started.wait(timeout=30) == 0
    assert (tmp_path / "calls").read_text() == "python run.py task=work\n"


def test_what_the_template_asks_of_slurm():
    """Claim: it is an array that is queued again, with a time limit, a signal before it and one log for all attempts."""
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", TEMPLATE.read_text(), re.MULTILINE))
    assert options.keys() >= {"array", "requeue", "time", "gpus-per-node", "cpus-per-task", "mem"}
    assert (options["signal"], options["open-mode"], options["output"]) == ("B:USR1@120", "append", "slurm-%A_%a.log")


def has_cluster() -> bool:
    """Whether Slurm is installed and its controller answers."""
    if not shutil.which("sbatch"):
        return False
    try:
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and bool(done.stdout.strip())


SETTINGS = [
    *MAIN,
    "trainer.steps=3000",
    "checkpoints.every=1000",
    "hardware.interval=100",
    "benchmark.steps=20",
    "benchmark.compare=[trak]",
    "workers=1",
    "threads=1",
]
"""A benchmark with some seconds of training."""


class Cluster:
    """Slurm, with the template submitted from the folder of run.py."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs: list[str] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"}
        self.environment = {**kept, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def command(self, *words: str) -> str:
        done = subprocess.run(words, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *options: str, settings: list[str]) -> str:
        """Submit the template on CPUs, and return the number of the job."""
        small = ("--gpus-per-node=0", "--cpus-per-task=1", "--mem=2G", "--time=00:20:00", f"--output={self.folder}/%a.log")
        places = [f"store.root={self.folder / 'store'}", f"hydra.run.dir={self.folder / 'out'}"]
        self.jobs.append(self.command("sbatch", "--parsable", *small, *options, str(TEMPLATE), *settings, *places))
        return self.jobs[-1]

    def state(self, job: str) -> str:
        """``RUNNING``, ``PENDING``, ...: of a task of an array, or of all its tasks that are not done; empty if it is done."""
        return self.command("squeue", "-h", "-r", "-j", job, "-o", "%T")

    def restarts(self, task: str) -> int:
        found = re.search(r"Restarts=(\d+)", self.command("scontrol", "show", "job", task))
        assert found
        return int(found[1])

    def wait(self, reached, what: str, seconds: float = 600.0) -> None:
        end = time.monotonic() + seconds
        while not reached():
            logs = "\n".join(f"{path.name}: {path.read_text()}" for path in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < end, f"waited for {what}\n{self.command('squeue')}\n{logs}"
            time.sleep(0.2)

    def run_again(self, task: str) -> None:
        """Wait until a task was queued again, and start it before the two minutes are over that Slurm lets such tasks wait.

        Slurm still has to hear of the end of the first attempt, which it would take for that of the second.
        """
        self.wait(lambda: self.restarts(task) == 1, f"{task} to be queued again")
        self.wait(lambda: self.state(task) in ("PENDING", "RUNNING"), f"{task} to end its first attempt")
        if self.state(task) == "PENDING":
            self.command("scontrol", "update", f"JobId={task}", "StartTime=now+10")


@pytest.mark.slow
def test_a_preempted_array(tmp_path):
    """Claim: an array divides a benchmark, and a task that is preempted while it trains, and one at its time limit, continue.

    The run that reports afterwards finds everything in the store, which has the same bytes as that of a run without Slurm.
    """
    if not has_cluster():
        pytest.skip("needs Slurm: sbatch is missing, or no controller answers")
    cluster = Cluster(tmp_path)
    job = cluster.submit("--array=0-1%1", settings=["task=work", *SETTINGS])
    try:
        follow_array(cluster, job)
        computed = written(tmp_path / "store")
        report = cluster.submit("--array=0", f"--dependency=afterok:{job}", f"--output={tmp_path}/report.log", settings=SETTINGS)
        cluster.wait(lambda: not cluster.state(report), "the report")
    finally:
        cluster.command("scancel", *cluster.jobs)
    assert written(tmp_path / "store") == computed
    (tmp_path / "alone").mkdir()
    alone = process(tmp_path / "alone", *SETTINGS, f"hydra.run.dir={tmp_path / 'alone' / 'out'}")
    assert alone.returncode == 0, alone.stderr
    assert results(tmp_path / "store") == results(tmp_path / "alone" / "store")
    assert numbers(tmp_path / "out") == numbers(tmp_path / "alone" / "out")


def follow_array(cluster: Cluster, job: str) -> None:
    """Requeue the first task, which trains, as a preemption does; send the second the signal before a time limit."""
    first, second = f"{job}_0", f"{job}_1"
    training = "TrainedModel/*.part/progress/*.ckpt"
    cluster.wait(lambda: list((cluster.folder / "store").glob(training)), "training")
    cluster.command("scontrol", "update", f"JobId={job}", "ArrayTaskThrottle=2")
    cluster.command("scontrol", "requeue", first)
    assert list((cluster.folder / "store").glob(training)), "training has ended before the task was preempted"
    cluster.run_again(first)
    assert "stopped by SIGTERM" in (cluster.folder / "0.log").read_text()
    cluster.wait(lambda: cluster.state(second) == "RUNNING" and (cluster.folder / "1.log").exists(), "the second task")
    time.sleep(3)  # the program has started, and handles signals
    cluster.command("scancel", "--batch", "--signal=USR1", second)
    cluster.run_again(second)
    assert "stopped by SIGTERM" in (cluster.folder / "1.log").read_text()
    cluster.wait(lambda: not cluster.state(job), "the array")
    assert [cluster.restarts(task) for task in (first, second)] == [1, 1]  # neither takes the other along


def results(store: Path) -> dict[str, bytes]:
    """The content of every file of every node, except when and where it was computed."""
    files = {str(path.relative_to(store)): path for path in store.rglob("*") if path.is_file() and path.suffix != ".lock"}
    return {name: path.read_bytes() for name, path in files.items() if path.name not in ("node.json", "manifest.json")}


def numbers(folder: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "command"} for row in rows(folder)]
