"""Replay: compute a recorded training step again from the record."""

import numpy as np
import torch
from torch import Tensor, nn

from attribution.images import Images
from attribution.measurements import Measure
from attribution.precision import TF32, tf32_products
from attribution.training.module import training_loss
from attribution.training.record import TrainingRecord, draws_of


def replay_gradient(network: nn.Module, measure: Measure, record: TrainingRecord, images: Images, step: int) -> dict[str, Tensor]:
    """Return the gradient of training step ``step`` (0-based) after clipping, by parameter name.

    ``network`` holds the parameters before that step; its dtype is the precision of the computation. One SGD step ``θ - η g`` with
    the recorded learning rate then gives the parameters after the step, bit for bit if one process made it on the same kind of
    device, with ``network`` as it was in training (``Recipe.channels_last``, not compiled).

    Raises:
        ValueError: a training run under autocast, or a step made by several processes.
    """
    if "mixed" in record.info["precision"]:
        raise ValueError(f"trained in {record.info['precision']}: only a training run without autocast can be replayed exactly")
    rows = record.step_table[record.step_table["step"] == step]
    if len(rows) != 1:
        raise ValueError(f"step {step} was made by {len(rows)} processes: only a step of one process can be replayed")
    visits = record.visits_of_step(step)
    order = np.argsort(images.index)
    positions = order[np.searchsorted(images.index, visits["example"], sorter=order)]
    parameter = next(network.parameters())
    x0 = images.x0(positions).to(parameter.device, parameter.dtype)
    with torch.random.fork_rng(), tf32_products(record.info["precision"] == TF32):
        draws, condition = draws_of(visits).to(parameter.device), images.conditions(positions)
        condition = None if condition is None else condition.to(parameter.device)
        loss = training_loss(network.train(), measure, x0, draws, int(rows["dropout_seed"][0]), condition)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    factor = float(rows["clip_factor"][0])
    return {name: g * factor for (name, _), g in zip(network.named_parameters(), gradients, strict=True)}
