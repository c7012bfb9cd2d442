"""The memory that a plan promises, beside what runs take."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
RUN = [
    "data.n_train=24",
    "data.n_validation=16",
    "model.block_out_channels=[128,192]",
    "trainer.steps=6",
    "trainer.batch_size=8",
    "checkpoints.every=3",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
    "execution.pass_memory=3e8",
    "samples.n=4",
    "diffusion.sampler.steps=5",
    "benchmark=targeted",
    "benchmark.n=2",
    "benchmark.k=[4]",
    "benchmark.queries.validation.n=6",
    "benchmark.queries.generated.n=2",
    "workers=1",
    "benchmark.compare=[]",
    "estimator.draws.n=4",
]
FAMILIES = {
    "kfac": ["estimator=kfac", "curvature.draws.n=2", "model.block_out_channels=[96,128]"],  # eigendecompositions take long
    "trak": ["estimator=trak", "projection=none"],
    "retrac": ["estimator=retrac", "estimator.checkpoints=2"],
}


def started(folder: Path, *arguments: str) -> tuple[str, float]:
    """The output of ``python run.py``, and the most memory that it held, in bytes.

    The store measures the peak of every node, and therefore sets the peak back, also that of ``resource.getrusage``. So the peak is
    looked at all the time.
    """
    command = [sys.executable, "run.py", *RUN, f"store.root={folder / 'store'}", f"hydra.run.dir={folder / 'out'}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "150"}
    output, peak = folder / "output.txt", 0
    with (
        output.open("w") as file,
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT) as run,
    ):
        while run.poll() is None:
            if found := re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{run.pid}/status").read_text()):
                peak = max(peak, int(found[1]))
            time.sleep(0.02)
    assert run.returncode == 0, output.read_text()
    return output.read_text(), peak * 1024.0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("family", FAMILIES)
def test_runs_take_the_memory_of_their_plan(tmp_path, family):
    """Claim: the largest memory of a plan is hardly less than what the run takes, and less than half more."""
    plan, _ = started(tmp_path, *FAMILIES[family], "task=plan")
    number, unit = re.search(r"│ total .*?│ +([\d.]+) (B|kB|MB|GB) │", plan).groups()  # pyright: ignore[reportOptionalMemberAccess]
    planned = float(number) * UNITS[unit]
    _, taken = started(tmp_path, *FAMILIES[family])
    assert 0.9 * taken < planned < 1.5 * taken
    assert taken > 1e9  # an empty process takes about 0.6 GB
