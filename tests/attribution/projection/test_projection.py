"""Random projections against dense matrices, theory, and each other."""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn

from attribution.gradients.convolution import ConvLayer
from attribution.gradients.layers import GroupNormLayer, LinearLayer
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Uniform
from attribution.measurements import Loss
from attribution.nodes import describe
from attribution.projection import SJLT, Automatic, Gaussian, Identity, Kronecker, Rademacher, dense, sparse
from tests.worlds import PROCESS, UNET

LAYERS = {"conv": (6, 28), "norm": (5, 2), "linear": (7, 4), "scalar": (1, 1), "column": (130, 1)}
PROJECTIONS = {
    "identity": Identity(),
    "gaussian": Gaussian(12, seed=3),
    "rademacher": Rademacher(12, seed=3),
    "sjlt": SJLT(12, seed=3),
    "sjlt, 4 hashes": SJLT(12, s=4, seed=3),
    "kronecker": Kronecker(3, 4, seed=3),
    "automatic": Automatic(parameters=100, k=12, seed=3),
    "more features than parameters": Rademacher(500, seed=3),
}
every_projection = pytest.mark.parametrize("projection", PROJECTIONS.values(), ids=PROJECTIONS.keys())


def gradients(batch: int, layers=LAYERS, dtype=torch.float64, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(batch, *block, generator=generator, dtype=dtype) for name, block in layers.items()}


def matrix(projection, layers=LAYERS) -> torch.Tensor:
    """Return P by projecting every unit vector: float64 ``[parameters, size]``, layers in the order of their names."""
    projector = projection.start(layers, dtype=torch.float64)
    units = torch.eye(Identity().size(layers), dtype=torch.float64)
    split = units.split([rows * columns for _, (rows, columns) in sorted(layers.items())], 1)
    return projector({name: some.unflatten(1, layers[name]) for name, some in zip(sorted(layers), split, strict=True)})


