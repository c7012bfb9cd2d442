"""How long per-example gradients take, as ratios to the plain forward and backward pass of the same draws.

Both sides of a ratio run in one process and take turns, so that whatever else the machine does falls on both. A row has the median
of the ratios over the repeats with their quartiles (``value``, ``low``, ``high``), and the median seconds of both sides.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attribution.diffusion import denoiser, eval_mode
from attribution.draws import Draws, Uniform
from attribution.gradients import PerExampleGradients
from attribution.measurements import Measure

Row = dict[str, Any]


def gradient_speed(
    model: nn.Module, shape: tuple[int, int, int], measure: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """Rows for every number of draws: ``examples`` of ``shape`` (C, H, W), all draws of all examples in one pass, in eval mode.

    - ``gradients / plain``: gradients averaged over draws, over the ordinary pass with its summed gradients.
    - ``normalized gradients / plain``: every draw's gradient divided by its own norm before they are averaged.
    - ``vmap / gradients``: ``torch.func.vmap`` over examples of ``grad`` of their averages over draws, over ours.
    - ``vmap per draw / gradients``: one ``vmap(grad)`` for every draw and the average of these gradients, over ours.
    """
    rows: list[Row] = []
    for count in draws:
        x0, some = _inputs(model, shape, examples, count, measure.schedule.T)
        gradients = PerExampleGradients(model, batch_size=examples * count)
        gradients.capture(measure, x0, some)  # checks itself once

        def ours(x0: Tensor = x0, some: Draws = some, gradients: PerExampleGradients = gradients) -> None:
            gradients.capture(measure, x0, some).mean()

        def normalized(x0: Tensor = x0, some: Draws = some, gradients: PerExampleGradients = gradients) -> None:
            gradients.capture(measure, x0, some).mean(torch.reciprocal)

        plain = _plain(model, measure, x0, some)
        pairs = {
            "gradients / plain": (ours, plain),
            "normalized gradients / plain": (normalized, plain),
            "vmap / gradients": (_vmapped(model, measure, x0, some, together=count), ours),
        }
        if count > 1:
            pairs["vmap per draw / gradients"] = _vmapped(model, measure, x0, some, together=1), ours
        with eval_mode(model):
            for metric, (one, other) in pairs.items():
                rows.append({"metric": metric, **_ratio(one, other, repeats), "examples": examples, "draws": count})
    return rows


def draws_speed(
    model: nn.Module, shape: tuple[int, int, int], measure: Measure, examples: int, draws: Sequence[int], repeats: int
) -> list[Row]:
    """``draws / plain``: making timesteps and noise, over the plain pass that uses them."""
    rows: list[Row] = []
    for count in draws:
        x0, some = _inputs(model, shape, examples, count, measure.schedule.T)

        def make(x0: Tensor = x0, count: int = count) -> None:
            made = Uniform(count).draw("speed", torch.arange(len(x0)), measure.schedule.T).to(x0.device)
            made.noise(shape, x0.dtype)

        with eval_mode(model):
            ratio = _ratio(make, _plain(model, measure, x0, some), repeats)
        rows.append({"metric": "draws / plain", **ratio, "examples": examples, "draws": count})
    return rows


def _inputs(model: nn.Module, shape: tuple[int, int, int], examples: int, count: int, T: int) -> tuple[Tensor, Draws]:
    p = next(model.parameters())
    x0 = torch.rand(examples, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return x0.to(p.device, p.dtype), Uniform(count).draw("speed", torch.arange(examples), T).to(p.device)


def _plain(model: nn.Module, measure: Measure, x0: Tensor, draws: Draws) -> Callable[[], None]:
    """Noise, forward and backward with the summed gradient of every parameter."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> None:
        costs = measure(denoiser(model), *measure.inputs(x0, draws))
        torch.autograd.grad(costs.sum(), parameters, allow_unused=True)

    return run


def _vmapped(model: nn.Module, measure: Measure, x0: Tensor, draws: Draws, together: int) -> Callable[[], None]:
    """The generic way to per-example gradients in torch, ``together`` draws of each example in one ``grad`` of their mean."""
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def cost(parameters: dict[str, Tensor], x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            output = torch.func.functional_call(model, parameters, (x_t, t - 1))
            return output if isinstance(output, Tensor) else output.sample

        return measure(denoise, x, t, noise).mean()

    gradient = torch.func.vmap(torch.func.grad(cost), in_dims=(None, 0, 0, 0))

    def run() -> None:
        total: dict[str, Tensor] = {}
        # The plain form of attention: the fused ones have no batching rule, and warn that they are slow.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for first in range(0, draws.count, together):
                some = draws.columns(slice(first, first + together))
                x, t, noise = (rows.unflatten(0, (len(x0), together)) for rows in measure.inputs(x0, some))
                part = gradient(parameters, x, t, noise)
                total = {name: total[name] + g for name, g in part.items()} if total else part

    return run


def _ratio(ours: Callable[[], None], reference: Callable[[], None], repeats: int) -> Row:
    seconds, reference_seconds = [], []
    for repeat in range(repeats + 1):
        times = _seconds(ours), _seconds(reference)
        if repeat > 0:  # the first warms up
            seconds.append(times[0])
            reference_seconds.append(times[1])
    ratios = [a / b for a, b in zip(seconds, reference_seconds, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "value": statistics.median(ratios),
        "low": low,
        "high": high,
        "seconds": statistics.median(seconds),
        "reference_seconds": statistics.median(reference_seconds),
        "repeats": repeats,
    }


def _seconds(run: Callable[[], None]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_per_pass(model: nn.Module, shape: tuple[int, int, int], measure: Measure, images: int = 32) -> float:
    """Seconds that forward and backward of one image take, from a few passes of ``images``: for estimates beforehand."""
    x0, draws = _inputs(model, shape, images, 1, measure.schedule.T)
    plain = _plain(model, measure, x0, draws)
    plain()
    return min(_seconds(plain) for _ in range(3)) / images
