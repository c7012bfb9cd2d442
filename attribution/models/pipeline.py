"""Denoisers that others trained: unconditional pipelines of diffusers, of which the network and the noise schedule are used."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from attribution.diffusion import NoiseSchedule
from attribution.nodes import class_identity, digest

_CONTENT = (".safetensors", ".bin", ".json")


@dataclass(frozen=True)
class Pipeline:
    """``path``: a folder that ``save_pretrained`` of a DDPMPipeline or DDIMPipeline left, or a name in the cache of downloads.

    Nothing is downloaded.
    """

    NAME = "Pipeline"
    VERSION = 1

    path: str

    def description(self) -> dict[str, Any]:
        """The content of a folder, or the name."""
        return {**class_identity(type(self)), "path": self._content or self.path}

    @property
    def network(self) -> nn.Module:
        """The U-Net in eval mode, called as ``network(x_t, t - 1)``. Raises ValueError, as ``schedule`` does."""
        return self._parts[0]

    @property
    def schedule(self) -> NoiseSchedule:
        """The pipeline's own.

        Raises:
            ValueError: no pipeline there, or none whose network predicts the noise of images under a schedule that is known here.
        """
        return self._parts[1]

    def check_shape(self, shape: tuple[int, int, int]) -> None:
        """Raises ValueError: the network is for other images than ``shape`` (C, H, W)."""
        config: Any = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) or size is None else size
        if config.in_channels != shape[0] or (size is not None and (height, width) != shape[1:]):
            raise ValueError(
                f"the pipeline {self.path} is for images of {config.in_channels}×{height}×{width}, the data set's are "
                f"{'×'.join(map(str, shape))} (channels, height, width): choose the data that it was trained on"
            )

    @cached_property
    def _content(self) -> dict[str, str]:
        root = Path(self.path)
        files = sorted(path for path in root.rglob("*") if path.suffix in _CONTENT)
        return {path.relative_to(root).as_posix(): digest(np.frombuffer(path.read_bytes(), np.uint8)) for path in files}

    @cached_property
    def _parts(self) -> tuple[nn.Module, NoiseSchedule]:
        from diffusers import DiffusionPipeline, UNet2DModel

        try:
            components = DiffusionPipeline.from_pretrained(self.path, local_files_only=True, low_cpu_mem_usage=False).components
        except (OSError, ValueError) as error:
            raise ValueError(
                f"the pipeline {self.path} is not there: give a folder with model_index.json, as save_pretrained leaves it, or "
                f"fetch it once (hf download {self.path})"
            ) from error
        network, scheduler = components.get("unet"), components.get("scheduler")
        config: Any = getattr(network, "config", None)
        no_noise = not isinstance(network, UNet2DModel) or config.out_channels != config.in_channels
        if network is None or no_noise or network.class_embedding is not None or not hasattr(scheduler, "alphas_cumprod"):
            raise ValueError(
                f"the pipeline {self.path} has no UNet2DModel that predicts noise without being told a class: choose a DDPM or DDIM"
            )
        return network.eval(), _schedule(self.path, scheduler)


def _schedule(path: str, scheduler: Any) -> NoiseSchedule:
    """The schedule with the scheduler's ᾱ_t, which are compared: what a configuration calls itself is not relied on."""
    config = scheduler.config
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(f"the pipeline {path} predicts {config.prediction_type}: choose one that predicts the noise (epsilon)")
    own = scheduler.alphas_cumprod.double().numpy()
    for schedule in (NoiseSchedule(len(own), "linear", config.beta_start, config.beta_end), NoiseSchedule(len(own), "cosine")):
        if np.allclose(schedule.alpha_bars[1:], own, rtol=1e-3, atol=1e-7):
            return schedule
    raise ValueError(f"the pipeline {path} has {config.beta_schedule} betas: choose one whose schedule is linear or cosine")
