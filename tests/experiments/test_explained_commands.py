"""docs/explained.md: its commands explain models that were trained elsewhere, on files made on the spot."""

import json
import re
import shlex
import shutil
from pathlib import Path

import diffusers
import pytest
import torch

from attribution.training.loop_recorder import LoopRecorder
from experiments.datasets import Digits
from experiments.tasks.composition import experiment_of
from tests.experiments import documents
from tests.experiments.datasets.fake_data import write_cifar
from tests.experiments.tasks.compositions import composed
from tests.experiments.tasks.test_cli import rows, run

PAGE = documents.ROOT / "docs" / "explained.md"
TINY = ("execution.device=cpu", "hardware.accelerator=cpu", "workers=1", "queries.n=2", "estimator.draws.n=2", "samples.n=2")
DIGITS = ("data.n_train=12", "data.n_validation=4", "model.block_out_channels=[8,8]")


def commands() -> list[str]:
    """The commands that explain a model."""
    found = [text for text in documents.run_commands(PAGE) if "task=attribute" in text]
    assert len(found) >= 7
    return found


def write_pipeline(folder: Path) -> None:
    """A DDPM pipeline of colour images, as save_pretrained writes it."""
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 4}
    network = diffusers.UNet2DModel(32, 3, 3, block_out_channels=(4, 4), layers_per_block=1, attention_head_dim=4, **blocks)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(folder)
    for name in "ab":
        shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder.parent / f"{name}.safetensors")


def write_digits_models(folder: Path) -> None:
    """Three checkpoints ``a.pt``, ``b.pt``, ``c.pt`` and the record of a loop of the digits' network."""
    experiment = experiment_of(composed(*DIGITS, "execution.device=cpu"))
    network, train, process = experiment.model(), Digits(n_train=12, n_validation=4).load().train, experiment.diffusion.process
    optimizer, recorder = torch.optim.SGD(network.parameters(), 0.01), LoopRecorder(folder / "record", every=1)
    for name in "abc":
        t = torch.randint(process.T, (12,))
        noise = recorder.noise_like(train.x0())
        recorder.before_step(train.ids(), t, learning_rate=0.01)
        output = network(process.add_noise(train.x0(), t + 1, noise), t).sample
        loss = (output - noise).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        recorder.after_step(network, loss)
        torch.save(network.state_dict(), folder / f"{name}.pt")
    recorder.save(network)


@pytest.mark.parametrize("arguments", commands())
@pytest.mark.slow
def test_commands_explain_given_models(arguments, tmp_path):
    """Claim: without training, from files to scores; the report has the model's losses and says what its reader must know."""
    words = shlex.split(arguments)
    if "data=cifar10" in words:
        write_cifar(tmp_path / "data")
        write_pipeline(tmp_path / "pipeline")
        small = ("data.n_train=8", "data.n_validation=4", "diffusion.sampler.steps=2")
    else:
        write_digits_models(tmp_path)
        small = DIGITS
    path = {"pipeline": "pipeline", "recorded": "record"}
    for name, folder in path.items():
        if f"explained={name}" in words:
            words = [re.sub("^explained.path=DIR$", f"explained.path={tmp_path / folder}", word) for word in words]
    words = [re.sub(r"^(model|diffusion.process).path=DIR$", rf"\1.path={tmp_path / 'pipeline'}", word) for word in words]
    words = [word.replace("=FILE", f"={tmp_path / 'c.pt'}").replace("=DIR", f"={tmp_path / 'data'}") for word in words]
    curvature = ("curvature.draws.n=1",) if "estimator=kfac" in words else ()
    printed = run(tmp_path, *words, *small, *TINY, *curvature, f"hydra.run.dir={tmp_path / 'out'}")
    assert "relative to the images that are given here" in printed
    assert not (tmp_path / "store" / "TrainedModel").exists()
    found = {row["estimator"]: row for row in rows(tmp_path / "out") if row["benchmark"] == "explained"}
    assert "given model, training images" in found
    if "explained=recorded" in words:
        (difference,) = [row["value"] for row in rows(tmp_path / "out") if row["metric"] == "replay_difference"]
        assert difference < 1e-4
    if "explained=checkpoints" in words and "model=pipeline" not in words:
        record = next((tmp_path / "store" / "GivenCheckpoints").rglob("record.json"))
        assert json.loads(record.read_text())["checkpoints"] == [1000, 2000, 3000]
