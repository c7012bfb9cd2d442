"""Samplers: from noise to images, and those of a DDPM, x_T → x_0, by the transitions p(x_s | x_t) of DDPM and DDIM.

All noise is a function of (seed of the image, step), so that an image depends on its seed and not on the batch in which it is made.
The coefficients of transitions are taken from the schedule in float64.

Shapes: B images of C×H×W; S steps. Timesteps are 1..T; s = 0 is the image.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from attribution.checks import FieldError, number, whole
from attribution.diffusion.denoiser import Denoiser, denoiser, eval_mode
from attribution.diffusion.process import DDPM, Process, as_ddpm
from attribution.images import philox
from attribution.images.conditions import null
from attribution.nodes import added

SHARED = (
    "attribution.diffusion.denoiser",
    "attribution.diffusion.process",
    "attribution.images.conditions",
    "attribution.images.philox",
)

_MASK = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class Trajectory:
    """All states of a sampling run: ``states [B, S + 1, C, H, W]`` from noise to image; step j goes from ``states[:, j]``, at
    ``timesteps[j]``, to ``states[:, j + 1]``.

    ``timesteps`` ``[S]`` are the noise levels of ``Sampler.levels``, descending, on the CPU.
    """

    states: Tensor
    timesteps: Tensor

    @property
    def images(self) -> Tensor:
        """x_0 ``[B, C, H, W]``."""
        return self.states[:, -1]


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """From noise to images. A subclass says which processes it samples from.

    ``guidance``: the scale g of classifier-free guidance. The network's output o is replaced by o(∅) + g (o(c) - o(∅)), where c is
    the condition of an image and ∅ no condition (Ho & Salimans 2022, eq. 6 with w = g - 1); 1 is o(c).

    Raises:
        ValueError: ``guidance`` below 0.
    """

    VERSION: ClassVar[int] = 1

    guidance: float = added(default=1.0)

    def __post_init__(self):
        number(self, "guidance", least=0)

    @abstractmethod
    def levels(self, process: Process) -> Sequence[float]:
        """The S noise levels at which the network is called, descending.

        Raises:
            ValueError: a process that the sampler is not for, or more steps than it has timesteps.
        """

    @property
    def inputs_per_step(self) -> int:
        """The network inputs that a step takes for an image: 1, or 2 with guidance."""
        return 1 if self.guidance == 1 else 2

    @abstractmethod
    def states(self, denoise: Denoiser, process: Process, noise: Tensor, seeds: Tensor) -> Iterator[Tensor]:
        """The S + 1 states from standard normal ``noise [B, C, H, W]``, which is a function of the ``seeds [B]``, to the images."""

    @overload
    def sample(
        self,
        model: nn.Module | Denoiser,
        process: Process,
        shape: Sequence[int],
        seeds: Tensor,
        trajectory: Literal[False] = False,
        progress: Callable[[int, int], object] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def sample(
        self,
        model: nn.Module | Denoiser,
        process: Process,
        shape: Sequence[int],
        seeds: Tensor,
        trajectory: Literal[True],
        progress: Callable[[int, int], object] | None = None,
        condition: Tensor | None = None,
    ) -> Trajectory: ...

    @torch.no_grad()
    def sample(
        self,
        model: nn.Module | Denoiser,
        process: Process,
        shape: Sequence[int],
        seeds: Tensor,
        trajectory: bool = False,
        progress: Callable[[int, int], object] | None = None,
        condition: Tensor | None = None,
    ) -> Tensor | Trajectory:
        """Sample one image of ``shape`` (C, H, W) for each of the int64 ``seeds [B]``, on their device: ``[B, C, H, W]`` float32.

        A network is called in eval mode; anything else that is callable is a ``Denoiser``. ``trajectory=True`` returns all states.
        ``progress`` is called with (steps done, steps in total) after every step. ``condition [B, ...]``: that of each image.

        Raises:
            ValueError: a process that the sampler is not for, more steps than timesteps, or guidance without conditions.
            FloatingPointError: a sample is not finite.
        """
        levels = self.levels(process)
        with _evaluating(model) as denoise:
            made = self.states(self.conditioned(denoise, condition), process, noise_of(seeds, 0, shape), seeds)
            states = [x := next(made)]
            for done, x in enumerate(made, start=1):
                if trajectory:
                    states.append(x)
                if progress is not None:
                    progress(done, len(levels))
        if not x.isfinite().all():
            raise FloatingPointError(
                "sampling gave values that are not finite: the model's training diverged; lower its learning rate"
            )
        return Trajectory(torch.stack(states, dim=1), torch.tensor(levels)) if trajectory else x

    def conditioned(self, denoise: Denoiser, condition: Tensor | None) -> Denoiser:
        """``denoise`` at the ``condition [B, ...]`` of each image, with guidance; it needs no condition when it is called.

        Raises:
            ValueError: guidance without conditions.
        """
        if condition is None:
            if self.guidance != 1:
                raise FieldError(self, "guidance", "is for images with conditions (classes, embeddings), and there are none: set 1")
            return denoise
        if self.guidance == 1:
            return lambda x, time, _=None, /: denoise(x, time, condition)
        both = torch.cat([condition, null(condition)])

        def guided(x: Tensor, time: Tensor, _: Tensor | None = None, /) -> Tensor:
            with_condition, without = denoise(torch.cat([x, x]), torch.cat([time, time]), both).chunk(2)
            return without + self.guidance * (with_condition - without)

        return guided


@dataclass(frozen=True, kw_only=True)
class TransitionSampler(Sampler):
    """A sampler of a DDPM by normal transitions p(x_s | x_t) between some of its timesteps.

    ``clip``: keep each step's estimate of the image in [-1, 1], the range of the data.
    """

    clip: bool = True

    @abstractmethod
    def timesteps(self, T: int) -> list[int]:
        """The timesteps that the sampler visits, descending."""

    @abstractmethod
    def transition(self, process: DDPM, x_t: Tensor, output: Tensor, t: int, s: int) -> tuple[Tensor, float]:
        """Mean ``[B, C, H, W]`` and standard deviation of p(x_s | x_t), s < t, given the network's ``output`` at x_t."""

    def levels(self, process: Process) -> Sequence[float]:
        return self.timesteps(as_ddpm(process, type(self).__name__).T)

    def states(self, denoise: Denoiser, process: Process, noise: Tensor, seeds: Tensor) -> Iterator[Tensor]:
        ddpm, x = as_ddpm(process, type(self).__name__), noise
        timesteps = self.timesteps(ddpm.T)
        yield x
        for t, s in zip(timesteps, [*timesteps[1:], 0], strict=True):
            t_B = torch.full_like(seeds, t)
            output = denoise(ddpm.network_input(x, t_B), ddpm.network_time(t_B))
            x, std = self.transition(ddpm, x, output, t, s)
            if std > 0:
                x = x + std * noise_of(seeds, t, noise.shape[1:])
            yield x

    def predicted_image(self, process: DDPM, x_t: Tensor, output: Tensor, t: Tensor) -> Tensor:
        """The image that ``output`` predicts at x_t, clipped if ``clip``."""
        x0 = process.x0(output, x_t, t)
        return x0.clamp(-1, 1) if self.clip else x0


