"""Kronecker factors against another library's: curvlinops (a development dependency; skipped where it is not installed)."""

import pytest
import torch
from torch import nn

from attribution.curvature.factors import FactorSums
from attribution.curvature.pseudo_gradients import OutputProbe, kronecker_modules
from attribution.gradients import hooks
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Uniform
from attribution.measurements import Loss
from attribution.nodes import InMemory
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import randomized
from tests.worlds import PROCESS, Blobs

SIZES = {"convolutions": 8, "perceptron": 4}


class Flat(nn.Module):
    """curvlinops calls a model with its input alone and expects one row of outputs for each."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x, torch.zeros(len(x))).flatten(1)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
def test_equal_to_curvlinops(name, sharing, fisher):
    """Claim: B ⊗ A of every layer is curvlinops' KFAC on the same inputs: with v enumerated (its type-2), and empirical.

    Its empirical Fisher is d times ours: it divides the product of two gradients of a mean over d outputs by d once.
    """
    curvlinops = pytest.importorskip("curvlinops")
    model, train = randomized(getattr(worlds, name)), InMemory()(Blobs(n=3, size=SIZES[name]))
    if name == "convolutions":
        model.last = nn.Conv2d(3, 1, (3, 1), padding=(1, 0)).double()  # curvlinops supports no padding modes
        model.wide = nn.Conv2d(3, 3, 3, padding=1, bias=False).double()
    x0, draws = train.x0().double(), Uniform(2).draw("curvature", train.ids(), PROCESS.T, flips=True)
    x, t, noise, _ = Loss(PROCESS).inputs(x0, draws)
    data = [(PROCESS.add_noise(x, t, noise), noise.flatten(1))]
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    params = [p for m in modules.values() for p in m.parameters()]
    theirs = curvlinops.KFACLinearOperator(
        Flat(model), nn.MSELoss(), params, data, fisher_type=fisher, kfac_approx=sharing, separate_weight_and_bias=False
    )
    dense = theirs @ torch.eye(theirs.shape[1], dtype=torch.float64)
    sums = FactorSums(sharing)
    measure = Loss(PROCESS) if fisher == "empirical" else OutputProbe(PROCESS)
    modules, off = kronecker_modules(PerExampleGradients(model)), torch.autocast("cpu", enabled=False)
    d = noise[0].numel()
    for j in range(1 if fisher == "empirical" else d):
        v = torch.zeros_like(noise)
        v.flatten(1)[:, j] = 2**0.5  # the mean over d probes follows
        hooks.run(model, modules, measure, (x, t, noise if fisher == "empirical" else torch.cat([noise, v], 1)), sums.add, off)
    factors, start = sums.factors(), 0
    for layer, module in modules.items():
        A, B = factors.means(layer)
        out, columns = len(B), len(A)
        block = torch.kron(B, A)
        if module.bias is not None:  # curvlinops' order: the weight, then the bias
            joint = torch.arange(out * columns).view(out, columns)
            order = torch.cat([joint[:, :-1].flatten(), joint[:, -1]])
            block = block[order][:, order]
        if fisher == "empirical":
            block = block * d
        stop = start + out * columns
        torch.testing.assert_close(
            dense[start:stop, start:stop], block, rtol=1e-8, atol=1e-12, msg=lambda m, layer=layer: f"{layer}: {m}"
        )
        start = stop
