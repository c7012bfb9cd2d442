"""After a network's code has changed, nothing that was stored for the old code is given out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x, t):
        return self.b(torch.relu(self.n(self.a(x))))
"""
SETTINGS = ["workers=1", "data.n_train=32", "data.n_validation=20", "trainer.steps=20", "trainer.batch_size=8"]
SETTINGS += ["checkpoints.every=5", "samples.n=4", "diffusion.sampler.steps=5", "queries.n=2", "estimator.draws.n=4"]
SETTINGS += ["model=mynet", "task=attribute", "estimator=tracin"]


def scores(folder: Path, number: int) -> tuple[bytes, bool]:
    """The scores of one run from the command line, and whether it announced work."""
    out = folder / str(number)
    places = [f"--config-dir={folder / 'conf'}", f"store.root={folder / 'store'}", f"hydra.run.dir={out}"]
    run = subprocess.run(
        [sys.executable, "run.py", *places, *SETTINGS],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder / "lib")},
        capture_output=True,
        text=True,
        check=True,
    )
    return (out / "scores" / "scores.npy").read_bytes(), "to compute" in run.stdout


@pytest.mark.slow
def test_scores_of_a_changed_network_are_computed_anew(tmp_path):
    """Claim: an edited comment finds the stored scores, an edited ``forward`` trains another model."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mynet.yaml").write_text("_target_: mynets.Net\n_partial_: true\n")
    file = tmp_path / "lib" / "mynets.py"
    file.write_text(NET)
    first, computed = scores(tmp_path, 1)
    assert computed
    file.write_text(NET.replace("class Net", "# a network\nclass Net"))
    assert scores(tmp_path, 2) == (first, False)
    file.write_text(NET.replace("relu", "tanh"))
    changed, computed = scores(tmp_path, 3)
    assert computed
    assert changed != first
