"""How fast this machine is, and what a pass of a network takes: the constants of a plan."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attribution.device_memory import FREED_MEMORY_KEPT, process_bytes
from attribution.double_precision import double_device
from attribution.execution import FLOAT32_BYTES, Execution
from attribution.gradients.activations import activation_bytes
from attribution.gradients.layer_check import find_layers
from attribution.gradients.per_example import inputs_that_fit
from attribution.measurements import Measure
from attribution.nodes import Cost
from attribution.nodes.files import Digest
from experiments.speed.timing import inputs, multiplications, plain, seconds_of, seconds_per_pass

_PRODUCT, _EIGH, _FILE = 1024, 512, 2**25
"""The sizes of the products and decompositions that are timed, and of a file in bytes."""


@dataclass(frozen=True)
class Rates:
    """The constants of ``memory`` and ``seconds``.

    ``process``: bytes of this process, without ``network``, and of freed memory that it keeps, on a CPU. ``parameters``: bytes of
    the parameters. ``activations``: bytes that a pass keeps for each network input. ``largest_pass``: the most inputs of a pass in
    attribution. ``flops``: floating-point operations of the forward and backward pass of one image. ``per_pass``, ``per_product``,
    ``per_cube``, ``per_byte``: seconds for a pass, for a multiply-add in a product of matrices, for n³ of an eigendecomposition,
    and to store a byte.
    """

    process: float
    parameters: float
    activations: float
    largest_pass: int
    flops: float
    per_pass: float
    per_product: float
    per_cube: float
    per_byte: float

    @classmethod
    def of(
        cls,
        network: nn.Module,
        shape: tuple[int, int, int],
        measure: Measure,
        execution: Execution,
        folder: Path,
        condition: Tensor | None = None,
    ) -> "Rates":
        """Measure the rates with ``network``, on images of ``shape`` (C, H, W), and with a file, in ``folder`` if it is writable.

        ``condition [1, ...]``: that of every image. A network whose layers have no per-example gradients has ``activations = 0``,
        since it is differentiated only in training.
        """
        device = next(network.parameters()).device
        parameters = FLOAT32_BYTES * sum(p.numel() for p in network.parameters())
        process = (process_bytes() or 0.0) - parameters + FREED_MEMORY_KEPT if device.type == "cpu" else 0.0  # before any pass
        x0, draws = inputs(network, shape, 2, 1, measure.process.T)
        condition = None if condition is None else condition.to(device)
        pair = None if condition is None else condition.expand(2, *condition.shape[1:])
        flops = multiplications(plain(network, measure, x0, draws, pair))  # 2 for each multiplication, divided by 2 images
        try:
            activations = activation_bytes(network, find_layers(network), measure, measure.inputs(x0, draws, pair))
        except ValueError:
            activations = 0.0
        return cls(
            process=max(process, 0.0),
            parameters=parameters,
            activations=activations,
            largest_pass=inputs_that_fit(execution.batch_size, execution.pass_bytes, activations),
            flops=flops,
            per_pass=seconds_per_pass(network, shape, measure, condition),
            per_product=_seconds_of_product(device),
            per_cube=_seconds_of_eigh(double_device(device)),
            per_byte=_seconds_of_byte(folder),
        )

    def at(self, tflops: float) -> "Rates":
        """The rates of a device that sustains ``tflops`` · 10^12 floating-point operations per second in passes and products.

        Eigendecompositions and files take as long as here.
        """
        operation = 1 / (1e12 * tflops)
        return replace(self, per_pass=self.flops * operation, per_product=2 * operation)

    def memory(self, cost: Cost) -> float:
        """The most bytes that a node takes: of this process, the parameters, activations, and what the node counts itself."""
        if not cost.passes:
            return self.process + cost.memory
        kept = min(cost.at_once or cost.passes, cost.passes, self.largest_pass) if cost.inputs is None else cost.inputs
        return self.process + self.parameters + kept * self.activations + cost.memory

    def seconds(self, cost: Cost) -> float:
        """The time of a node or, as it is linear, of the sum of the costs of several nodes."""
        passes = cost.passes * cost.pass_weight * self.per_pass
        return passes + cost.products * self.per_product + cost.cubes * self.per_cube + cost.disk * self.per_byte


def _seconds_of_product(device: torch.device) -> float:
    """Seconds per multiply-add of a float32 product."""
    matrix = torch.ones(_PRODUCT, _PRODUCT, device=device)
    return _best(lambda: matrix @ matrix) / _PRODUCT**3


def _seconds_of_eigh(device: torch.device) -> float:
    """Seconds per n³ of a float64 eigendecomposition."""
    matrix = torch.randn(_EIGH, _EIGH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = (matrix @ matrix.T).to(device)
    return _best(lambda: torch.linalg.eigh(matrix)) / _EIGH**3


def _seconds_of_byte(folder: Path) -> float:
    """Seconds per byte of a file that is written, synchronized and hashed."""
    content = {"x": torch.zeros(_FILE // FLOAT32_BYTES)}
    with tempfile.TemporaryDirectory(dir=folder if os.access(folder, os.W_OK) else None) as place:
        path = Path(place) / "x.safetensors"

        def write() -> None:
            save_file(content, path)
            Digest.of(path, sync=True)

        return _best(write) / _FILE


def _best(run: Callable[[], object]) -> float:
    run()
    return min(seconds_of(run) for _ in range(3))  # pyright: ignore[reportArgumentType]
