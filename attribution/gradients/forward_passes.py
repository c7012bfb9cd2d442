"""Values at the draws of training images that need no gradients: forward passes, as large as memory allows."""

from collections.abc import Callable

import torch
from torch import Tensor

from attribution.diffusion import eval_mode
from attribution.execution import FORWARD_ACTIVATIONS, FORWARD_TIME, Execution, ranges
from attribution.gradients.per_example import PerExampleGradients
from attribution.gradients.training_inputs import training_inputs
from attribution.images import Images
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Inputs, Measure
from attribution.nodes import Cost
from attribution.transfers import to_device

SHARED = ("attribution.diffusion.denoiser", "attribution.gradients.training_inputs")


def forward_cost(inputs: int, execution: Execution, times: int = 1) -> Cost:
    """The cost of ``times`` forward passes of as many ``inputs`` of the network."""
    return Cost(passes=FORWARD_TIME * inputs * times, at_once=FORWARD_ACTIVATIONS * min(inputs, execution.batch_size))


def at_draws(
    value: Callable[[torch.nn.Module, Inputs], Tensor],
    per_example: PerExampleGradients,
    objective: Measure,
    images: Images,
    rows: tuple[int, int],
    scheme: DrawScheme,
    role: str,
    flips: bool,
) -> Tensor:
    """Return ``value(network, inputs) [B]`` of images ``rows[0]..rows[1]-1`` at their draws: ``[n, K]`` float64, on the host."""
    parameter, (first, last), K, values = per_example.parameters[0], rows, scheme.count, []

    def inputs(block: slice) -> tuple[Tensor, Draws, Tensor | None]:
        x0, draws, condition = training_inputs(images, block, scheme, objective, flips, parameter.device, role)
        return x0.to(parameter.dtype), draws, None if condition is None else to_device(condition, parameter.device)

    size = per_example.inputs_per_pass(objective, *inputs(slice(first, min(first + 2, last))))
    with torch.inference_mode(), eval_mode(per_example.model):
        for start, stop in ranges(first, last, max(1, size // K)):
            x0, draws, condition = inputs(slice(start, stop))
            passes = [
                value(per_example.model, objective.inputs(x0, draws.columns(slice(*columns)), condition))
                for columns in ranges(0, K, size)
            ]
            values.append(torch.cat([of_pass.view(stop - start, -1) for of_pass in passes], 1))
    return torch.cat(values).cpu().double()