def whole(some: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([some[name].flatten(1) for name in sorted(some)], 1)


def agrees_with(samples: torch.Tensor, mean: float, variance: float) -> None:
    """Check the sample mean and variance within four standard errors; that of the variance must be below a tenth of it."""
    deviations = (samples - mean) ** 2
    error = float(deviations.std()) / math.sqrt(len(samples))
    assert error < variance / 10
    assert abs(float(samples.mean()) - mean) < 4 * math.sqrt(variance / len(samples))
    assert abs(float(deviations.mean()) - variance) < 4 * error


# Few large coordinates, mostly shared: the term that signs save, 2 Σ x²y², is then a good part of the variance.
X = torch.tensor([[2.0, 1.0, 0.2], [-1.0, 0.1, 0.3]], dtype=torch.float64)
Y = torch.tensor([[1.5, -0.5, 1.0], [-1.0, 0.5, 0.2]], dtype=torch.float64)


@pytest.mark.parametrize("make", [Gaussian, Rademacher, SJLT, lambda k, seed: SJLT(k, s=4, seed=seed)])
def test_inner_products_are_kept_on_average(make):
    """Claim: over rows of P, E⟨φ(x), φ(y)⟩ = ⟨x, y⟩ and Var = (‖x‖²‖y‖² + ⟨x, y⟩²)/k, less 2 Σ x²y²/k for signs, any s."""
    k, rho = 8, float((X * Y).sum())
    variance = float((X**2).sum() * (Y**2).sum()) + rho**2
    if make is not Gaussian:
        saved = 2 * float((X**2 * Y**2).sum())
        assert saved > variance / 3
        variance -= saved
    P = torch.cat([matrix(make(k, seed=seed), {"layer": (200, 6)}) for seed in range(15)]).unflatten(0, (-1, 6))
    agrees_with(((X.flatten() @ P) * (Y.flatten() @ P)).sum(1), rho, variance / k)


@pytest.mark.parametrize(("k_out", "k_in"), [(2, 3), (9, 3), (2, 9)])
def test_kronecker_keeps_inner_products_on_average(k_out, k_in):
    """Claim: the same for P_out ⊗ P_in, with the variance in the module docstring; a side that is not projected has infinite k."""
    generator = torch.Generator().manual_seed(1)
    G, H = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    H = H + G
    a, b, c = ((G @ H.T) ** 2).sum(), ((G.T @ H) ** 2).sum(), (H.T @ G @ H.T @ G).trace()
    rho = (G * H).sum()
    out, into = (1 / k_out if k_out < 5 else 0.0), (1 / k_in if k_in < 6 else 0.0)
    variance = (b + c) * into + (a + c) * out + (a + b + (G**2).sum() * (H**2).sum() + rho**2) * out * into
    projection, n = Kronecker(k_out, k_in), 10_000
    P_out = projection.side("layer", "out", 5 * n).unflatten(0, (n, 5)) if out else torch.eye(5, dtype=torch.float64)
    P_in = projection.side("layer", "in", 6 * n).unflatten(0, (n, 6)) if into else torch.eye(6, dtype=torch.float64)
    agrees_with(((P_out.mT @ G @ P_in) * (P_out.mT @ H @ P_in)).sum((1, 2)), float(rho), float(variance))


@every_projection
def test_features_are_the_matrix_times_the_gradient(projection):
    """Claim: φ = Pᵀ g has the announced size, with the same P for all examples."""
    some = gradients(5)
    features = projection.start(LAYERS, dtype=torch.float64)(some)
    assert features.shape == (5, projection.size(LAYERS))
    torch.testing.assert_close(features, whole(some) @ matrix(projection))


@every_projection
def test_every_coordinate_reaches_the_features(projection):
    """Claim: no row of P is zero."""
    assert (matrix(projection).norm(dim=1) > 0.1).all()


def test_entries_are_what_they_are_called():
    """Claim: normal entries pass Kolmogorov-Smirnov, signs are fair, and SJLT has one ±1 for each of s hashes in every row."""
    layers = {"layer": (40, 30)}
    normal = matrix(Gaussian(50), layers) * math.sqrt(50)
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    signs = matrix(Rademacher(200), layers) * math.sqrt(200)
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    assert stats.binomtest(int((signs > 0).sum()), signs.numel()).pvalue > 1e-3
    correlations = torch.corrcoef(signs.T) - torch.eye(200)
    assert correlations.abs().max() < 6 / math.sqrt(len(signs))
    entries = (matrix(SJLT(20, s=4), layers) * 2).unflatten(1, (5, 4))
    torch.testing.assert_close(entries.abs().sum(1), torch.ones(1200, 4, dtype=torch.float64))
    assert stats.binomtest(int((entries > 0).sum()), 1200 * 4).pvalue > 1e-3
    for hashed in entries.abs().unbind(2):
        assert stats.chisquare(hashed.sum(0).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("change", ["seed", "layer"])
@pytest.mark.parametrize("name", ["gaussian", "rademacher", "sjlt", "kronecker"])
def test_seed_and_layer_matter(name, change):
    """Claim: P differs between seeds and between layer names."""
    projection = PROJECTIONS[name]
    other = replace(projection, seed=4) if change == "seed" else projection
    P, Q = matrix(projection, {"one": (6, 28)}), matrix(other, {"two" if change == "layer" else "one": (6, 28)})
    assert (P - Q).abs().max() > 0.1
    assert abs(torch.corrcoef(torch.stack([P.flatten(), Q.flatten()]))[0, 1]) < 0.2


def test_sides_are_different():
    """Claim: P_out and P_in of a square layer differ."""
    projection = Kronecker(3, 3)
    assert not torch.allclose(projection.side("layer", "out", 7), projection.side("layer", "in", 7))


def test_matrices_stay_as_they_are():
    """Claim: P is a fixed function of seed, layer and position, also beyond 32 bits, so that stored features stay valid."""
    rows = torch.tensor([0, 1, 2**33])
    signs = [[1, -1, -1, -1, -1, -1, -1, -1], [1, 1, 1, 1, -1, 1, -1, -1], [1, -1, 1, 1, -1, -1, 1, -1]]
    assert Rademacher(8, seed=7).entries("layer", rows).tolist() == signs
    normal = torch.tensor([[-0.8679, 0.1863, -0.0850], [1.5730, 0.5354, 0.3787], [-0.2157, 0.8116, 0.9943]])
    torch.testing.assert_close(Gaussian(3, seed=7).entries("layer", rows), normal, rtol=0, atol=1e-4)
    columns, entries = SJLT(12, s=2, seed=7).entries("layer", rows)
    assert columns.tolist() == [[8, 3], [8, 3], [6, 3]]
    assert entries.tolist() == [[-1, -1], [1, -1], [-1, 1]]
    side = torch.tensor([[0.5605, 0.1321], [0.7319, -0.3646], [1.0140, 0.0917]], dtype=torch.float64)
    torch.testing.assert_close(Kronecker(2, 2, seed=7).side("layer", "in", 3), side, rtol=0, atol=1e-4)


@every_projection
def test_batches_and_layer_order_change_nothing(projection):
    """Claim: features do not depend on the batch, and are bit-equal for any order of the layers."""
    projector, some = projection.start(LAYERS), gradients(4, dtype=torch.float32)
    together = projector(some)
    for row in range(4):
        torch.testing.assert_close(projector({name: g[row : row + 1] for name, g in some.items()})[0], together[row])
    backwards = dict(reversed(LAYERS.items()))
    assert torch.equal(projection.start(backwards)({name: some[name] for name in backwards}), together)
    assert projector({name: g[:0] for name, g in some.items()}).shape == (0, projection.size(LAYERS))


@every_projection
def test_single_precision_is_the_same_projection(projection):
    """Claim: P is the same in float32 and float64, for any dtype of the gradients."""
    some = gradients(3)
    double = projection.start(LAYERS, dtype=torch.float64)(some)
    single = projection.start(LAYERS)(some)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 7, 50])
