"""Kronecker factors and their eigenbases against loops over inputs and positions, in float64."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from attribution import hooks
from attribution.convolution import ConvLayer
from attribution.curvature import EKFAC, KFAC, ExactGGN, KroneckerBasis, moments
from attribution.curvature.basis import eigh
from attribution.curvature.ekfac import rotated_squares
from attribution.curvature.factors import AllFactors, Factors, FactorSums
from attribution.curvature.pseudo import OutputProbe, kronecker_homes
from attribution.draws import Draws, Uniform
from attribution.execution import Execution
from attribution.gradients import PerExampleGradients, per_example_gradients
from attribution.images import ImageSet
from attribution.measurements import Loss
from attribution.node import InMemory
from tests.attribution import curvature_worlds as worlds
from tests.attribution.curvature_worlds import factor_terms, given, inputs, randomized
from tests.references import draw_gradients
from tests.worlds import SCHEDULE, Blobs

DRAWS = Uniform(2, seed=4)
CPU = Execution(device="cpu", batch_size=4)
SIZES = {"shared": 4, "perceptron": 4, "linear": 4}
MEASURES = {"mc": OutputProbe(SCHEDULE), "empirical": Loss(SCHEDULE)}


def curvature(kind=KFAC, **changes):
    return kind(**{"draws": DRAWS, "execution": CPU, **changes})


def blobs(name: str, n: int = 3) -> Blobs:
    return Blobs(n=n, size=SIZES.get(name, 8))


def draws_of(train: Blobs, get: InMemory, scheme=DRAWS, flips: bool = True) -> Draws:
    return scheme.draw("curvature", get(train).ids(), SCHEDULE.T, flips)


@pytest.mark.parametrize("name", ["convolutions", "shared", "perceptron", "unet"])
@pytest.mark.parametrize("fisher", ["mc", "empirical"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_factors_are_their_definition(name, fisher, sharing):
    """Claim: A and B are METHODS.md §2 summed input by input and position by position, with the same draws, flips and v."""
    get, record, train = InMemory(), given(getattr(worlds, name)), blobs(name)
    how = curvature(fisher=fisher, sharing=sharing)
    factors = get(AllFactors(how.pseudo_gradients(record, train, flips=True), sharing))
    A, B, count, positions = {}, {}, 0, {}
    model = record.network(get)
    for row in inputs(MEASURES[fisher], train, draws_of(train, get), get):
        count += 1
        for layer, (a, b) in factor_terms(model, MEASURES[fisher], row).items():
            if sharing == "reduce":
                a, b = a.mean(0, keepdim=True), b.sum(0, keepdim=True)
            A[layer] = A.get(layer, 0) + sum(torch.outer(x, x) for x in a)
            B[layer] = B.get(layer, 0) + sum(torch.outer(x, x) for x in b)
            positions[layer] = positions.get(layer, 0) + len(a)
    assert count == 6
    assert factors.A.keys() == A.keys()
    largest = max(float(b.abs().max()) for b in B.values())  # attention's key bias has a gradient of 0 up to rounding
    for layer in A:
        found = factors.means(layer)
        torch.testing.assert_close(found[0], A[layer] / positions[layer], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found[1], B[layer] / count, rtol=1e-9, atol=1e-14 * largest)


CONVOLUTIONS = {
    "padded": nn.Conv2d(3, 4, 3, padding=1),
    "no bias": nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "unpadded": nn.Conv2d(3, 4, 3),
    "padded by more than reaches": nn.Conv2d(3, 4, 3, padding=3),
    "large kernel": nn.Conv2d(3, 4, (5, 2), padding=(2, 1)),
    "same, one more after": nn.Conv2d(3, 4, (4, 2), padding="same"),
    "reflect": nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    "one column": nn.Conv2d(3, 4, (3, 1), padding=(1, 0)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patch_moments_by_rows(name, size):
    """Claim: products of rows less the borders are the products of the written-out patches, also where all is border."""
    conv = CONVOLUTIONS[name].double()
    layer, a = ConvLayer("conv", conv), torch.randn(5, 3, size, size + 1, generator=torch.Generator().manual_seed(0)).double()
    if name == "large kernel" and size == 3:
        a = a[:, :, :, :2]
    patches, _ = layer.positions(a, conv(a))
    patches = patches.flatten(0, 1)
    torch.testing.assert_close(moments.patch_moment_by_rows(layer, a), patches.T @ patches, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("step", [1, 200, 10**9])
def test_pieces_change_no_moment(step, monkeypatch):
    """Claim: how a pass is cut up for the cache changes nothing beyond rounding."""
    conv = CONVOLUTIONS["padded"].double()
    layer, a = ConvLayer("conv", conv), torch.randn(40, 3, 9, 9, generator=torch.Generator().manual_seed(0)).double()
    patches, rows = layer.positions(a, conv(a))
    monkeypatch.setattr(moments, "STEP", step)
    A, B, count = moments.second_moments(layer, a, conv(a))
    torch.testing.assert_close(A, patches.flatten(0, 1).T @ patches.flatten(0, 1), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(B, rows.flatten(0, 1).T @ rows.flatten(0, 1), rtol=1e-10, atol=1e-10)
    assert count == 40 * 81
    a_sum, b_sum, R = moments.position_sums(layer, a, conv(a))
    torch.testing.assert_close((a_sum, b_sum, R), (patches.sum(1), rows.sum(1), 81))


def test_probe_is_white_and_of_variance_two_over_d():
    """Claim: v ~ N(0, (2/d) I), uncorrelated with ε and between draws: sample moments within five standard errors."""
    n, d = 20_000, 16
    probe = OutputProbe(SCHEDULE)
    draws = Uniform(n).draw("curvature", torch.arange(1), SCHEDULE.T)
    _, _, noise = probe.inputs(torch.zeros(1, 1, 4, 4, dtype=torch.float64), draws)
    epsilon, v = noise.flatten(2)[:, 0], noise.flatten(2)[:, 1] * (d / 2) ** 0.5
    assert torch.equal(epsilon, draws.noise((1, 4, 4), torch.float64)[0].flatten(1))
    bound = 5 / n**0.5
    assert v.mean(0).abs().max() < bound
    assert (v.T @ v / n - torch.eye(d)).abs().max() < 2**0.5 * bound
    assert (epsilon.T @ v / n).abs().max() < bound
    assert (v[1:].T @ v[:-1] / n).abs().max() < bound


def test_probe_of_a_draw_is_the_same_in_any_batch():
    """Claim: v is a function of the draw alone."""
    x0 = torch.zeros(3, 2, 4, 4)
    draws = Uniform(5).draw("curvature", torch.arange(3), SCHEDULE.T)
    _, _, together = OutputProbe(SCHEDULE).inputs(x0, draws)
    _, _, alone = OutputProbe(SCHEDULE).inputs(x0[1:2], draws.rows(slice(1, 2)).columns(slice(3, 4)))
    assert torch.equal(together.unflatten(0, (3, 5))[1, 3], alone[0])


def enumerated(model: nn.Module, x0: torch.Tensor, draws: Draws) -> Factors:
    """Factors with the expectation over v taken exactly: v = √(2/d) e_j for every output j, B summed over j and A averaged."""
    sums, probe = FactorSums("expand"), OutputProbe(SCHEDULE)
    homes = kronecker_homes(PerExampleGradients(model))
    x, t, noise = probe.inputs(x0, draws)
    epsilon = noise.chunk(2, dim=1)[0]
    for j in range(x0[0].numel()):
        v = torch.zeros_like(epsilon)
        v.flatten(1)[:, j] = (2 / x0[0].numel()) ** 0.5
        hooks.run(model, homes, probe, (x, t, torch.cat([epsilon, v], 1)), sums.add, torch.autocast("cpu", enabled=False))
    factors = sums.factors()
    d = x0[0].numel()
    return Factors(factors.A, {name: B * d for name, B in factors.B.items()}, factors.counts)


def ggn_block(model: nn.Module, layer: str, x0: torch.Tensor, draws: Draws) -> torch.Tensor:
    """1/(NK) Σ Jᵀ (2/d) J for the joint block [W | b] of a Linear layer, J by one backward pass for each output."""
    module, d = model.get_submodule(layer), x0[0].numel()
    x, t, noise = Loss(SCHEDULE).inputs(x0, draws)
    total = 0
    for i in range(len(t)):
        output = model(SCHEDULE.add_noise(x[i : i + 1], t[i : i + 1], noise[i : i + 1]), t[i : i + 1] - 1).flatten()
        rows = []
        for value in output:
            weight, bias = torch.autograd.grad(value, [module.weight, module.bias], retain_graph=True)
            rows.append(torch.cat([weight, bias[:, None]], 1).flatten())
        total = total + (2 / d) * torch.stack(rows).T @ torch.stack(rows)
    return total / len(t)


@pytest.mark.parametrize("layer", ["first", "second"])
def test_kfac_is_the_exact_block_of_one_input(layer):
    """Claim (METHODS.md §2): for one (example, draw), without weight sharing and with v enumerated, B ⊗ A is the GGN's block."""
    model, get, train = randomized(worlds.perceptron), InMemory(), blobs("perceptron", 1)
    x0, draws = get(train).x0().double(), draws_of(train, get, Uniform(1, seed=2))
    A, B = enumerated(model, x0, draws).means(layer)
    torch.testing.assert_close(torch.kron(B, A), ggn_block(model, layer, x0, draws), rtol=1e-9, atol=1e-12)


