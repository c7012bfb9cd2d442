"""Speed of per-example gradients and of draws, relative to the plain forward and backward pass of the same draws."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.diffusion import denoiser, eval_mode
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Measure
from experiments.report.row import Row
from experiments.speed.timing import Run, inputs, plain, ratio, speed_row


def gradient_speed(
    model: nn.Module, shape: tuple[int, int, int], measure: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Measure gradients for every number of ``draws``, with ``examples`` of ``shape`` (C, H, W) in one pass in eval mode.

    The rows for each number of draws are ratios of times:

    - ``gradients / plain``: gradients averaged over draws, over the plain pass
    - ``normalized gradients / plain``: the average of gradients divided by their norm, over the plain pass
    - ``vmap / gradients``: ``torch.func.vmap`` over examples of ``grad`` of the mean over draws, over our gradients
    - ``vmap per draw / gradients``: the average of one ``vmap(grad)`` for each draw, over our gradients
    """
    rows: list[Row] = []
    for count in draws:
        x0, batch = inputs(model, shape, examples, count, measure.process.T)
        gradients = PerExampleGradients(model, batch_size=examples * count)
        gradients.capture(measure, x0, batch)  # the first capture runs a check

        def ours(x0: Tensor = x0, batch: Draws = batch, gradients: PerExampleGradients = gradients) -> None:
            gradients.capture(measure, x0, batch).mean()

        def normalized(x0: Tensor = x0, batch: Draws = batch, gradients: PerExampleGradients = gradients) -> None:
            gradients.capture(measure, x0, batch).mean(torch.reciprocal)

        reference = plain(model, measure, x0, batch)
        pairs = {
            "gradients / plain": (ours, reference),
            "normalized gradients / plain": (normalized, reference),
            "vmap / gradients": (_vmapped(model, measure, x0, batch, together=count), ours),
        }
        if count > 1:
            pairs["vmap per draw / gradients"] = _vmapped(model, measure, x0, batch, together=1), ours
        with eval_mode(model):
            for metric, (run, other) in pairs.items():
                rows.append(speed_row(metric, ratio(run, other, repeats), examples, count))
    return rows


def draws_speed(
    model: nn.Module, shape: tuple[int, int, int], measure: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Measure ``draws / plain``: time of generating timesteps and noise over that of the plain pass that uses them."""
    rows: list[Row] = []
    for count in draws:
        x0, batch = inputs(model, shape, examples, count, measure.process.T)

        def make(x0: Tensor = x0, count: int = count) -> None:
            made = Uniform(count).draw("speed", torch.arange(len(x0)), measure.process.T).to(x0.device)
            made.noise(shape, x0.dtype)

        with eval_mode(model):
            time_of_draws = ratio(make, plain(model, measure, x0, batch), repeats)
        rows.append(speed_row("draws / plain", time_of_draws, examples, count))
    return rows


def _vmapped(model: nn.Module, measure: Measure, x0: Tensor, draws: Draws, together: int) -> Run:
    """Return per-example gradients by ``torch.func``, with ``together`` draws of each example in one ``grad`` of their mean."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def cost(parameters: dict[str, Tensor], x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        return measure(denoiser(model, parameters), x, t, noise).mean()

    gradient = torch.func.vmap(torch.func.grad(cost), in_dims=(None, 0, 0, 0))

    def run() -> None:
        total: dict[str, Tensor] = {}
        # The fused kernels of attention have no batching rule, and warn that they are slow.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for first in range(0, draws.count, together):
                subset = draws.columns(slice(first, first + together))
                x, t, noise = (rows.unflatten(0, (len(x0), together)) for rows in measure.inputs(x0, subset)[:3])
                part = gradient(parameters, x, t, noise)
                total = {name: total[name] + g for name, g in part.items()} if total else part

    return run
