"""How many network inputs a pass has follows from the memory that their activations take."""

import pytest
import torch

from attribution import device_memory
from attribution.execution import Execution
from attribution.gradients import hooks
from attribution.gradients.activations import activation_bytes
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Uniform
from tests.worlds import OBJECTIVE, UNET

FLOAT32 = 4


class TwoLayers(torch.nn.Module):
    """A convolution to 5 channels, SiLU, and a convolution back, on images of 8 × 8 pixels."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 5, 3, padding=1), torch.nn.Conv2d(5, 1, 3, padding=1)

    def forward(self, x, t):
        return self.second(torch.nn.functional.silu(self.first(x)))


def inputs(n, size=8):
    draws = Uniform(n, seed=0).draw("a role", torch.arange(1), OBJECTIVE.process.T)
    return OBJECTIVE.inputs(torch.zeros(1, 1, size, size), draws)


def size_of(model, n=2):
    return activation_bytes(model, PerExampleGradients(model).recorded, OBJECTIVE, inputs(n))


def test_the_bytes_of_two_layers_are_counted_by_hand():
    """Claim: kept are the noisy image, the first layer's output, that of SiLU, and the difference that the loss squares."""
    kept = 64 + 5 * 64 + 5 * 64 + 64
    assert size_of(TwoLayers()) == pytest.approx(FLOAT32 * kept, rel=0.02)


@pytest.mark.parametrize("model", [TwoLayers, UNET], ids=["two layers", "U-Net"])
def test_bytes_are_those_of_one_input(model):
    """Claim: the bytes of an input do not depend on the number of inputs in the pass that is measured."""
    torch.manual_seed(0)
    network = model()
    assert size_of(network, 1) == pytest.approx(size_of(network, 8), rel=0.02)


def test_a_pass_holds_as_many_inputs_as_fit(monkeypatch):
    """Claim: passes have the largest power of 2 of inputs whose activations fit; without a limit, ``batch_size``; never none."""
    torch.manual_seed(0)
    network = UNET()
    size, counted, run = size_of(network), [], hooks.run
    monkeypatch.setattr(hooks, "run", lambda *given: counted.append(len(given[3].t)) or run(*given))
    draws = Uniform(20, seed=0).draw("a role", torch.arange(1), OBJECTIVE.process.T)
    expected = {None: 20, 25 * size: 20, 19.9 * size: 16, 3 * size: 2, 0.5 * size: 1}
    for memory, most in expected.items():
        limits = {} if memory is None else {"pass_memory": memory}
        per_example = PerExampleGradients(network, batch_size=20, **limits)
        captured = per_example.capture(OBJECTIVE, torch.zeros(1, 1, 8, 8), draws)
        counted.clear()
        captured.mean()
        assert per_example.batch_size == most
        assert max(counted) <= most
        assert sum(counted) == 20


def test_automatic_memory_is_what_is_free():
    """Claim: auto leaves a tenth of the free memory; queries stay where the passes leave room for them, or in a quarter."""
    assert 1e8 < Execution(device="cpu").memory_bytes < 1e13
    assert Execution(device="cpu", memory=10e9, pass_memory=1e9).resident_bytes(3e9) == 6e9
    assert Execution(device="cpu", memory=4e9, pass_memory=2e9).resident_bytes(3e9) == 1e9


@pytest.mark.parametrize(("scratch", "expected"), [(1, [(0, 4), (4, 8), (8, 10)]), (95, [(0, 8), (8, 10)]), (1e9, [(0, 10)])])
def test_queries_are_divided_into_whole_shards(scratch, expected):
    assert Execution(device="cpu", scratch=scratch, query_shard=4).query_batches(10, size=10) == expected


def test_memory_that_the_process_takes_stays_its_own(monkeypatch):
    """Claim: free memory is measured once, so that what a process holds on the device does not count as another's."""
    device_memory._free_at_first.cache_clear()
    monkeypatch.setattr(device_memory, "_free_in_system", iter([8e9, 1e9]).__next__)
    monkeypatch.setattr(device_memory, "_free_in_container", lambda: 1e12)
    try:
        assert [Execution(device="cpu").memory_bytes for _ in range(2)] == [7.2e9, 7.2e9]
        with device_memory.shared(4):
            assert Execution(device="cpu").memory_bytes == 1.8e9
    finally:
        device_memory._free_at_first.cache_clear()
