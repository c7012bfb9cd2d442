"""What the plan counts for passes."""

import pytest
import torch

from attribution.execution import Execution
from experiments.speed.passes import PassCost
from tests.worlds import OBJECTIVE


class Network(torch.nn.Module):
    """One convolution of 1 × 1."""

    def __init__(self, layer=torch.nn.Conv2d):
        super().__init__()
        self.layer = layer(1, 1, 1, bias=False)

    def forward(self, x, t):
        return self.layer(x)


def test_operations_and_bytes_of_one_convolution():
    """Claim: per image a forward pass and a gradient of the weights, 64 multiply-adds each; two images of 64 pixels are kept."""
    cost = PassCost.of(Network(), (1, 8, 8), OBJECTIVE, Execution(device="cpu", batch_size=100, pass_memory=20 * 512))
    assert cost.flops == 2 * 2 * 64
    assert cost.of_input == pytest.approx(2 * 64 * 4, rel=0.05)
    assert cost.most == 16
    assert cost.memory(3) == cost.of_model + 3 * cost.of_input
    assert cost.memory(1000) == cost.of_model + 16 * cost.of_input
    assert cost.memory(0) == 0


def test_a_network_without_per_example_gradients_has_a_plan():
    """Claim: a layer that attribution does not know is no error of a plan, which may be that of training alone."""
    cost = PassCost.of(Network(torch.nn.ConvTranspose2d), (1, 8, 8), OBJECTIVE, Execution(device="cpu"))
    assert cost.of_input == 0
    assert cost.flops > 0
