"""The constants of a plan."""

from dataclasses import replace

import pytest
import torch

from attribution.execution import Execution
from attribution.nodes import Cost
from experiments.speed.rates import Rates
from tests.worlds import OBJECTIVE


class Network(torch.nn.Module):
    """One convolution of 1 × 1."""

    def __init__(self, layer=torch.nn.Conv2d):
        super().__init__()
        self.layer = layer(1, 1, 1, bias=False)

    def forward(self, x, t):
        return self.layer(x)


def rates(tmp_path, layer=torch.nn.Conv2d) -> Rates:
    execution = Execution(device="cpu", batch_size=100, pass_memory=20 * 512)
    return Rates.of(Network(layer), (1, 8, 8), OBJECTIVE, execution, tmp_path)


def test_operations_and_bytes_of_one_convolution(tmp_path):
    """Claim: per image a forward pass and a gradient of the weights, 64 multiply-adds each; two images of 64 pixels are kept."""
    measured = rates(tmp_path)
    assert measured.flops == 2 * 2 * 64
    assert measured.activations == pytest.approx(2 * 64 * 4, rel=0.05)
    assert measured.largest_pass == 16
    assert measured.process > 1e8
    fixed = replace(measured, process=5.0)
    assert fixed.memory(Cost(passes=3, memory=2)) == 7 + fixed.parameters + 3 * fixed.activations
    assert fixed.memory(Cost(passes=1000)) == 5 + fixed.parameters + 16 * fixed.activations
    assert fixed.memory(Cost(passes=1000, inputs=40)) == 5 + fixed.parameters + 40 * fixed.activations
    assert fixed.memory(Cost(memory=2)) == 7
    assert not list(tmp_path.iterdir())


def test_times_are_sums_over_the_work(tmp_path):
    """Claim: passes by their weight, products, decompositions and files each have a rate, and times of sums are sums of times."""
    measured = rates(tmp_path)
    assert min(measured.per_pass, measured.per_product, measured.per_cube, measured.per_byte) > 0
    simple = replace(measured, per_pass=1.0, per_product=10.0, per_cube=100.0, per_byte=1000.0)
    one, other = Cost(passes=2, pass_weight=1.5, products=3), Cost(passes=1, cubes=1, disk=2)
    assert (simple.seconds(one), simple.seconds(other)) == (3 + 30, 1 + 100 + 2000)
    assert simple.seconds(one + other) == simple.seconds(one) + simple.seconds(other)
    faster = simple.at(tflops=2.0)
    assert faster.seconds(Cost(passes=4)) == pytest.approx(4 * 256 / 2e12)
    assert faster.seconds(Cost(products=4)) == pytest.approx(4 * 2 / 2e12)
    assert faster.seconds(other) - faster.seconds(Cost(passes=1)) == pytest.approx(2100)


def test_a_network_without_per_example_gradients_has_a_plan(tmp_path):
    """Claim: a layer that attribution refuses is no error of a plan, which may be that of training alone."""

    def normalized(*arguments, **settings):
        return torch.nn.Sequential(torch.nn.Conv2d(*arguments, **settings), torch.nn.BatchNorm2d(1))

    measured = rates(tmp_path, normalized)
    assert measured.activations == 0
    assert measured.flops > 0


def test_a_conditional_network_has_a_plan(tmp_path):
    """Claim: the passes that are counted and timed get a condition; the operations are those of the network."""

    class OfClasses(Network):
        def forward(self, x, t, kind):
            assert kind.tolist() == [7] * len(x)
            return self.layer(x)

    execution, kind = Execution(device="cpu", batch_size=100, pass_memory=20 * 512), torch.tensor([7])
    measured = Rates.of(OfClasses(), (1, 8, 8), OBJECTIVE, execution, tmp_path, kind)
    assert measured.flops == 2 * 2 * 64
    assert measured.activations == pytest.approx(2 * 64 * 4, rel=0.05)
