"""Replay: what a recorded step did, computed again from the record alone."""

import numpy as np
import torch
from torch import Tensor, nn

from attribution.images import Images
from attribution.measurements import Measure
from attribution.training.module import training_loss
from attribution.training.record import TrainingRecord, draws_of


def replay_gradient(network: nn.Module, measure: Measure, record: TrainingRecord, images: Images, step: int) -> dict[str, Tensor]:
    """The gradient with which training made its step number ``step`` (0-based), after clipping, by parameter name.

    ``network`` holds the parameters before that step. Its dtype decides the precision. One SGD step ``θ - η g`` with the
    recorded learning rate then gives the parameters after it, bit for bit when ``step`` was made by one process on the
    same kind of device.
    """
    if "mixed" in record.info["precision"]:
        raise ValueError(f"trained in {record.info['precision']}: only a training without autocast can be replayed to the bit")
    rows = record.step_table[record.step_table["step"] == step]
    if len(rows) != 1:
        raise ValueError(f"step {step} was made by {len(rows)} processes: only a step made by one can be replayed")
    visits = record.visits_of_step(step)
    order = np.argsort(images.index)
    positions = order[np.searchsorted(images.index, visits["example"], sorter=order)]
    parameter = next(network.parameters())
    x0 = images.x0(positions).to(parameter.device, parameter.dtype)
    with torch.random.fork_rng():
        loss = training_loss(network.train(), measure, x0, draws_of(visits).to(parameter.device), int(rows["dropout_seed"][0]))
        gradients = torch.autograd.grad(loss, list(network.parameters()))
    factor = float(rows["clip_factor"][0])
    return {name: g * factor for (name, _), g in zip(network.named_parameters(), gradients, strict=True)}