def test_kfac_is_not_exact_for_several_inputs():
    """Claim: the test above could fail: with two inputs the mean of products is not the product of means."""
    model, get, train = randomized(worlds.perceptron), InMemory(), blobs("perceptron", 2)
    x0, draws = get(train).x0().double(), draws_of(train, get)
    A, B = enumerated(model, x0, draws).means("first")
    exact = ggn_block(model, "first", x0, draws)
    assert (torch.kron(B, A) - exact).norm() > 0.05 * exact.norm()


def test_mc_converges_to_the_exact_matrix():
    """Claim: for a linear denoiser, whose Jacobian is its input, MC factors tend to the exact GGN: five standard errors."""
    get, record, train = InMemory(), given(worlds.linear), blobs("linear", 8)
    settings = {"draws": Uniform(500, seed=1), "execution": Execution(device="cpu", batch_size=4000)}
    basis = get(KFAC(**settings).basis(record, train))
    exact = get(ExactGGN(**settings).basis(record, train)).matrix()
    assert isinstance(basis, KroneckerBasis)
    QA, QB, values = basis.QA["only"].double(), basis.QB["only"].double(), basis.values["only"]
    diagonal = ((QB**2) @ values @ (QA**2).T).flatten()
    # Var(v²) = 2 Var(v)²: each B[o, o] is a mean of 4000 squares.
    assert (diagonal / exact.diagonal() - 1).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_execution_changes_no_basis(kind):
    """Claim (DESIGN.md §4.1): batches and shards change nothing beyond rounding, and no fingerprint."""
    record, train = given(worlds.convolutions), blobs("convolutions", 5)
    whole = curvature(kind, execution=Execution(device="cpu"))
    node = whole.basis(record, train, flips=True)
    expected = InMemory()(node)
    for execution in (Execution(device="cpu", batch_size=1), Execution(device="cpu", batch_size=3, shard=2)):
        divided = replace(whole, execution=execution).basis(record, train, flips=True)
        assert divided.fingerprint == node.fingerprint
        assert_same_matrices(InMemory()(divided), expected)