@pytest.mark.parametrize("name", ["gaussian", "rademacher", "sjlt, 4 hashes"])
def test_how_the_matrix_is_cut_up_changes_nothing(name, rows, monkeypatch):
    """Claim: P does not depend on the size of the blocks in which it is generated."""
    projection, some = PROJECTIONS[name], gradients(3)
    whole = projection.start(LAYERS, dtype=torch.float64)(some)
    for module in (dense, sparse):
        monkeypatch.setattr(module, "rows_at_once", lambda *_: rows)
    torch.testing.assert_close(projection.start(LAYERS, dtype=torch.float64)(some), whole)


@pytest.mark.parametrize("kind", [Gaussian, Rademacher])
def test_memory_changes_nothing_but_time(kind, monkeypatch):
    """Claim: ``memory`` is respected, and changes neither features (bit-equal) nor identity."""
    monkeypatch.setattr(dense, "rows_at_once", lambda *_: 10)
    some, parameters = gradients(3), Identity().size(LAYERS)
    expected, full = kind(128).start(LAYERS)(some), parameters * 128 * 4
    for memory, least, most in ((0, 0, 0), (10_000, 5_000, 10_000), (1e9, full, full)):
        projection = kind(128, memory=memory)
        projector = projection.start(LAYERS)
        assert all(torch.equal(projector(some), expected) for _ in range(2))
        assert least <= sum(block.untyped_storage().nbytes() for block in projector._kept.values()) <= most
        assert describe(projection) == describe(kind(128))


@pytest.mark.parametrize("name", ["gaussian", "rademacher", "sjlt", "sjlt, 4 hashes"])
def test_layers_add_up(name):
    """Claim: the rows of P for a layer do not depend on other layers: features are the sum over layers."""
    projection, some = PROJECTIONS[name], gradients(3)
    parts = [projection.start({layer: LAYERS[layer]}, dtype=torch.float64)({layer: some[layer]}) for layer in LAYERS]
    torch.testing.assert_close(projection.start(LAYERS, dtype=torch.float64)(some), torch.stack(parts).sum(0))


