"""The one type of losses and measurements, and the tables by timestep that they share.

A measure maps ``(denoise, x0 [B, C, H, W], t [B], noise [B, C, H, W])`` to one cost per draw ``[B]``; larger is worse
(METHODS.md §1). Its expectation over t ~ U{1..T} and standard normal noise is the measurement of the image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion import Denoiser, NoiseSchedule
from attribution.images import ImageSet
from attribution.images.draws import Draws
from attribution.nodes import Node


@dataclass(frozen=True)
class Measure(ABC):
    """A cost per draw under a noise schedule."""

    VERSION: ClassVar[int] = 1

    schedule: NoiseSchedule

    @abstractmethod
    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor: ...

    def subject(self, images: ImageSet) -> Node[Any]:
        """What of ``images`` is measured: a node of an artifact with ``x0(rows)`` and ``ids(rows)``.

        Raises:
            ValueError: something that these images do not have.
        """
        return images

    def timesteps(self, draws: Draws) -> Tensor:
        """The timesteps ``[B, K]`` that are measured at the drawn ones."""
        return draws.timestep

    def inputs(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """``(x0, t, noise)`` as the measure is called with them, a row for each of the K draws of each image: B·K rows.

        ``x0 [B, C, H, W]``; a measure of something else than images says so.
        """
        noise = draws.noise(x0.shape[1:], x0.dtype)
        return draws.images(x0).flatten(0, 1), draws.timestep.flatten(), noise.flatten(0, 1)


def lookup(table: np.ndarray, t: Tensor, dtype: torch.dtype) -> Tensor:
    """``table[t]`` for timesteps of any shape."""
    return torch.from_numpy(table).to(t.device, dtype)[t]
