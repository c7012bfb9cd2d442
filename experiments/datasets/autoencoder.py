"""Frozen autoencoders of diffusers, which turn images into latents and back."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attribution.checks import FieldError, whole
from attribution.models.given import digests
from attribution.models.trained import one_line
from attribution.nodes import class_identity, execution


@dataclass(frozen=True)
class Autoencoder:
    """The autoencoder at ``path``: a folder that ``save_pretrained`` of a model of diffusers wrote, such as ``AutoencoderKL``, or a
    name in the Hugging Face cache. Nothing is downloaded.

    A latent is the mean of the encoder's distribution, scaled as the pipelines of diffusers scale it: minus ``shift_factor``, times
    ``scaling_factor`` of the configuration, after normalization by ``latents_mean`` and ``latents_std`` where it has them.
    ``batch_size`` images are encoded and decoded at a time, on a GPU if there is one.

    Raises (when used):
        FieldError: there is no autoencoder at ``path``.
    """

    NAME = "Autoencoder"
    VERSION = 1

    path: str
    batch_size: int = execution(default=16)

    def __post_init__(self):
        whole(self, "batch_size", least=1)

    def description(self) -> dict[str, Any]:
        """The weights and the configuration, wherever they lie."""
        return {**class_identity(type(self)), "content": self.content}

    @property
    def content(self) -> dict[str, Any]:
        """The digests of the weights by name, and the settings of the architecture and of the scale of latents."""
        return _opened(self).content

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return _opened(self).network.config.in_channels

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the latent of an image of ``shape`` (C, H, W).

        Raises:
            ValueError: the autoencoder takes no images of this shape, or does not return it.
        """
        return _latent_shape(self, shape)

    def encode(self, images: Tensor) -> Tensor:
        """Latents ``[B, c, h, w]`` of ``images [B, C, H, W]`` in [-1, 1]: float32 on the CPU."""
        opened = _opened(self)

        def encoded(x: Tensor) -> Tensor:
            output = opened.network.encode(x)
            if hasattr(output, "latent_dist"):
                return output.latent_dist.mode()
            return output.latents if hasattr(output, "latents") else output.latent

        latents = self._in_batches(encoded, images)
        return ((latents - opened.mean) / opened.std - opened.shift) * opened.scale

    def decode(self, latents: Tensor) -> Tensor:
        """The images ``[B, C, H, W]``, in about [-1, 1], of ``latents [B, c, h, w]``: float32 on the CPU."""
        opened = _opened(self)
        latents = (latents.float().cpu() / opened.scale + opened.shift) * opened.std + opened.mean
        return self._in_batches(lambda z: opened.network.decode(z).sample, latents)

    def pictures(self, latents: Tensor) -> np.ndarray:
        """What people see of ``latents [B, c, h, w]``: ``[B, C, H, W]`` uint8, 255 for white."""
        return ((self.decode(latents).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()

    def _in_batches(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _opened(self).network.to(device)
        with torch.inference_mode():
            return torch.cat([function(part.float().to(device)).float().cpu() for part in x.split(self.batch_size)])


@dataclass(frozen=True, eq=False)
class _Opened:
    """An autoencoder in memory; ``mean``, ``std``, ``shift`` and ``scale`` of its latents."""

    network: Any
    content: dict[str, Any]
    mean: Tensor
    std: Tensor
    shift: float
    scale: float


def _opened(autoencoder: Autoencoder) -> _Opened:
    try:
        return _open(autoencoder.path)
    except ValueError as error:
        raise FieldError(autoencoder, "path", str(error)) from error


@functools.lru_cache(maxsize=2)
def _open(path: str) -> _Opened:
    from diffusers import AutoModel
    from diffusers.utils import logging

    logging.disable_progress_bar()
    folder = Path(path).expanduser()
    if (folder / "model_index.json").is_file():
        raise ValueError(f"is a whole pipeline: give the folder of its autoencoder, as {Path(path) / 'vae'}")
    try:
        network = AutoModel.from_pretrained(
            str(folder) if folder.is_dir() else path, local_files_only=True, low_cpu_mem_usage=False
        )
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError) as error:
        raise ValueError(
            f"no autoencoder can be read there ({one_line(error)}): give a folder with config.json and the weights, as "
            "save_pretrained of AutoencoderKL writes it, or a name in the Hugging Face cache"
        ) from error
    if not (isinstance(network, nn.Module) and hasattr(network, "encode") and hasattr(network, "decode")):
        raise ValueError(f"is a {type(network).__name__}, which does not encode images: give an autoencoder, such as AutoencoderKL")
    config: Any = network.config
    mean, std = (
        torch.tensor([usual] if values is None else values, dtype=torch.float32).view(1, -1, 1, 1)
        for values, usual in ((config.get("latents_mean"), 0.0), (config.get("latents_std"), 1.0))
    )
    settings = {name: value for name, value in config.items() if not name.startswith("_") and name != "sample_size"}
    network = network.float().eval().requires_grad_(False)
    return _Opened(
        network=network,
        content={"class": type(network).__name__, "config": settings, "weights": digests(network.state_dict())},
        mean=mean,
        std=std,
        shift=config.get("shift_factor") or 0.0,
        scale=config.get("scaling_factor") or 1.0,
    )


@functools.lru_cache(maxsize=8)
def _latent_shape(autoencoder: Autoencoder, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    expected, given = autoencoder.channels, "×".join(map(str, shape))
    if shape[0] != expected:
        raise ValueError(f"the autoencoder takes images with {expected} channels, but these have {shape[0]}")
    try:
        latent = autoencoder.encode(torch.zeros(1, *shape))
        back = autoencoder.decode(latent)
    except RuntimeError as error:
        raise ValueError(f"the autoencoder cannot encode images of {given} ({error})") from error
    if back.shape[1:] != shape:
        factor = max(1, round(math.sqrt(back.shape[2] * back.shape[3] / (latent.shape[2] * latent.shape[3]))))
        raise ValueError(f"the autoencoder cannot encode images of {given}: give them sides that are multiples of {factor}")
    channels, height, width = latent.shape[1:]
    return channels, height, width