@pytest.mark.parametrize(
    ("projection", "smaller"),
    [
        (Identity(), Identity()),
        (Gaussian(300), Gaussian(7, memory=0)),
        (Rademacher(300), Rademacher(130)),
        (Rademacher(7), Rademacher(7)),
        (SJLT(24), SJLT(8)),
        (SJLT(24, s=4), SJLT(12, s=4)),
        (Kronecker(3, 4), Kronecker(3, 4)),
        (Kronecker(6, 20), Kronecker(3, 4)),
        (Kronecker(9, 30), Kronecker(1, 1)),
    ],
    ids=str,
)
def test_features_hold_those_of_smaller_projections(projection, smaller):
    """Claim: ``reduce_to`` gives the features of the smaller projection."""
    some = gradients(3)
    features = projection.start(LAYERS, dtype=torch.float64)(some)
    expected = smaller.start(LAYERS, dtype=torch.float64)(some)
    torch.testing.assert_close(projection.reduce_to(features, smaller, LAYERS), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(projection.reduce_to(features[0], smaller, LAYERS), expected[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("projection", "smaller", "names"),
    [
        (Gaussian(8), Gaussian(9), ["k that is not larger"]),
        (Gaussian(8), Gaussian(4, seed=1), ["the same kind and seed"]),
        (Gaussian(8), Rademacher(4), ["Rademacher(k=4"]),
        (SJLT(8), SJLT(3), ["divides"]),
        (SJLT(8, s=2), SJLT(4), ["the same s"]),
        (SJLT(8, s=2), SJLT(6, s=3), ["the same s"]),
        (Kronecker(2, 3), Kronecker(3, 3), ["k_out"]),
        (Kronecker(2, 3), Gaussian(2), ["Gaussian(k=2"]),
        (Identity(), SJLT(4), ["the same projection"]),
    ],
    ids=str,
)
def test_impossible_folds_are_errors(projection, smaller, names):
    """Claim: features are never folded to a projection that they do not determine; the error says what it needs."""
    with pytest.raises(ValueError, match="do not determine") as error:
        projection.reduce_to(torch.zeros(2, projection.size(LAYERS)), smaller, LAYERS)
    assert all(name in str(error.value) for name in names)


def test_kronecker_is_a_kronecker_product():
    """Claim: P of a layer is P_out ⊗ P_in, with the identity for a side of length at most k."""
    projection = Kronecker(6, 4)
    for name, (rows, columns) in {"conv": (6, 28), "both": (9, 5), "neither": (6, 4)}.items():
        sides = [projection.side(name, side, length) for side, length in (("out", rows), ("in", columns))]
        P_out, P_in = (torch.eye(n, dtype=torch.float64) if P is None else P for P, n in zip(sides, (rows, columns), strict=True))
        assert P_out.shape == (rows, 6)
        assert P_in.shape == (columns, 4)
        torch.testing.assert_close(matrix(projection, {name: (rows, columns)}), torch.kron(P_out, P_in))


CALLS = {
    "linear": (LinearLayer, nn.Linear(30, 20), (30,)),
    "linear at positions": (LinearLayer, nn.Linear(30, 20), (5, 30)),
    "linear without bias": (LinearLayer, nn.Linear(30, 20, bias=False), (3, 2, 30)),
    "narrow linear": (LinearLayer, nn.Linear(3, 20), (5, 3)),
    "linear of few outputs": (LinearLayer, nn.Linear(30, 5), (5, 30)),
    "conv": (ConvLayer, nn.Conv2d(5, 12, 3, padding=1), (5, 6, 7)),
    "conv without bias": (ConvLayer, nn.Conv2d(5, 12, 3, bias=False), (5, 6, 7)),
    "pointwise conv": (ConvLayer, nn.Conv2d(16, 12, 1), (16, 4, 3)),
    "strided, dilated conv": (ConvLayer, nn.Conv2d(5, 12, 3, stride=2, padding=2, dilation=2), (5, 9, 8)),
    "reflecting conv": (ConvLayer, nn.Conv2d(5, 12, 3, padding=1, padding_mode="reflect"), (5, 6, 7)),
    "asymmetric conv": (ConvLayer, nn.Conv2d(5, 12, (2, 4), padding="same"), (5, 6, 7)),
    "grouped conv": (ConvLayer, nn.Conv2d(8, 12, 3, groups=2), (8, 6, 7)),
    "group norm": (GroupNormLayer, nn.GroupNorm(4, 8), (8, 5, 5)),
}
FORMED = {"narrow linear", "grouped conv", "group norm"}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CALLS)
def test_calls_are_projected_without_their_gradient(name, monkeypatch):
    """Claim: projecting calls equals projecting their gradient, which in most cases is not formed."""
    kind, module, shape = CALLS[name]
    module, K = module.double(), 3
    layer = kind("layer", module)
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2 * K, *shape, generator=generator, dtype=torch.float64)
    b = torch.randn(module(a).shape, generator=generator, dtype=torch.float64)
    projector = Kronecker(6, 4).start({"tied": layer.block}, dtype=torch.float64)
    expected = projector({"tied": layer.contract(a, b, K)})
    if name not in FORMED:
        monkeypatch.delattr(kind, "contract")
        monkeypatch.setattr(kind, "__abstractmethods__", frozenset())
    block = projector.contract("tied", layer, a, b, K)
    assert block.shape == (2, *projector.blocks["tied"])
    torch.testing.assert_close(block.flatten(1), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch_size", [2, 128])
@every_projection
def test_a_network_is_projected_from_its_calls(projection, batch_size):
    """Claim: ``features`` of captured draws are those of the mean gradient, also if a pass holds only some of the draws."""
    torch.manual_seed(0)
    model, measure = UNET().double(), Loss(PROCESS)
    x0 = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    draws = Uniform(3).draw("query", torch.arange(2), PROCESS.T)
    per_example = PerExampleGradients(model, batch_size)
    projector = projection.start(per_example.blocks, dtype=torch.float64)
    captured = per_example.capture(measure, x0, draws)
    expected = projector(captured.mean())
    torch.testing.assert_close(projector.features(captured), expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Gaussian(0), ["Gaussian.k=0"]),
        (lambda: SJLT(8, s=0), ["SJLT.s=0"]),
        (lambda: SJLT(8, s=3), ["SJLT.s=3", "k=8"]),
        (lambda: Kronecker(0, 2), ["Kronecker.k_out=0"]),
        (lambda: Kronecker(2, -1), ["Kronecker.k_in=-1"]),
        (lambda: Gaussian(4).start({}), ["nothing to project"]),
        (lambda: SJLT(4).start({"empty": (3, 0)}), ["nothing to project"]),
        (lambda: SJLT(4).start(LAYERS)({"conv": torch.zeros(1, 6, 28)}), ["layers differ", "linear, norm, scalar"]),
        (lambda: SJLT(4).start(LAYERS)({**gradients(2), "norm": torch.zeros(2, 2, 5)}), ["norm", "[2, 5]", "[5, 2]"]),
        (lambda: SJLT(4).reduce_to(torch.zeros(3, 5), SJLT(2), LAYERS), ["[3, 5]", "are 4"]),
    ],
)
def test_mistakes_are_named(make, names):
    """Claim: the error names the field or the layer, and the expected value."""
    with pytest.raises(ValueError, match=r"project|gradients|features|=") as error:
        make()
    assert all(name in str(error.value) for name in names), error.value


