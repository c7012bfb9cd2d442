"""EK-FAC's eigenvalues against gradients of single draws, rotated one by one."""

import pytest
import torch
from torch import nn

from attribution.curvature import EKFAC, KFAC
from attribution.curvature.ekfac import rotated_squares
from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.gradients import hooks
from attribution.gradients.convolution import ConvLayer
from attribution.nodes import InMemory
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import blobs, curvature, draws_of, given
from tests.references import draw_gradients
from tests.worlds import PROCESS


@pytest.mark.parametrize("name", ["convolutions", "shared", "perceptron"])
def test_ekfac_eigenvalues_are_second_moments(name):
    """Claim: values[o, i] is the mean over draws of the square of QB[:, o]ᵀ g QA[:, i], g by one ``backward`` per draw."""
    get, record, train = InMemory(), given(getattr(worlds, name)), blobs(name)
    basis = get(curvature(EKFAC).basis(record, train, flips=True))
    kfac = get(curvature().basis(record, train, flips=True))
    model = record.network(get)
    truth = draw_gradients(OutputProbe(PROCESS), model, get(train).x0().double(), draws_of(train, get))
    for layer in basis.layers:
        g = truth[f"{layer}.weight"].flatten(3) if truth[f"{layer}.weight"].dim() > 3 else truth[f"{layer}.weight"]
        if f"{layer}.bias" in truth:
            g = torch.cat([g, truth[f"{layer}.bias"].unsqueeze(3)], 3)
        QA, QB = basis.QA[layer].double(), basis.QB[layer].double()
        squares = torch.stack([(QB.T @ one @ QA) ** 2 for one in g.flatten(0, 1)])
        torch.testing.assert_close(basis.values[layer], squares.mean(0), rtol=1e-9, atol=1e-13)
        assert torch.equal(basis.QA[layer], kfac.QA[layer])
        assert not torch.allclose(basis.values[layer], kfac.values[layer], rtol=0.01)


@pytest.mark.parametrize("size", [4, 8], ids=["fewer positions than outputs", "more"])
def test_ekfac_formulas_agree(size):
    """Claim: for rotated gradients and for rotated positions, the sums of squares are those of gradients rotated one by one."""
    conv = nn.Conv2d(3, 20, 3, padding=1).double()
    layer, generator = ConvLayer("conv", conv), torch.Generator().manual_seed(0)
    a = torch.randn(30, 3, size, size, generator=generator).double()
    call = hooks.Call(layer, a, torch.randn(30, 20, size, size, generator=generator).double())
    QA, QB = (torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q for n in (28, 20))
    gradients = layer.contract(a, call.gradient, 1)
    expected = sum((QB.T @ g @ QA) ** 2 for g in gradients)
    torch.testing.assert_close(rotated_squares([call], QA, QB), expected, rtol=1e-9, atol=1e-10)


def test_kfac_and_ekfac_share_the_factors():
    """Claim: EK-FAC's eigenvectors come from the node of K-FAC, so the factors are computed once."""
    record, train = given(worlds.convolutions), blobs("convolutions")
    kfac, ekfac = (curvature(kind).basis(record, train) for kind in (KFAC, EKFAC))
    assert kfac.fingerprint in {parent.fingerprint for parent in ekfac.parents()}