def matrix(basis: KroneckerBasis, layer: str) -> torch.Tensor:
    """H of a layer, ``[out · in, out · in]``."""
    Q = torch.kron(basis.QB[layer], basis.QA[layer]).double()
    return (Q * basis.values[layer].flatten()) @ Q.T


def assert_same_matrices(found: KroneckerBasis, expected: KroneckerBasis) -> None:
    """Eigenvectors may change sign: the matrices on the diagonal blocks must not."""
    assert found.layers == expected.layers
    for layer in expected.layers:
        one, other = (matrix(basis, layer) for basis in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@dataclass(frozen=True)
class Reversed(ImageSet):
    """The images of another set in the opposite order."""

    images: ImageSet

    @property
    def count(self):
        return self.images.count

    def compute(self, get):
        return get(self.images).take(np.arange(self.count)[::-1])


def test_order_changes_no_factor():
    """Claim: draws and v go by an example's id, not by its place."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions", 5)
    one, other = (
        get(AllFactors(curvature().pseudo_gradients(record, images, True), "expand")) for images in (train, Reversed(train))
    )
    for layer in one.A:
        torch.testing.assert_close(one.means(layer), other.means(layer), rtol=1e-9, atol=1e-12)


def test_kfac_basis_is_the_eigendecomposition():
    """Claim: Σ values[o, i] (QB[:, o] ⊗ QA[:, i])(..)ᵀ is B ⊗ A, up to the float32 of the vectors."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions")
    node = curvature().basis(record, train)
    basis, factors = get(node), get(AllFactors(curvature().pseudo_gradients(record, train, False), "expand"))
    assert set(basis.layers) == {"padded", "strided", "wide", "point", "last"}
    for layer in basis.layers:
        A, B = factors.means(layer)
        total = 0
        for o in range(len(B)):
            for i in range(len(A)):
                q = torch.outer(basis.QB[layer][:, o], basis.QA[layer][:, i]).double().flatten()
                total = total + basis.values[layer][o, i] * torch.outer(q, q)
        expected = torch.kron(B, A)
        torch.testing.assert_close(total, expected, rtol=0, atol=1e-6 * float(expected.norm()))
        assert basis.values[layer].dtype == torch.float64
        assert basis.QA[layer].dtype == basis.QB[layer].dtype == torch.float32


