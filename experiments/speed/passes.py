"""What a pass of a network takes: bytes and floating-point operations."""

from dataclasses import dataclass

from torch import nn

from attribution.execution import FLOAT32_BYTES, Execution
from attribution.gradients.activations import activation_bytes
from attribution.gradients.layer_check import find_layers
from attribution.gradients.per_example import inputs_that_fit
from attribution.measurements import Measure
from experiments.speed.timing import inputs, multiplications, plain


@dataclass(frozen=True)
class PassCost:
    """The cost of passes: ``of_model`` bytes for the parameters, and ``of_input`` bytes for each of at most ``most`` inputs.

    ``flops``: the floating-point operations of the forward and backward pass of one image.
    """

    of_model: float
    of_input: float
    most: int
    flops: float

    @classmethod
    def of(cls, network: nn.Module, shape: tuple[int, int, int], measure: Measure, execution: Execution) -> "PassCost":
        """The cost of passes of ``network`` on images of ``shape`` (C, H, W). It runs two images through it.

        A network whose layers have no per-example gradients has ``of_input = 0``: nothing is differentiated but in training.
        """
        x0, draws = inputs(network, shape, 2, 1, measure.process.T)
        flops = multiplications(plain(network, measure, x0, draws))  # 2 operations for each, of 2 images
        try:
            of_input = activation_bytes(network, find_layers(network), measure, measure.inputs(x0, draws))
        except ValueError:
            of_input = 0.0
        most = inputs_that_fit(execution.batch_size, execution.pass_bytes, of_input)
        return cls(FLOAT32_BYTES * sum(p.numel() for p in network.parameters()), of_input, most, flops)

    def memory(self, passes: float) -> float:
        """The bytes that a node with so many passes of single inputs takes, without its gradients and results."""
        return self.of_model + min(passes, self.most) * self.of_input if passes else 0.0
