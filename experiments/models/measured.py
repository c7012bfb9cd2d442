"""Measurements of a trained model as store nodes. Benchmarks compare predictions with them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from attribution.diffusion import denoiser
from attribution.double_precision import on_device
from attribution.execution import FLOAT64_BYTES, FORWARD_ACTIVATIONS, FORWARD_TIME, Execution, ranges
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Cost, Get, JointNode, added, execution, key
from attribution.precision import FLOAT32, TF32, autocast, check_precision, tf32_products
from attribution.transfers import to_device

SHARED = ("attribution.diffusion.denoiser",)


@dataclass(frozen=True, eq=False)
class MeasuredValues(Arrays):
    """``values [Q]`` float64: the measurement of each image, averaged over its draws."""

    values: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Measured(JointNode[MeasuredValues]):
    """The ``measure`` of ``images`` under a ``model``. All models get the same ``draws`` (common random numbers).

    Measurements with another ``role`` have independent draws. ``precision``: of the passes of a float32 network, one of
    ``attribution.precision.MIXABLE``; means are in float64.
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
    precision: str = added(default=FLOAT32)
    execution: Execution = execution(default=Execution())

    def __post_init__(self):
        """Raises FieldError: another precision."""
        check_precision(self, "precision")

    def together(self) -> Hashable:
        return key(self.model)

    def cost(self) -> Cost:
        inputs, size = self.images.count * self.draws.count, FLOAT64_BYTES * self.images.count
        at_once = FORWARD_ACTIVATIONS * min(inputs, self.execution.batch_size)
        return Cost(passes=FORWARD_TIME * inputs, inputs=at_once, disk=size)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[MeasuredValues]:  # pyright: ignore[reportIncompatibleMethodOverride]
        device = nodes[0].execution.torch_device()
        network = on_device(nodes[0].model.network(get), device)
        return [node._values(network, get, device) for node in nodes]

    def _values(self, network: torch.nn.Module, get: Get, device: torch.device) -> MeasuredValues:
        images = get(self.measure.subject(self.images))
        drawn, costs = [], []
        dtype, proposal, K = next(network.parameters()).dtype, self.measure.proposal(), self.draws.count
        with torch.inference_mode(), tf32_products(self.precision == TF32), autocast(self.precision, device):
            for start, stop in ranges(0, self.images.count, max(1, self.execution.batch_size // K)):
                rows = slice(start, stop)
                draws = self.draws.draw_for(proposal, self.role, images.ids(rows))
                unweighted = draws.unweighted().to(device)
                x0, condition = to_device(images.x0(rows), device, dtype), images.conditions(rows)
                condition = None if condition is None else to_device(condition, device)
                of_passes = [
                    self.measure(denoiser(network), *self.measure.inputs(x0, unweighted.columns(slice(*columns)), condition))
                    for columns in ranges(0, K, self.execution.batch_size)
                ]
                drawn.append(draws)
                costs.append(torch.cat([of_pass.view(stop - start, -1) for of_pass in of_passes], 1))
        on_host = torch.cat(costs).cpu().double()  # once, because the host waits for the device in each copy
        means = (draws.mean(of_block) for draws, of_block in zip(drawn, on_host.split([len(each) for each in drawn]), strict=True))
        values = torch.cat(list(means)).numpy()
        if not np.isfinite(values).all():
            raise FloatingPointError(
                f"{int((~np.isfinite(values)).sum())} of {len(values)} measurements are not finite: did training diverge?"
            )
        return MeasuredValues(values)
