"""Signs that a model has not learned its data: a loss that needs no image to reach, and samples that are noise."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from attribution.diffusion import Process, denoiser
from attribution.execution import FORWARD_ACTIVATIONS, Execution
from attribution.images import Images, ImageSet
from attribution.images.draws import Fixed
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, Node, execution
from experiments.models.experiment import Experiment

SHARED = ("attribution.diffusion.denoiser", "attribution.images.draws", "attribution.images.images")

_IMAGES = 64
_TIMESTEPS = 16
_FOR_MOMENTS = 1024
"""The largest number of images for the mean and the variance of each pixel, and for the roughness."""


@dataclass(frozen=True, eq=False)
class FitLosses(Arrays):
    """Squared errors of training images, means over timesteps: of the model and of ``pixelwise_prediction``, both ``[B]``."""

    model: np.ndarray
    pixelwise: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Fit(Node[FitLosses]):
    """The loss of a trained model on a few of its training images ``data``, beside that of ``pixelwise_prediction``.

    The timesteps lie in the middle of equal stretches of 1..T; both predictions get the same noise. The loss is the squared error
    of the process's target, with the weight of training.
    """

    NAME = "Fit"
    VERSION = 1
    TITLE = "loss on training images"
    ARTIFACT = FitLosses

    trained: Trained
    data: ImageSet
    execution: Execution = execution(default=Execution())

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """The loss of the experiment's model."""
        return cls(trained=experiment.trained, data=experiment.train, execution=experiment.execution)

    def cost(self) -> Cost:
        at_once = FORWARD_ACTIVATIONS * min(_IMAGES * _TIMESTEPS, self.execution.batch_size)
        return Cost(passes=_IMAGES * _TIMESTEPS / 3, inputs=at_once)  # a forward pass is about a third of forward and backward

    def compute(self, get: Get) -> FitLosses:
        images, device, process = get(self.data), self.execution.torch_device(), self.trained.process
        network = self.trained.network(get).float().to(device)
        rows = _spread(len(images), _IMAGES)
        pool = images.x0(_spread(len(images), _FOR_MOMENTS)).to(device)
        mean, variance = pool.mean(0), pool.var(0, correction=0)
        timesteps = sorted({int((j + 0.5) * process.T / _TIMESTEPS) + 1 for j in range(_TIMESTEPS)})
        draws = Fixed(timesteps).draw("fit", images.ids(rows), process.T)
        inputs = self.trained.objective.inputs(images.x0(rows), draws, images.conditions(rows))
        errors = []
        for start in range(0, len(inputs.t), self.execution.batch_size):
            batch = inputs.rows(slice(start, start + self.execution.batch_size))
            x0, t, noise = (tensor.to(device) for tensor in batch[:3])
            condition = None if batch.condition is None else batch.condition.to(device)
            x_t, target = process.add_noise(x0, t, noise), process.target(x0, t, noise)
            with torch.inference_mode():
                output = denoiser(network)(process.network_input(x_t, t), process.network_time(t), condition)
            pair = (output, pixelwise_prediction(process, mean, variance, x_t, t))
            squares = torch.stack([(prediction - target).square().flatten(1).mean(1) for prediction in pair])
            errors.append((squares * process.weight(t, squares.dtype)).cpu())
        model, pixelwise = torch.cat(errors, 1).view(2, len(rows), -1).mean(2).numpy()
        return FitLosses(model, pixelwise)


def pixelwise_prediction(process: Process, mean: Tensor, variance: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """The best affine prediction of the target from each pixel of ``x_t [B, C, H, W]`` by itself.

    With x_t = α x_0 + σ ε and target = c x_0 + d ε it is ``c μ + (αcv + σd) / (α²v + σ²) · (x_t - αμ)``, for the ``mean`` μ and the
    ``variance`` v of each pixel over the training images, ``[C, H, W]``. It uses no other pixel, so nothing of what images show.
    """
    one, zero = torch.ones_like(x_t[:, :1, :1, :1]), torch.zeros_like(x_t[:, :1, :1, :1])
    alpha, sigma = process.add_noise(one, t, zero), process.add_noise(zero, t, one)
    c, d = process.target(one, t, zero), process.target(zero, t, one)
    gain = (alpha * c * variance + sigma * d) / (alpha**2 * variance + sigma**2)
    return c * mean + gain * (x_t - alpha * mean)


def roughness(images: Images) -> np.ndarray:
    """Half the mean squared difference of neighboring pixels over the variance of the pixels, for up to 1024 images ``[N]``.

    It is about 1 for white noise, and small for smooth images. Images of one color have 0.
    """
    x = images.x0(_spread(len(images), _FOR_MOMENTS))
    differences = [(x[..., 1:] - x[..., :-1]), (x[..., 1:, :] - x[..., :-1, :])]
    squares = torch.stack([difference.square().flatten(1).mean(1) for difference in differences]).mean(0)
    variance = x.flatten(2).var(2, correction=0).mean(1)
    return torch.where(variance > 0, squares / (2 * variance), 0.0).double().numpy()


def _spread(count: int, most: int) -> np.ndarray:
    """At most ``most`` positions in 0..count-1, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
