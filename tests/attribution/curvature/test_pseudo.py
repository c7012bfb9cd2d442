"""The probe v that is backpropagated, and the layers of K-FAC."""

import pytest
import torch
from torch import nn

from attribution.curvature.pseudo_gradients import OutputProbe, kronecker_modules
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Uniform
from tests.attribution.curvature import curvature_worlds as worlds
from tests.worlds import PROCESS, PROCESSES


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_probe_is_white_and_of_variance_two_over_d(process):
    """Claim: v ~ N(0, (2 w_t/d) I), independent of ε, of other draws and samples: moments within five standard errors."""
    n, d = 20_000, 16
    draws = Uniform(n).draw("curvature", torch.arange(1), process.T)
    kept = process.weight(draws.timestep[0]) > 0  # at zero terminal SNR v is 0
    n, draws = int(kept.sum()), draws.columns(kept)
    std = (2 / d * process.weight(draws.timestep[0], torch.float64)).sqrt()[:, None]
    _, _, noise, _ = OutputProbe(process).inputs(torch.zeros(1, 1, 4, 4, dtype=torch.float64), draws)
    epsilon, v = noise.flatten(2)[:, 0], noise.flatten(2)[:, 1] / std
    assert torch.equal(epsilon, draws.noise((1, 4, 4), torch.float64)[0].flatten(1))
    bound = 5 / n**0.5
    assert v.mean(0).abs().max() < bound
    assert (v.T @ v / n - torch.eye(d)).abs().max() < 2**0.5 * bound
    assert (epsilon.T @ v / n).abs().max() < bound
    assert (v[1:].T @ v[:-1] / n).abs().max() < bound
    _, _, other, _ = OutputProbe(process, sample=1).inputs(torch.zeros(1, 1, 4, 4, dtype=torch.float64), draws)
    assert torch.equal(other.flatten(2)[:, 0], epsilon)
    w = other.flatten(2)[:, 1] / std
    assert (w.T @ w / n - torch.eye(d)).abs().max() < 2**0.5 * bound
    assert (w.T @ v / n).abs().max() < bound


def test_probe_of_a_draw_is_the_same_in_any_batch():
    """Claim: v is a function of the draw only."""
    x0 = torch.zeros(3, 2, 4, 4)
    draws = Uniform(5).draw("curvature", torch.arange(3), PROCESS.T)
    _, _, together, _ = OutputProbe(PROCESS).inputs(x0, draws)
    _, _, alone, _ = OutputProbe(PROCESS).inputs(x0[1:2], draws.rows(slice(1, 2)).columns(slice(3, 4)))
    assert torch.equal(together.unflatten(0, (3, 5))[1, 3], alone[0])


def test_grouped_convolutions_are_refused():
    """Claim: a grouped convolution is an error that names the layer and how to fix it."""
    model = worlds.Net(lambda m, x: x, {"a": nn.Conv2d(4, 4, 3, groups=2), "b": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match=r"grouped convolutions a: .*exact curvature"):
        kronecker_modules(PerExampleGradients(model))


def test_a_model_of_norms_is_refused():
    """Claim: a model without Linear or Conv2d is an error."""
    model = worlds.Net(lambda m, x: x, {"a": nn.GroupNorm(1, 4)})
    with pytest.raises(ValueError, match="no trainable Linear, Conv2d or Embedding"):
        kronecker_modules(PerExampleGradients(model))
