"""Measurements of a trained model as store nodes. Benchmarks compare predictions with them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from attribution.diffusion import denoiser
from attribution.double_precision import on_device
from attribution.execution import FLOAT64_BYTES, Execution, ranges
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, JointNode, added, execution, key

SHARED = ("attribution.diffusion.denoiser",)


@dataclass(frozen=True, eq=False)
class MeasuredValues(Arrays):
    """``values [Q]`` float64: the measurement of each image, averaged over its draws."""

    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Measured(JointNode[MeasuredValues]):
    """The ``measure`` of ``images`` under a ``model``. All models get the same ``draws`` (common random numbers).

    Measurements with another ``role`` have independent draws.
    """

    NAME = "Measured"
    VERSION = 1
    TITLE = "measurements of models"
    ARTIFACT = MeasuredValues

    model: Trained[Any]
    images: ImageSet
    measure: Measure
    draws: DrawScheme
    role: str = added(default="measurement")
    execution: Execution = execution(default=Execution())

    def together(self) -> Hashable:
        return key(self.model)

    def cost(self) -> Cost:
        count = self.images.count
        passes = count * self.draws.count / 3  # a forward pass is about a third of forward and backward
        return Cost(passes=passes, disk=FLOAT64_BYTES * count)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[MeasuredValues]:  # pyright: ignore[reportIncompatibleMethodOverride]
        device = nodes[0].execution.torch_device()
        network = on_device(nodes[0].model.network(get), device)
        return [node._values(network, get, device) for node in nodes]

    def _values(self, network: torch.nn.Module, get: Get, device: torch.device) -> MeasuredValues:
        images, measured = get(self.measure.subject(self.images)), []
        dtype, proposal, K = next(network.parameters()).dtype, self.measure.proposal(), self.draws.count
        with torch.inference_mode():
            for start, stop in ranges(0, self.images.count, max(1, self.execution.batch_size // K)):
                rows = slice(start, stop)
                draws = self.draws.draw_for(proposal, self.role, images.ids(rows))
                unweighted = draws.unweighted().to(device)
                x0, condition = images.x0(rows).to(device, dtype), images.conditions(rows)
                condition = None if condition is None else condition.to(device)
                costs = [
                    self.measure(denoiser(network), *self.measure.inputs(x0, unweighted.columns(slice(*columns)), condition))
                    .cpu()
                    .double()
                    .view(stop - start, -1)
                    for columns in ranges(0, K, self.execution.batch_size)
                ]
                measured.append(draws.mean(torch.cat(costs, 1)).numpy())
        values = np.concatenate(measured)
        if not np.isfinite(values).all():
            raise FloatingPointError(
                f"{int((~np.isfinite(values)).sum())} of {len(values)} measurements are not finite: did training diverge?"
            )
        return MeasuredValues(values)
