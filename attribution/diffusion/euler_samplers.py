"""Samplers of continuous processes: Euler steps by the schedulers of diffusers, which are deterministic.

The levels are those of the sampler and may lie beyond the levels of training. Only the first state is random.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from attribution.checks import FieldError, positive, whole
from attribution.diffusion.continuous import EDM, RectifiedFlow
from attribution.diffusion.denoiser import Denoiser
from attribution.diffusion.process import Process
from attribution.diffusion.samplers import Sampler

SHARED = ("attribution.diffusion.continuous", "attribution.diffusion.samplers")


@dataclass(frozen=True, kw_only=True)
class EulerSampler(Sampler):
    """``steps`` Euler steps of the probability flow. No estimate of the image is clipped.

    Raises:
        ValueError: ``steps`` below 1.
    """

    steps: int = 50

    def __post_init__(self):
        super().__post_init__()
        whole(self, "steps", least=1)

    @abstractmethod
    def scheduler(self, process: Process) -> Any:
        """diffusers' scheduler with ``sigmas [S + 1]`` and ``timesteps [S]`` of the steps, on the CPU.

        Raises:
            ValueError: a process that the sampler is not for.
        """

    @abstractmethod
    def step(self, scheduler: Any, process: Process, output: Tensor, x: Tensor, t: Tensor, time: Tensor) -> Tensor:
        """The next state, from ``x`` at the level ``t [B]``, which the scheduler calls ``time``."""

    def levels(self, process: Process) -> Sequence[float]:
        return self.scheduler(process).sigmas[:-1].tolist()

    def states(self, denoise: Denoiser, process: Process, noise: Tensor, seeds: Tensor) -> Iterator[Tensor]:
        scheduler = self.scheduler(process)
        scheduler.set_begin_index(0)
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
        yield x
        for time, level in zip(scheduler.timesteps, scheduler.sigmas[:-1].tolist(), strict=True):
            t = torch.full((len(x),), level, device=x.device)
            output = denoise(process.network_input(x, t), process.network_time(t))
            x = self.step(scheduler, process, output, x, t, time)
            yield x


@dataclass(frozen=True, kw_only=True)
class FlowMatchEulerSampler(EulerSampler):
    """Steps of equal size from s = 1 to 0 (Liu et al. 2023) by FlowMatchEulerDiscreteScheduler."""

    NAME = "FlowMatchEulerSampler"
    VERSION = 1

    def scheduler(self, process: Process) -> FlowMatchEulerDiscreteScheduler:
        if not isinstance(process, RectifiedFlow):
            raise ValueError(f"{type(self).__name__} needs the process RectifiedFlow, not {type(process).__name__}")
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / self.steps, self.steps).tolist())
        return scheduler

    def step(self, scheduler: Any, process: Process, output: Tensor, x: Tensor, t: Tensor, time: Tensor) -> Tensor:
        return scheduler.step(output, time, x).prev_sample


@dataclass(frozen=True, kw_only=True)
class EDMEulerSampler(EulerSampler):
    """Levels from ``sigma_max`` to ``sigma_min``, even in σ^(1/``rho``), and 0 (Karras et al. 2022, eq. 5), by EDMEulerScheduler.

    Raises:
        ValueError: levels that are not positive and descending.
    """

    NAME = "EDMEulerSampler"
    VERSION = 1

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("sigma_min", "sigma_max", "rho"):
            positive(self, name)
        if self.sigma_min > self.sigma_max:
            raise FieldError(self, "sigma_min", f"must be at most sigma_max={self.sigma_max}")
        ends = np.array([self.sigma_min, self.sigma_max], np.float64)
        with np.errstate(over="ignore"):
            ends = ends ** (1 / self.rho)
        if not (np.isfinite(ends).all() and ends[0] > 0):
            raise FieldError(self, "rho", "too small: σ^(1/rho) of sigma_min or sigma_max is 0 or infinite; 7 is usual")

    def scheduler(self, process: Process) -> EDMEulerScheduler:
        if not isinstance(process, EDM):
            raise ValueError(f"{type(self).__name__} needs the process EDM, not {type(process).__name__}")
        scheduler = EDMEulerScheduler(self.sigma_min, self.sigma_max, process.sigma_data, rho=self.rho)
        scheduler.set_timesteps(self.steps)
        scheduler.is_scale_input_called = True  # the process scales the input of the network
        return scheduler

    def step(self, scheduler: Any, process: Process, output: Tensor, x: Tensor, t: Tensor, time: Tensor) -> Tensor:
        return scheduler.step(output, time, x, pred_original_sample=process.x0(output, x, t)).prev_sample
