"""The one type of losses and measurements, and the tables by timestep that they share.

A measure maps ``(denoise, x0 [B, C, H, W], t [B], noise [B, C, H, W], condition)`` to one cost per draw ``[B]``; larger is worse.
Its expectation over t ~ U{1..T} and standard normal noise is the measurement of the image.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from attribution.checks import FieldError
from attribution.diffusion import DDPM, Denoiser, NoiseSchedule, Process
from attribution.images import ImageSet
from attribution.images.conditions import with_dropped
from attribution.images.draws import Draws
from attribution.images.proposals import Proposal
from attribution.nodes import Node

SHARED = ("attribution.diffusion.denoiser", "attribution.diffusion.process", "attribution.images.conditions")


class Inputs(NamedTuple):
    """The arguments of a measure after ``denoise``, N rows each: ``measure(denoise, *inputs)`` gives N costs.

    ``x0``, ``t`` and ``noise`` go to the measure; ``condition`` goes to the network and may be None.
    """

    x0: Tensor
    t: Tensor
    noise: Tensor
    condition: Tensor | None = None

    def rows(self, index: int | slice | Tensor) -> "Inputs":
        """The inputs at ``index`` of the first dimension."""
        return Inputs(*(None if tensor is None else tensor[index] for tensor in self))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Measure(ABC):
    """A cost per draw under a forward ``process``."""

    VERSION: ClassVar[int] = 1

    process: Process

    @property
    def condition_dropout(self) -> float:
        """The probability with which a draw of a training image drops its condition: the cost is a mean over that too."""
        return 0.0

    @abstractmethod
    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        """The costs ``[B]``."""

    @classmethod
    def takes_images(cls) -> bool:
        """Whether it is called with the images at their draws, as the loss is: such measures share the passes of the network."""
        return cls.inputs is Measure.inputs and cls.subject is Measure.subject

    def subject(self, images: ImageSet) -> Node[Any]:
        """The node that is measured for ``images``. Its artifact has ``x0(rows)``, ``ids(rows)`` and ``conditions(rows)``.

        Raises:
            ValueError: the measure needs something these images lack.
        """
        return images

    def proposal(self) -> Proposal:
        """The distribution of timesteps to draw from for a small variance; the mean of weighted costs is right under any."""
        return Proposal.uniform(self.process.T)

    def timesteps(self, draws: Draws) -> Tensor:
        """The timesteps ``[B, K]`` at which the measure is evaluated, given the drawn ones."""
        return draws.timestep

    def inputs(self, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> Inputs:
        """The arguments that the measure is called with, one row for each of the K draws of each image: B·K rows.

        ``x0 [B, C, H, W]``, ``condition [B, ...]``; a measure of something other than images says so.

        Raises:
            ValueError: draws with weights.
        """
        draws.check_supported()
        noise = draws.noise(x0.shape[1:], x0.dtype)
        return Inputs(draws.images(x0).flatten(0, 1), draws.timestep.flatten(), noise.flatten(0, 1), per_draw(condition, draws))

    def output(self, denoise: Denoiser, x_t: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """The network's output at the noisy images ``x_t``.

        Raises:
            ValueError: an output of another shape, which would be broadcast.
        """
        output = denoise(self.process.network_input(x_t, t), self.process.network_time(t), condition)
        if output.shape != x_t.shape:
            shapes = [tuple(tensor.shape[1:]) for tensor in (output, x_t)]
            raise ValueError(f"the network returns {shapes[0]} for an image of {shapes[1]}: return the shape of the image")
        return output


@dataclass(frozen=True)
class DDPMMeasure(Measure):
    """A measure that is defined by the noise schedule of a DDPM.

    Raises:
        ValueError: another process.
    """

    def __post_init__(self):
        self.ddpm  # noqa: B018 (raises)

    @property
    def ddpm(self) -> DDPM:
        """The process."""
        if not isinstance(self.process, DDPM):
            message = "is defined by the noise schedule of a DDPM: train a DDPM, or choose what needs none"
            raise FieldError(self, "process", f"{type(self).__name__} {message}", type(self.process).__name__)
        return self.process

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule of the process."""
        return self.ddpm.schedule


def per_draw(condition: Tensor | None, draws: Draws) -> Tensor | None:
    """``condition [B, ...]`` once for each of the K draws of each example, dropped where the draw says so: ``[B·K, ...]``."""
    if condition is None:
        return None
    repeated = condition.repeat_interleave(draws.count, 0)
    return repeated if draws.condition_dropped is None else with_dropped(repeated, draws.condition_dropped.flatten())
