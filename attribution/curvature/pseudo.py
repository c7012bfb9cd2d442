"""Pseudo-gradients: what is backpropagated decides which curvature their second moments are (K-FAC influence, §3.1; METHODS.md §2).

``mc``: v ~ N(0, (2/d) I) from the network's output, so that E[Jᵀ v vᵀ J] is the Gauss-Newton matrix E[Jᵀ (2/d) J] of the loss that
is a mean over d pixels. ``empirical``: the gradients of the loss itself, at the true noise.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attribution.diffusion import Denoiser
from attribution.execution import Execution, ranges
from attribution.gradients import hooks
from attribution.gradients.convolution import ConvLayer
from attribution.gradients.layers import LinearLayer
from attribution.gradients.passes import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import ImageSet, philox
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Loss, Measure
from attribution.nodes import Get, execution
from attribution.training import Recorded

SHARED = ("attribution.gradients.passes", "attribution.images.philox")

_MASK = 0xFFFFFFFF
KroneckerLayer = LinearLayer | ConvLayer
Fisher = Literal["mc", "empirical"]


@dataclass(frozen=True)
class OutputProbe(Measure):
    """⟨v, ε_θ(x_t, t)⟩, whose gradient is Jᵀv. ``noise [N, 2C, H, W]`` holds ε and then v."""

    NAME = "OutputProbe"
    VERSION = 1

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        noise, v = noise.chunk(2, dim=1)
        return (v * denoise(self.schedule.add_noise(x0, t, noise), t)).flatten(1).sum(1)

    def inputs(self, x0: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """v ~ N(0, (2/d) I), independent of ε: like it, a function of the draw's noise seed alone."""
        images, t, noise = super().inputs(x0, draws)
        size = x0[0].numel()
        v = philox.normal(_other_seed(draws.noise_seed).flatten(), size).view_as(noise).to(noise) * math.sqrt(2 / size)
        return images, t, torch.cat([noise, v], dim=1)


def _other_seed(seed: Tensor) -> Tensor:
    zero = torch.zeros_like(seed)
    low, high, *_ = philox.philox(*philox.key("pseudo-gradient"), (seed & _MASK, (seed >> 32) & _MASK, zero, zero))
    return low | (high << 32)


@dataclass(frozen=True, kw_only=True)
class PseudoGradients:
    """The pseudo-gradients of every training example at its ``draws`` under the trained model, mirrored at random if ``flips``."""

    NAME = "PseudoGradients"
    VERSION = 1

    record: Recorded
    train: ImageSet
    draws: DrawScheme
    fisher: Fisher
    flips: bool
    execution: Execution = execution(default=Execution())

    @property
    def measure(self) -> Measure:
        """What is differentiated."""
        return Loss(self.record.schedule) if self.fisher == "empirical" else OutputProbe(self.record.schedule)

    @property
    def shards(self) -> list[tuple[int, int]]:
        """The training examples in units of stored work."""
        return ranges(0, self.train.count, self.execution.shard)

    def run(self, get: Get, rows: tuple[int, int], finish: hooks.Finish) -> None:
        """All draws of the examples ``rows[0]..rows[1]-1``; ``finish`` takes each layer's calls, pass by pass."""
        per_example = engine(self.record, None, self.execution, get)
        homes = kronecker_homes(per_example)
        images, device = get(self.train), self.execution.torch_device()
        dtype, K = per_example.parameters[0].dtype, self.draws.count
        autocast = torch.autocast(device.type, enabled=False)
        for start, stop in ranges(*rows, max(1, self.execution.batch_size // K)):
            block = slice(start, stop)
            x0 = images.x0(block).to(device, dtype)
            draws = self.draws.draw("curvature", images.ids(block).to(device), self.record.schedule.T, self.flips)
            per_example.capture(self.measure, x0, draws)  # compares the hooks with plain autograd, the first time
            for columns in ranges(0, K, self.execution.batch_size):
                inputs = self.measure.inputs(x0, draws.columns(slice(*columns)))
                hooks.run(per_example.model, homes, self.measure, inputs, finish, autocast)


def kronecker_homes(per_example: PerExampleGradients) -> dict[torch.nn.Module, tuple[str, KroneckerLayer]]:
    """The Linear and Conv2d layers among those of a model.

    Raises:
        ValueError: a grouped convolution, or none of these layers.
    """
    homes = {m: (name, layer) for m, (name, layer) in per_example.homes.items() if isinstance(layer, KroneckerLayer)}
    grouped = [name for m, (name, _) in homes.items() if getattr(m, "groups", 1) > 1]
    if grouped:
        raise ValueError(
            f"K-FAC has no Kronecker factors for the grouped convolutions {', '.join(grouped)}: use a model without groups, freeze "
            "these layers (requires_grad=False), or choose curvature=exact for a small model"
        )
    if not homes:
        raise ValueError("the model has no trainable Linear or Conv2d: K-FAC has nothing to work on; choose another estimator")
    return homes
