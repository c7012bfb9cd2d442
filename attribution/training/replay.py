"""Replay: compute a recorded training step again from the record."""

import numpy as np
import torch
from torch import Tensor, nn

from attribution.diffusion.denoiser import denoiser, without_label_dropout
from attribution.images import Images
from attribution.measurements import Measure
from attribution.precision import TF32, tf32_products
from attribution.training.module import training_loss
from attribution.training.record import TrainingRecord, draws_of, positions_of

SHARED = ("attribution.diffusion.denoiser", "attribution.training.module", "attribution.training.record")


def replay_gradient(network: nn.Module, measure: Measure, record: TrainingRecord, images: Images, step: int) -> dict[str, Tensor]:
    """Return the gradient of training step ``step`` (0-based) after clipping, by parameter name.

    ``network`` holds the parameters before that step; its dtype is the precision of the computation. One SGD step ``θ - η g`` with
    the recorded learning rate then gives the parameters after the step, bit for bit if one process made it on the same kind of
    device, with ``network`` as it was in training (``Recipe.channels_last``, not compiled), and up to rounding if several processes
    made it, each with its part of the batch.

    Raises:
        ValueError: a training run under autocast, or one of several processes by an earlier version (with visits in another order).
    """
    if "mixed" in record.info["precision"]:
        raise ValueError(f"trained in {record.info['precision']}: only a training run without autocast can be replayed exactly")
    rows = record.step_table[record.step_table["step"] == step]
    if len(rows) > 1 and "processes" not in record.info:
        raise ValueError(f"step {step} was recorded by an earlier version with {len(rows)} processes: train again to replay it")
    visits, tf32 = record.visits_of_step(step), record.info["precision"] == TF32
    parts = [_gradients(network, measure, images, visits[rank :: len(rows)], row, tf32) for rank, row in enumerate(rows)]
    factor, names = float(rows["clip_factor"][0]), [name for name, p in network.named_parameters() if p.requires_grad]
    means = [gradients[0] if len(rows) == 1 else torch.stack(gradients).mean(0) for gradients in zip(*parts, strict=True)]
    return {name: mean * factor for name, mean in zip(names, means, strict=True)}


def _gradients(
    network: nn.Module, measure: Measure, images: Images, visits: np.ndarray, row: np.void, tf32: bool
) -> tuple[Tensor, ...]:
    """The gradient of the mean loss at the ``visits`` of one process, with its ``row`` of the step table."""
    positions = positions_of(images, visits)
    parameter = next(network.parameters())
    x0 = images.x0(positions).to(parameter.device, parameter.dtype)
    with torch.random.fork_rng(), tf32_products(tf32):
        draws, condition = draws_of(visits).to(parameter.device), images.conditions(positions)
        condition = None if condition is None else condition.to(parameter.device)
        loss = training_loss(without_label_dropout(network).train(), measure, x0, draws, int(row["dropout_seed"]), condition)
        return torch.autograd.grad(loss, [p for p in network.parameters() if p.requires_grad])


@torch.no_grad()
def replay_loss(network: nn.Module, measure: Measure, record: TrainingRecord, images: Images, step: int) -> float:
    """Return the loss of training step ``step`` (0-based) by ``network``, which holds the parameters before it.

    It is the recorded loss, up to rounding and dropout, if the images, their ids, the process and the recorded draws are those of
    training.
    """
    return float(visit_losses(network, measure, images, record.visits_of_step(step)).mean())


def visit_losses(network: nn.Module, measure: Measure, images: Images, visits: np.ndarray) -> Tensor:
    """The loss of ``network`` at each of the ``visits [B]``: ``[B]``, in the precision of its parameters."""
    positions, parameter = positions_of(images, visits), next(network.parameters())
    x0, condition = images.x0(positions).to(parameter.device, parameter.dtype), images.conditions(positions)
    condition = None if condition is None else condition.to(parameter.device)
    return measure(denoiser(network), *measure.inputs(x0, draws_of(visits).to(parameter.device), condition))