@every_projection
def test_what_is_not_finite_is_an_error(projection):
    """Claim: a non-finite gradient raises an error that names the layer."""
    some = gradients(2)
    some["linear"][1, 0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="gradients of linear are not finite"):
        projection.start(LAYERS)(some)


def test_layers_without_parameters_are_no_matter():
    """Claim: a layer with only frozen parameters has no features, and other layers are projected as usual."""
    layers = {"some": (4, 3), "none": (4, 0)}
    for projection in PROJECTIONS.values():
        features = projection.start(layers)(gradients(2, layers))
        assert features.shape == (2, projection.size(layers))
        torch.testing.assert_close(features, projection.start({"some": (4, 3)})({"some": gradients(2, layers)["some"]}))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_projection
def test_a_gpu_has_the_same_projection(projection):
    """Claim: P is the same on every device, and features on a GPU are reproducible."""
    some = gradients(3)
    on_gpu = projection.start(LAYERS, device="cuda", dtype=torch.float64)
    features = on_gpu(some)
    assert torch.equal(on_gpu(some), features)
    torch.testing.assert_close(features.cpu(), projection.start(LAYERS, dtype=torch.float64)(some), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("limit", "chosen"), [(336, SJLT(12, seed=3)), (337, Identity())])
def test_the_automatic_projection_depends_on_the_number_of_parameters(limit, chosen):
    automatic = Automatic(parameters=limit, k=12, seed=3)  # LAYERS have 6·28 + 5·2 + 7·4 + 1 + 130 = 337 parameters
    assert automatic.chosen(LAYERS) == chosen
    torch.testing.assert_close(matrix(automatic), matrix(chosen), rtol=0, atol=0)
