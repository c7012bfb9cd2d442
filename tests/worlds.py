"""Small worlds that many tests use: an in-memory data set, a tiny U-Net, a recorded training."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np
import torch

from attribution.diffusion import DDPM, EDM, NoiseSchedule, RectifiedFlow
from attribution.images import Images, ImageSet
from attribution.measurements import Loss
from attribution.nodes import Get, digest
from attribution.training.checkpoints import EverySteps
from attribution.training.recipe import Hardware, Recipe
from experiments.models.trained import TrainedModel

UNET = functools.partial(
    diffusers.UNet2DModel,
    sample_size=8,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
    attention_head_dim=8,
    dropout=0.1,
)
SCHEDULE = NoiseSchedule(T=100, beta_end=0.1)
PROCESS = DDPM(SCHEDULE)
OBJECTIVE = Loss(PROCESS)
PROCESSES = {
    "epsilon": PROCESS,
    "epsilon, min_snr": DDPM(SCHEDULE, weighting="min_snr"),
    "v, zero terminal SNR": DDPM(replace(SCHEDULE, rescale_zero_terminal_snr=True), "v", "min_snr"),
    "sample": DDPM(SCHEDULE, "sample"),
    "rectified flow": RectifiedFlow(T=100),
    "EDM": EDM(T=100),
}
"""Processes that differ in target, weight and input, with the same timesteps."""


@dataclass(frozen=True)
class Blobs(ImageSet):
    """``n`` images with a bright square each, in a place that its id decides. Ids start at ``first`` and are not rows."""

    STORED = False

    n: int = 24
    first: int = 100
    size: int = 8

    @property
    def count(self) -> int:
        return self.n

    def compute(self, get: Get) -> Images:
        generator = np.random.default_rng(self.first)
        pixels = generator.integers(0, 60, (self.n, 1, self.size, self.size)).astype(np.uint8)
        for image, (row, column) in zip(pixels, generator.integers(0, self.size - 3, (self.n, 2)), strict=True):
            image[0, row : row + 4, column : column + 4] += 180
        index = self.first + 3 * np.arange(self.n)
        return Images(pixels, index, index % 2)

    def description(self) -> dict[str, Any]:
        return {**super().description(), "content": digest(self.compute(None).pixels)}  # pyright: ignore


@dataclass(frozen=True)
class Conditioned(Blobs):
    """The same images, each with its label as the condition."""

    def compute(self, get: Get) -> Images:
        images = super().compute(get)
        return replace(images, condition=images.label)


class Reordered(Blobs):
    """Another order of the same images."""

    def __init__(self, data, rows):
        super().__init__(data.n, data.first)
        object.__setattr__(self, "rows", rows)

    def compute(self, get):
        return super().compute(get).take(list(self.rows))

    def description(self):
        return {**super().description(), "rows": list(self.rows)}


def trained(**changes: Any) -> TrainedModel:
    """A short SGD training of the tiny U-Net under everything that a replay has to know: schedule, clipping, dropout, flips."""
    settings: dict[str, Any] = {
        "model": UNET,
        "objective": OBJECTIVE,
        "data": Blobs(),
        "optimizer": functools.partial(torch.optim.SGD, lr=0.05),
        "recipe": Recipe(steps=12, batch_size=10, lr_schedule="cosine", warmup=0.2, clip=0.05, precision="64-true"),
        "checkpoints": EverySteps(1),
        "seed": 3,
        "flips": True,
        "hardware": Hardware(accelerator="cpu", interval=4),
    }
    return TrainedModel(**{**settings, **changes})
