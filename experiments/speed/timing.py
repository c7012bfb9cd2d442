"""Ratios of times. Both runs alternate in one process, so that other load on the machine affects both of them.

A row has the median of the ratios over the repeats, their quartiles as its interval, and the median seconds of both runs. Ratios
of counts have no quartiles.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attribution.diffusion import denoiser
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Measure
from experiments.metrics.estimate import Estimate
from experiments.report.row import Row, Subject

BENCHMARK = "speed"
Run = Callable[[], None]


@dataclass(frozen=True)
class Ratio:
    """A ratio of two runs: its estimate, and ``about``, facts about the measurement."""

    estimate: Estimate
    about: Mapping[str, float]


def speed_row(metric: str, ratio: Ratio, examples: int, draws: int) -> Row:
    """The row of a ratio for passes of ``examples`` with ``draws`` each."""
    about: dict[str, Any] = {**ratio.about, "examples": examples, "draws": draws}
    subject = Subject(f"{examples} examples × {draws} draws")
    return Row(benchmark=BENCHMARK, metric=metric, subject=subject, estimate=ratio.estimate, about=about)


def inputs(model: nn.Module, shape: tuple[int, int, int], examples: int, count: int, T: int) -> tuple[Tensor, Draws]:
    """Return ``examples`` random images of ``shape`` (C, H, W) and ``count`` draws of each, on the device of the model."""
    p = next(model.parameters())
    x0 = torch.rand(examples, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return x0.to(p.device, p.dtype), Uniform(count).draw("speed", torch.arange(examples), T).to(p.device)


def plain(model: nn.Module, measure: Measure, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> Run:
    """Return the plain pass, the reference of all ratios: noise, forward, and backward to the summed gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> None:
        costs = measure(denoiser(model), *measure.inputs(x0, draws, condition))
        torch.autograd.grad(costs.sum(), parameters, allow_unused=True)

    return run


def ratio(ours: Run, reference: Run, repeats: int) -> Ratio:
    """Measure the ratio of times ``ours / reference`` in ``repeats`` rounds after a warm-up."""
    seconds = in_turns({"ours": ours, "reference": reference}, repeats)
    return quotient(seconds["ours"], seconds["reference"])


def in_turns(runs: Mapping[str, Run], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of every run in each of ``repeats`` rounds of all runs, after a warm-up round."""
    rounds = [{name: seconds_of(run) for name, run in runs.items()} for _ in range(repeats + 1)]
    return {name: [times[name] for times in rounds[1:]] for name in runs}


def quotient(seconds: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Return the median of the ratios ``seconds / reference``, round by round, with their quartiles."""
    ratios = [a / b for a, b in zip(seconds, reference, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    about = {
        "seconds": statistics.median(seconds),
        "reference_seconds": statistics.median(reference),
        "repeats": len(ratios),
    }
    return Ratio(Estimate(statistics.median(ratios), low, high, 0.5, "quartiles of rounds"), about)


def multiplications(run: Run) -> int:
    """Count the multiply-adds of the matrix products and convolutions in a run."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def count_ratio(ours: float, reference: float) -> Ratio:
    """Return a ratio of counts, which does not vary."""
    return Ratio(Estimate(ours / reference), {})


def seconds_of(run: Run) -> float:
    """Return the seconds of one run."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def seconds_per_pass(model: nn.Module, shape: tuple[int, int, int], measure: Measure, condition: Tensor | None = None) -> float:
    """Estimate the seconds for forward and backward of one image, from three passes of as many images as take about a second.

    ``condition [1, ...]``: that of every image.
    """

    def passes(images: int) -> Run:
        given = None if condition is None else condition.expand(images, *condition.shape[1:])
        return plain(model, measure, *inputs(model, shape, images, 1, measure.process.T), given)

    first = passes(2)
    first()  # warm up
    images = min(max(int(2 / seconds_of(first)), 2), 32)
    run = passes(images)
    return min(seconds_of(run) for _ in range(3)) / images


def synchronize() -> None:
    """Wait for all that the GPU was given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
