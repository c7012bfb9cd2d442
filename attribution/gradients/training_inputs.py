"""The training images at the draws of one side of the scores."""

import torch
from torch import Tensor

from attribution.images import Images
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure
from attribution.transfers import to_device


def training_inputs(
    images: Images,
    rows: slice,
    scheme: DrawScheme,
    objective: Measure,
    flips: bool,
    device: torch.device,
    role: str = "attribution",
) -> tuple[Tensor, Draws, Tensor | None]:
    """The images of ``rows`` ``[n, C, H, W]``, their draws ``[n, K]``, both on the device, and their conditions.

    ``objective`` is that of training, which says whether conditions are dropped; ``flips``: mirror images at random.
    """
    ids = to_device(images.ids(rows), device)
    draws = scheme.draw(role, ids, objective.process.T, flips, objective.condition_dropout)
    return to_device(images.x0(rows), device), draws, images.conditions(rows)
