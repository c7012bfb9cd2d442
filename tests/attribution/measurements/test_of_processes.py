"""Losses and output features under every process, in float64 against sums over pixels written out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.measurements import Interpolated, Loss, LossAtT, OutputMean, OutputNorm, SquareNorm
from tests.worlds import PROCESSES


def arrays(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((5, 1, 2, 3)))


def network(x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
    """A nonlinear network that depends on time."""
    return torch.tanh(1.5 * x + 0.3) * (0.4 + 0.1 * torch.sin(time.to(x))[:, None, None, None])


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_measures_are_functions_of_the_networks_output(process):
    """Claim: features are of the output, whatever it predicts; the loss is w_t times the mean of (target - output)².

    Neither the noise nor the predicted noise takes the place of target and output.
    """
    x0, noise, t = arrays(1), arrays(2), torch.tensor([1, 7, 40, 99, 100])
    x_t = process.add_noise(x0, t, noise)
    outputs = network(process.network_input(x_t, t), process.network_time(t))
    targets, weights = process.target(x0, t, noise), process.weight(t, torch.float64).tolist()
    for b in range(5):
        pixels = list(zip(outputs[b].flatten().tolist(), targets[b].flatten().tolist(), strict=True))
        loss = weights[b] * sum((y - o) ** 2 for o, y in pixels) / 6
        expected = {
            Loss(process): loss,
            LossAtT(process, int(t[b])): loss,
            SquareNorm(process): sum(o**2 for o, _ in pixels) / 6,
            OutputMean(process): sum(o for o, _ in pixels) / 6,
            OutputNorm(process, 1): sum(abs(o) for o, _ in pixels),
            OutputNorm(process, 2): math.sqrt(sum(o**2 for o, _ in pixels)),
            OutputNorm(process, math.inf): max(abs(o) for o, _ in pixels),
            Interpolated(process, 0.3): sum(0.3 * o**2 - 2 * 0.7 * y * o for o, y in pixels) / 6,
        }
        for measure, value in expected.items():
            assert measure(network, x0, t, noise)[b].item() == pytest.approx(value, rel=1e-10), measure