@pytest.mark.parametrize("name", ["convolutions", "shared", "perceptron"])
def test_ekfac_eigenvalues_are_second_moments(name):
    """Claim: values[o, i] is the mean over draws of the square of QB[:, o]ᵀ g QA[:, i], g by one ``backward`` per draw."""
    get, record, train = InMemory(), given(getattr(worlds, name)), blobs(name)
    basis = get(curvature(EKFAC).basis(record, train, flips=True))
    kfac = get(curvature().basis(record, train, flips=True))
    model = record.network(get)
    truth = draw_gradients(OutputProbe(SCHEDULE), model, get(train).x0().double(), draws_of(train, get))
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
    """Claim: whether gradients or positions are rotated, the sums of squares are those of gradients rotated one by one."""
    conv = nn.Conv2d(3, 20, 3, padding=1).double()
    layer, generator = ConvLayer("conv", conv), torch.Generator().manual_seed(0)
    a = torch.randn(30, 3, size, size, generator=generator).double()
    call = hooks.Call(layer, a, torch.randn(30, 20, size, size, generator=generator).double())
    QA, QB = (torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q for n in (28, 20))
    gradients = layer.contract(a, call.gradient, 1)
    expected = sum((QB.T @ g @ QA) ** 2 for g in gradients)
    torch.testing.assert_close(rotated_squares([call], QA, QB), expected, rtol=1e-9, atol=1e-10)


def test_kfac_and_ekfac_share_the_factors():
    """Claim: EK-FAC's eigenvectors come from the node that K-FAC has, so that the factors are computed once."""
    record, train = given(worlds.convolutions), blobs("convolutions")
    kfac, ekfac = (curvature(kind).basis(record, train) for kind in (KFAC, EKFAC))
    assert kfac.fingerprint in {parent.fingerprint for parent in ekfac.parents()}


def test_rotation_leaves_norms_out_and_products_alone():
    """Claim: rotated gradients are QBᵀ g QA for the layers of the basis: inner products there stay what they were."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions")
    basis = get(curvature().basis(record, train))
    gradients = per_example_gradients(Loss(SCHEDULE), record.network(get), get(train).x0().double(), draws_of(train, get))
    rotated = basis.rotate(gradients)
    assert list(rotated) == basis.layers
    assert "norm" in gradients
    for layer, g in rotated.items():
        assert g.shape == gradients[layer].shape
        assert g.dtype == torch.float64
        one = gradients[layer][1]
        torch.testing.assert_close(g[1], basis.QB[layer].double().T @ one @ basis.QA[layer].double(), rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(
            g.flatten(1) @ g.flatten(1).T, gradients[layer].flatten(1) @ gradients[layer].flatten(1).T, rtol=1e-4, atol=1e-9
        )


def test_artifacts_come_back_from_disk(tmp_path):
    """Claim: what was saved is loaded bit for bit."""
    get, record, train = InMemory(), given(worlds.convolutions), blobs("convolutions")
    basis = get(curvature(EKFAC).basis(record, train))
    basis.save(tmp_path)
    again = KroneckerBasis.load(tmp_path)
    assert set(again.layers) == set(basis.layers)
    for layer in basis.layers:
        for kind in ("QA", "QB", "values"):
            assert torch.equal(getattr(again, kind)[layer], getattr(basis, kind)[layer])
    factors = get(AllFactors(curvature().pseudo_gradients(record, train, False), "expand"))
    factors.save(tmp_path)
    for layer in factors.A:
        assert all(map(torch.equal, Factors.load(tmp_path).means(layer), factors.means(layer)))


def test_grouped_convolutions_are_refused():
    """Claim: a grouped convolution is an error that names the layer and what to do."""
    model = worlds.Net(lambda m, x: x, {"a": nn.Conv2d(4, 4, 3, groups=2), "b": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match=r"grouped convolutions a: .*curvature=exact"):
        kronecker_homes(PerExampleGradients(model))


def test_a_model_of_norms_is_refused():
    """Claim: nothing to work on is an error."""
    model = worlds.Net(lambda m, x: x, {"a": nn.GroupNorm(1, 4)})
    with pytest.raises(ValueError, match="no trainable Linear or Conv2d"):
        kronecker_homes(PerExampleGradients(model))


@pytest.mark.parametrize("setting", ["fisher", "sharing"])
def test_unknown_choices(setting):
    """Claim: an unknown word is an error that names the setting and the choices."""
    with pytest.raises(ValueError, match=rf"curvature.{setting}=wrong: choose \w+ or \w+"):
        curvature(**{setting: "wrong"})


def test_factors_that_are_not_finite_name_the_layer():
    """Claim: NaN in a factor never becomes an eigenbasis."""
    with pytest.raises(FloatingPointError, match="factor A of layer x is not finite"):
        eigh(torch.tensor([[1.0, 0.0], [0.0, torch.nan]]), "the K-FAC factor A of layer x")
    with pytest.raises(FloatingPointError, match="factor A of layer x has the eigenvalue"):
        eigh(torch.diag(torch.tensor([1.0, -1e-3])), "the K-FAC factor A of layer x")
    values, _ = eigh(torch.diag(torch.tensor([1.0, -1e-7])), "a factor")
    assert values.tolist() == [0.0, 1.0]