@dataclass(frozen=True, kw_only=True)
class DDPMSampler(TransitionSampler):
    """Ancestral sampling through all T steps with the small variance (Ho et al. 2020, eq. 6 and 7, algorithm 2)."""

    NAME = "DDPMSampler"
    VERSION = 1

    def timesteps(self, T: int) -> list[int]:
        return list(range(T, 0, -1))

    def transition(self, process: DDPM, x_t: Tensor, output: Tensor, t: int, s: int) -> tuple[Tensor, float]:
        """The posterior q(x_s | x_t, x_0) at the predicted image; variance (1-ᾱ_s)/(1-ᾱ_t) β_t, which is 0 at t = 1."""
        bar_t, bar_s = float(process.schedule.alpha_bars[t]), float(process.schedule.alpha_bars[s])
        alpha = bar_t / bar_s
        x0 = self.predicted_image(process, x_t, output, _times(x_t, t))
        mean = math.sqrt(bar_s) * (1 - alpha) / (1 - bar_t) * x0 + math.sqrt(alpha) * (1 - bar_s) / (1 - bar_t) * x_t
        return mean, math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - alpha))


@dataclass(frozen=True, kw_only=True)
class DDIMSampler(TransitionSampler):
    """DDIM (Song et al. 2021) at ``steps`` timesteps, ``leading`` ``1 + ⌊jT/steps⌋`` or ``trailing`` ``T - jT/steps``, rounded.

    Only trailing timesteps begin at T, where there is nothing but noise under a schedule with zero terminal SNR (Lin et al. 2024,
    §3.3). ``eta`` ranges from 0, which is deterministic, to 1, which is as noisy as DDPM.
    """

    NAME = "DDIMSampler"
    VERSION = 1

    steps: int = 50
    eta: float = 0.0
    timestep_spacing: Literal["leading", "trailing"] = added(default="leading")

    def __post_init__(self):
        super().__post_init__()
        if self.timestep_spacing not in ("leading", "trailing"):
            raise FieldError(self, "timestep_spacing", "choose leading or trailing")
        whole(self, "steps", least=1)
        number(self, "eta", least=0, most=1)

    def timesteps(self, T: int) -> list[int]:
        if self.steps > T:
            raise FieldError(self, "steps", f"the schedule has T={T} timesteps: set steps <= {T}")
        if self.timestep_spacing == "trailing":
            return [round(T - j * T / self.steps) for j in range(self.steps)]
        return [1 + j * T // self.steps for j in reversed(range(self.steps))]

    def transition(self, process: DDPM, x_t: Tensor, output: Tensor, t: int, s: int) -> tuple[Tensor, float]:
        """Eq. 12 of Song et al. 2021 with σ of eq. 16. Clipping changes the predicted image, not the direction toward x_t."""
        bar_t, bar_s = float(process.schedule.alpha_bars[t]), float(process.schedule.alpha_bars[s])
        t_B = _times(x_t, t)
        std = self.eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
        # 1-ᾱ_s-σ² is negative only by rounding.
        direction = math.sqrt(max(1 - bar_s - std**2, 0.0)) * process.epsilon(output, x_t, t_B)
        return math.sqrt(bar_s) * self.predicted_image(process, x_t, output, t_B) + direction, std


def _times(x_t: Tensor, t: int) -> Tensor:
    return torch.full((len(x_t),), t, device=x_t.device)


def noise_of(seeds: Tensor, step: int, shape: Sequence[int]) -> Tensor:
    """Standard normal ``[B, C, H, W]``: step 0 gives the first state, step t the noise of the transition from t."""
    size = torch.Size(shape)
    zero = torch.zeros_like(seeds)
    counter = (seeds & _MASK, (seeds >> 32) & _MASK, zero + step, zero)
    low, high, *_ = philox.philox(*philox.key("sampler"), counter)
    return philox.normal(low | (high << 32), size.numel()).view(len(seeds), *size)


@contextmanager
def _evaluating(model: nn.Module | Denoiser) -> Iterator[Denoiser]:
    """The denoiser of ``model``, with a network in eval mode until the end and then back in its own modes."""
    if not isinstance(model, nn.Module):
        yield model
        return
    with eval_mode(model):
        yield denoiser(model)
