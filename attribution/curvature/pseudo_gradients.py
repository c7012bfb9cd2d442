"""Pseudo-gradients: gradients whose second moments are a curvature of the training loss (K-FAC influence, §3.1).

J is the Jacobian of the network's output, of d pixels, and w_t the weight of the process. ``mc``: Jᵀ v for v ~ N(0, (2 w_t / d) I),
so that E[Jᵀ v vᵀ J] is the Gauss-Newton matrix E[Jᵀ (2 w_t / d) J] of the training loss ``measurements.Loss``. ``empirical``: the
gradients of the training loss at the true noise.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attribution.diffusion import Denoiser
from attribution.execution import Execution, ranges
from attribution.gradients import hooks
from attribution.gradients.convolution import ConvLayer
from attribution.gradients.embedding import EmbeddingLayer
from attribution.gradients.layers import LinearLayer
from attribution.gradients.network_cache import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.images import ImageSet, philox
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Inputs, Measure
from attribution.models.trained import Trained
from attribution.nodes import Get, added, execution
from attribution.transfers import to_device

SHARED = (
    "attribution.gradients.inner_products",
    "attribution.gradients.network_cache",
    "attribution.images.philox",
    "attribution.measurements.base",
)

_MASK = 0xFFFFFFFF
KroneckerLayer = LinearLayer | ConvLayer | EmbeddingLayer
Fisher = Literal["mc", "empirical"]


@dataclass(frozen=True)
class OutputProbe(Measure):
    """⟨v, o⟩ for the network's output o at x_t; its gradient is Jᵀv. ``noise [N, 2C, H, W]`` holds ε and then v.

    ``sample`` numbers the independent v of a draw.
    """

    NAME = "OutputProbe"
    VERSION = 1

    sample: int = field(default=0, kw_only=True)

    def __call__(self, denoise: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        noise, v = noise.chunk(2, dim=1)
        return (v * self.output(denoise, self.process.add_noise(x0, t, noise), t, condition)).flatten(1).sum(1)

    def inputs(self, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> Inputs:
        """The inputs with v ~ N(0, (2 w_t / d) I), independent of ε and a function of the draw's noise seed and ``sample`` only."""
        inputs, size = super().inputs(x0, draws, condition), x0[0].numel()
        v = philox.normal(_seed_of_v(draws.noise_seed, self.sample).flatten(), size).view_as(inputs.noise).to(inputs.noise)
        std = (2 / size * self.process.weight(inputs.t)).sqrt().to(v.dtype).view(-1, *[1] * (v.dim() - 1))
        return inputs._replace(noise=torch.cat([inputs.noise, v * std], dim=1))


def _seed_of_v(seed: Tensor, sample: int) -> Tensor:
    number, zero = torch.full_like(seed, sample), torch.zeros_like(seed)
    low, high, *_ = philox.philox(*philox.key("pseudo-gradient"), (seed & _MASK, (seed >> 32) & _MASK, number, zero))
    return low | (high << 32)


@dataclass(frozen=True, kw_only=True)
class PseudoGradients:
    """The pseudo-gradients of every training example at its ``draws`` under the trained model.

    ``flips``: mirror images at random, as training did. ``step``: of the checkpoint; None is the final model.
    """

    NAME = "PseudoGradients"
    VERSION = 1

    trained: Trained
    train: ImageSet
    draws: DrawScheme
    fisher: Fisher
    flips: bool
    step: int | None = added(default=None)
    execution: Execution = execution(default=Execution())

    @property
    def measure(self) -> Measure:
        """The measure that is differentiated."""
        return self.trained.objective if self.fisher == "empirical" else OutputProbe(self.trained.process)

    def run(self, get: Get, rows: tuple[int, int], on_layer: hooks.OnLayer) -> None:
        """Run the passes over all draws of the examples ``rows[0]..rows[1]-1``.

        ``on_layer`` is called with the calls of each layer in each pass.
        """
        per_example = engine(self.trained, self.step, self.execution, get)
        modules = kronecker_modules(per_example)
        images, device = get(self.train), self.execution.torch_device()
        dtype, K = per_example.parameters[0].dtype, self.draws.count
        autocast = torch.autocast(device.type, enabled=False)

        def block(start: int, stop: int) -> tuple[Tensor, Draws, Tensor | None]:
            at = slice(start, stop)
            ids, dropout = to_device(images.ids(at), device), self.trained.objective.condition_dropout
            draws = self.draws.draw("curvature", ids, self.trained.process.T, self.flips, dropout)
            condition = images.conditions(at)
            return to_device(images.x0(at), device, dtype), draws, None if condition is None else to_device(condition, device)

        # This also compares the hooks with plain autograd.
        size = per_example.inputs_per_pass(self.measure, *block(rows[0], min(rows[0] + 2, rows[1])))
        for start, stop in ranges(*rows, max(1, size // K)):
            x0, draws, condition = block(start, stop)
            for columns in ranges(0, K, size):
                inputs = self.measure.inputs(x0, draws.columns(slice(*columns)), condition)
                hooks.run(per_example.model, modules, self.measure, inputs, on_layer, autocast)


def kronecker_modules(per_example: PerExampleGradients) -> dict[nn.Module | nn.Parameter, tuple[str, KroneckerLayer]]:
    """The Linear, Conv2d and Embedding layers of a model, by module, with the names of their gradients.

    Raises:
        ValueError: a grouped convolution, or no Linear, Conv2d or Embedding layer.
    """
    modules = {m: (name, layer) for m, (name, layer) in per_example.recorded.items() if isinstance(layer, KroneckerLayer)}
    grouped = [name for m, (name, _) in modules.items() if getattr(m, "groups", 1) > 1]
    if grouped:
        raise ValueError(
            f"K-FAC has no Kronecker factors for the grouped convolutions {', '.join(grouped)}: use a model without groups, freeze "
            "these layers (requires_grad=False), or choose the exact curvature for a small model"
        )
    if not modules:
        raise ValueError(
            "the model has no trainable Linear, Conv2d or Embedding: K-FAC has no layer to work on; choose another estimator"
        )
    return modules
