"""EK-FAC's eigenvalues against gradients of single draws, rotated one by one."""

import functools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from attribution.curvature import EKFAC, KFAC
from attribution.curvature.ekfac import averaging_weights, rotated_squares, squared_rounding
from attribution.curvature.moments import position_sums
from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.execution import Execution
from attribution.gradients import hooks
from attribution.gradients.convolution import ConvLayer
from attribution.gradients.layers import LinearLayer
from attribution.nodes import InMemory
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import Given, blobs, curvature, draws_of, given
from tests.references import draw_gradients
from tests.worlds import OBJECTIVE, PROCESS


@pytest.mark.parametrize("name", ["convolutions", "shared", "perceptron", "embedded"])
def test_ekfac_eigenvalues_are_second_moments(name, monkeypatch):
    """Claim: values[o, i] is the mean over draws of the square of QB[:, o]ᵀ g QA[:, i], g by one ``backward`` per draw.

    Without rounding, no two eigenvalues count as equal.
    """
    monkeypatch.setattr("attribution.curvature.ekfac.ROUNDING", 0)
    get, record, train = InMemory(), given(getattr(worlds, name)), blobs(name)
    basis = get(curvature(EKFAC).basis(record, train, flips=True))
    kfac = get(curvature().basis(record, train, flips=True))
    model = record.network(get)
    truth = draw_gradients(OutputProbe(PROCESS), model, get(train).x0().double(), draws_of(train, get))
    for layer in basis.layers:
        g = truth[f"{layer}.weight"].flatten(3) if truth[f"{layer}.weight"].dim() > 3 else truth[f"{layer}.weight"]
        if layer == "embedding":
            g = g.mT
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


@dataclass(frozen=True)
class Single(Given):
    """The network in single precision, as training leaves it."""

    def parameters(self, get):
        return {name: p.float() for name, p in super().parameters(get).items()}

    def network(self, get, step=None):
        return super().network(get, step).float()


def norms_and_attention() -> nn.Module:
    """Output gradients that add up to 0 over positions: keys of attention, a convolution before a norm; inputs that average out."""

    def forward(m, x):
        h = torch.tanh(m.before(x))
        h = h + m.second(torch.tanh(m.norm(m.first(h))))
        q, k, v = (layer(h.flatten(2).mT) for layer in (m.q, m.k, m.v))
        h = h + (torch.softmax(q @ k.mT / 2, -1) @ v).mT.view_as(h)
        return m.last(h)

    return worlds.Net(
        forward,
        {
            "before": nn.Conv2d(1, 4, 3, padding=1),
            "first": nn.Conv2d(4, 4, 3, padding=1),
            "norm": nn.GroupNorm(2, 4),
            "second": nn.Conv2d(4, 4, 3, padding=1),
            **{name: nn.Linear(4, 4, bias=name == "v") for name in "qkv"},
            "last": nn.Conv2d(4, 1, 1),
        },
    )


@pytest.mark.parametrize("count", [2, 7], ids=["fewer draws than dimensions", "more draws"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_the_curvature_does_not_depend_on_the_batch_size(kind, sharing, count):
    """Claim: in float32, H applied to gradients is the same for passes of any size and for any eigenvectors.

    H(g) = Q (Λ + λ)⁻¹ Qᵀ g is compared, not Λ: the basis of a null space is arbitrary.
    """
    record, train = Single(functools.partial(worlds.randomized, norms_and_attention), OBJECTIVE), blobs("unet", count)
    applied = []
    for batch_size in (1, 3, 64):
        basis = InMemory()(
            curvature(kind, sharing=sharing, execution=Execution(device="cpu", batch_size=batch_size)).basis(record, train)
        )
        damping = 1e-3 * max(float(values.mean()) for values in basis.values.values())
        generator = torch.Generator().manual_seed(0)
        products = []
        for layer, values in basis.values.items():
            QA, QB, g = basis.QA[layer].double(), basis.QB[layer].double(), torch.randn(values.shape, generator=generator).double()
            products.append((QB @ ((QB.T @ g @ QA) / (values + damping)) @ QA.T).flatten())
        applied.append(torch.cat(products))
    for other in applied[1:]:
        assert float((other - applied[0]).norm() / applied[0].norm()) < 1e-3


def test_equal_eigenvalues_get_the_mean_of_their_second_moments():
    """Claim: a rotation of eigenvectors with equal eigenvalues, 0 or not, changes neither the eigenvalues nor H; others stay."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(7, 7, generator=generator).double()).Q
    values = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 5.0]).double()
    factor = Q @ torch.diag(values) @ Q.T
    weights = averaging_weights(factor, Q, 1e-4)
    expected = torch.block_diag(torch.full((3, 3), 1 / 3), torch.eye(1), torch.full((2, 2), 0.5), torch.eye(1)).double()
    torch.testing.assert_close(weights, expected, rtol=0, atol=1e-6)
    g = torch.randn(20, 7, generator=generator).double()
    rotated = Q.clone()
    for block in (slice(0, 3), slice(4, 6)):
        size = block.stop - block.start
        rotated[:, block] = Q[:, block] @ torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q
    first, second = (V @ torch.diag(averaging_weights(factor, V, 1e-4) @ (g @ V).square().mean(0)) @ V.T for V in (Q, rotated))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
    without = [V @ torch.diag((g @ V).square().mean(0)) @ V.T for V in (Q, rotated)]
    assert float((without[0] - without[1]).abs().max()) > 0.01


def test_rounding_is_that_of_sums_that_cancel():
    """Claim: the bound covers the rounding of the mean of inputs and of the sum of output gradients, also where these are 0."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(3, 5)
    a, b = (torch.randn(6, 400, n, generator=generator).double() for n in (3, 5))
    b -= b.mean(1, keepdim=True)
    call = hooks.Call(LinearLayer("linear", linear), a.float(), b.float())
    bounds = (squared_rounding([call]) / 6).sqrt()
    (mean, total, R), exact = position_sums(call.layer, a.float(), b.float()), position_sums(call.layer, a, b)
    errors = (mean / R - exact[0] / R).norm(dim=1), (total - exact[1]).norm(dim=1)
    for error, bound in zip(errors, bounds, strict=True):
        assert 0 < float(error.max()) < float(bound)
    assert float(bounds[1]) < 1e-2 * float(b.norm(dim=2).sum(1).max())
