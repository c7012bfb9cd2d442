"""LiSSA against dense matrices, and the products that it is made of against autograd's."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.curvature import ExactGGN
from attribution.curvature.exact import flat
from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.curvature.vector_products import GaussNewton, Hessian
from attribution.diffusion import denoiser
from attribution.estimators import LiSSA
from attribution.estimators.lissa_recursion import Recursion
from attribution.execution import Execution
from attribution.gradients.per_example import PerExampleGradients, per_example_gradients
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Loss
from attribution.nodes import InMemory
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import given
from tests.attribution.estimators.test_exact import flat_order
from tests.worlds import PROCESS, Blobs, Reordered

LOSS = Loss(PROCESS)
DRAWS = Uniform(3, seed=5)
TRAIN = Blobs(n=6, size=4)
QUERIES = Blobs(n=3, first=900, size=4)
RECORD = given(worlds.perceptron)
WHOLE = TRAIN.n * DRAWS.count
"""Draws in a batch that holds all."""


def lissa(**changes: Any) -> LiSSA:
    settings = {"measurement": LOSS, "draws": DRAWS, "damping": 0.05, "scale": 8.0, "depth": 3000, "batch_size": WHOLE}
    return LiSSA(**{**settings, "execution": Execution(device="cpu"), **changes})


@pytest.fixture(scope="module")
def get():
    """One memory for all tests."""
    return InMemory()


def whole(get, flips=False) -> tuple[torch.nn.Module, Tensor, Draws]:
    """The network, the training images and all their draws."""
    train = get(TRAIN)
    return RECORD.network(get), train.x0().double(), DRAWS.draw("curvature", train.ids(), PROCESS.T, flips)


def hessian(model: torch.nn.Module, x0: Tensor, draws: Draws) -> Tensor:
    """∇² of the mean loss by ``torch.autograd.functional``, in the flat order of layers' blocks, ``[P, P]``."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]
    rows = LOSS.inputs(x0, draws)

    def mean(theta: Tensor) -> Tensor:
        split = zip(parameters.items(), theta.split(sizes), strict=True)
        values = {name: part.view_as(p) for (name, p), part in split}
        return LOSS(lambda x, t, _: torch.func.functional_call(model, values, (x, t)), *rows).mean()

    start = torch.cat([p.detach().flatten() for p in parameters.values()])
    order = flat_order(model, x0, draws)
    return torch.autograd.functional.hessian(mean, start)[order][:, order]


def gauss_newton(model: torch.nn.Module, x0: Tensor, draws: Draws) -> Tensor:
    """1/(NK) Σ g gᵀ over pseudo-gradients, each by a backward pass, ``[P, P]``."""
    rows = []
    for b in range(len(x0)):
        for k in range(draws.count):
            inputs = OutputProbe(PROCESS).inputs(x0[b : b + 1], draws.rows(slice(b, b + 1)).columns(slice(k, k + 1)))
            g = torch.autograd.grad(OutputProbe(PROCESS)(denoiser(model), *inputs).sum(), list(model.parameters()))
            rows.append(torch.cat([part.flatten() for part in g]))
    order = flat_order(model, x0, draws)
    J = torch.stack(rows)[:, order]
    return J.T @ J / len(J)


PRODUCTS = pytest.mark.parametrize(("product", "dense"), [(Hessian(), hessian), (GaussNewton(), gauss_newton)], ids=["H", "GGN"])


@PRODUCTS
@pytest.mark.parametrize("world", [worlds.perceptron, worlds.convolutions], ids=["perceptron", "convolutions"])
def test_products_are_the_matrix_times_vectors(get, product, dense, world):
    """Claim: H v with H by autograd, all parameters, norms and biases included; passes of any size."""
    train = worlds.blobs(world.__name__, 2)
    x0, model = get(train).x0().double(), given(world).network(get)
    draws = DRAWS.draw("curvature", get(train).ids(), PROCESS.T, True)
    random = torch.Generator().manual_seed(1)
    v = {
        name: torch.randn(4, *block.shape[1:], generator=random, dtype=torch.float64)
        for name, block in per_example_gradients(LOSS, model, x0, draws).items()
    }
    matrix = dense(model, x0, draws)
    for size in (128, 2):
        Hv = product(PerExampleGradients(model, size), LOSS, x0, draws, v)
        torch.testing.assert_close(flat(Hv), flat(v) @ matrix, rtol=1e-8, atol=1e-10 * float(matrix.abs().max()))


def test_hessian_of_a_unet_with_attention():
    """Claim: H v of diffusers' U-Net, attention included, is the difference of gradients along v."""
    model, draws = worlds.randomized(worlds.unet), Draws(torch.tensor([[5, 60]]), torch.tensor([[1, 2]]), torch.zeros(1, 2).bool())
    x0, h = torch.linspace(-1, 1, 64, dtype=torch.float64).view(1, 1, 8, 8), 1e-6
    engine = PerExampleGradients(model)
    v = {name: torch.ones_like(block) for name, block in engine.capture(LOSS, x0, draws).mean().items()}
    (Hv,) = flat(Hessian()(engine, LOSS, x0, draws, v))
    sides = []
    for sign in (1, -1):
        moved = worlds.randomized(worlds.unet)
        for p in moved.parameters():
            p.data += sign * h
        sides.append(flat(per_example_gradients(LOSS, moved, x0, draws))[0])
    torch.testing.assert_close(Hv, (sides[0] - sides[1]) / (2 * h), rtol=1e-4, atol=1e-5 * float(Hv.abs().max()))


def exact(get, matrix: Tensor, damping: float) -> np.ndarray:
    """∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z) by a dense solver."""
    model, queries, train = RECORD.network(get), get(QUERIES), get(TRAIN)
    T = PROCESS.T
    v = flat(per_example_gradients(LOSS, model, queries.x0().double(), DRAWS.draw("query", queries.ids(), T)))
    z = flat(per_example_gradients(LOSS, model, train.x0().double(), DRAWS.draw("attribution", train.ids(), T)))
    return (v @ torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), z.T)).numpy()


def test_full_batches_converge_to_the_inverse(get):
    """Claim: with batches of all draws the scores become ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z), the faster the larger λ/σ: as (1 - λ/σ)^J.

    H is the Hessian, which is not sampled.
    """
    matrix = hessian(*whole(get))
    lowest, highest = (float(value) for value in torch.linalg.eigvalsh(matrix)[[0, -1]])
    damping = 0.2 * highest + max(0.0, -lowest)
    expected = exact(get, matrix, damping)
    errors = []
    for depth in (4, 12, 60):
        method = lissa(product=Hessian(), damping=damping, scale=0.6 * (highest + damping), depth=depth)
        values = method.score(RECORD, TRAIN, QUERIES, get).values
        errors.append(np.abs(values - expected).max() / np.abs(expected).max())
    assert errors[0] > 3 * errors[1]
    assert errors[2] < 1e-5


@dataclass(frozen=True)
class Other(GaussNewton):
    """The product with other samples."""

    start: int = 0

    def __call__(self, per_example, objective, x0, draws, vectors, condition=None, sample=0):
        return super().__call__(per_example, objective, x0, draws, vectors, condition, self.start + sample)


@pytest.mark.slow
def test_the_gauss_newton_recursion_is_unbiased(get):
    """Claim: in float64 and on a linear network, the mean of recursions is (H + λI)⁻¹ v of the *exact* Gauss-Newton matrix H.

    It is far from the inverse of the second moment of one pseudo-gradient per draw, to which a recursion with the same samples in
    every step would converge.
    """
    record = given(worlds.linear)
    model, train = record.network(get), get(TRAIN)
    x0, draws = train.x0().double(), DRAWS.draw("curvature", train.ids(), PROCESS.T)
    matrix = get(ExactGGN(draws=DRAWS, execution=Execution(device="cpu")).basis(record, TRAIN)).matrix()
    damping = 0.5 * float(torch.linalg.eigvalsh(matrix)[-1])
    v = per_example_gradients(LOSS, model, get(QUERIES).x0().double(), DRAWS.draw("query", get(QUERIES).ids(), PROCESS.T))
    eye = damping * torch.eye(len(matrix), dtype=matrix.dtype)
    expected, reused = (torch.linalg.solve(H + eye, flat(v).T).T for H in (matrix, gauss_newton(model, x0, draws)))
    engine, products = PerExampleGradients(model), []
    for seed in range(20):
        method = lissa(product=Other(start=1000 * seed), damping=damping, scale=16 * damping, depth=80)
        products.append(flat(method.recursion(engine, record, train, v)))
    mean, spread = torch.stack(products).mean(0), torch.stack(products).std(0) / 20**0.5
    size = expected.norm()
    assert (mean - expected).norm() < 1.2 * spread.norm()
    assert spread.norm() < 0.05 * size
    assert (reused - expected).norm() > 0.3 * size
    assert (mean - reused).norm() > 0.3 * size


def test_one_step_is_the_recursion(get):
    """Claim: J = 1 gives ⟨(2v - (H + λ) v/σ)/σ, ∇ℓ(z)⟩, σ the scale."""
    matrix, method = gauss_newton(*whole(get)), lissa(depth=1)
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    inverse = (2 * eye - (matrix + method.damping * eye) / method.scale) / method.scale
    values = method.score(RECORD, TRAIN, QUERIES, get).values
    np.testing.assert_allclose(values, exact(get, torch.linalg.inv(inverse), 0.0), rtol=1e-5)


@pytest.mark.slow
def test_mini_batches_are_nearly_unbiased(get, monkeypatch):
    """Claim: the mean over many recursions with mini-batches comes close to the inverse, and repeats are their mean.

    The inverse is that of the exact Gauss-Newton matrix.
    """
    matrix = get(ExactGGN(draws=DRAWS, execution=Execution(device="cpu")).basis(RECORD, TRAIN)).matrix()
    damping = 0.6 * float(torch.linalg.eigvalsh(matrix)[-1])
    expected = exact(get, matrix, damping)
    method = lissa(damping=damping, scale=20 * damping, depth=100, batch_size=6)
    model, queries, train = RECORD.network(get), get(QUERIES), get(TRAIN)
    engine = PerExampleGradients(model)
    v = per_example_gradients(LOSS, model, queries.x0().double(), DRAWS.draw("query", queries.ids(), PROCESS.T))
    z = flat(per_example_gradients(LOSS, model, train.x0().double(), DRAWS.draw("attribution", train.ids(), PROCESS.T)))
    # Each recursion separately.
    batches = Recursion.batches
    scores = []
    for number in range(10):
        monkeypatch.setattr(
            Recursion,
            "batches",
            lambda self, record, train, repeat, device, number=number: batches(self, record, train, number, device),
        )
        product = Other(start=method.depth * number)
        scores.append((flat(replace(method, product=product).recursion(engine, RECORD, train, v)) @ z.T).numpy())
    single = np.stack(scores)
    size = np.abs(expected).max()
    assert np.abs(single.mean(0) - expected).max() < 0.04 * size
    assert 0.005 * size < single.std(0).mean() < 0.05 * size
    monkeypatch.undo()
    repeated = (flat(replace(method, repeats=3).recursion(engine, RECORD, train, v)) @ z.T).numpy()
    np.testing.assert_allclose(repeated, single[:3].mean(0), rtol=1e-10)


@pytest.mark.parametrize("changes", [{"scale": 1e-3}, {"scale": 0.05, "batch_size": 2}])
def test_divergence_is_an_error(get, changes):
    """Claim: a scale that is too small is an error that names the settings, not a large number."""
    with pytest.raises(FloatingPointError, match=r"2 scale.*-damping"):
        lissa(**changes).score(RECORD, TRAIN, QUERIES, InMemory())


def test_negative_curvature_is_an_error(get):
    """Claim: a Hessian with an eigenvalue below -λ, which no recursion inverts, ends in the same error."""
    lowest, highest = (float(value) for value in torch.linalg.eigvalsh(hessian(*whole(get)))[[0, -1]])
    assert lowest < 0
    with pytest.raises(FloatingPointError, match="below -damping; raise"):
        lissa(product=Hessian(), damping=0.0, scale=highest, depth=20000).score(RECORD, TRAIN, QUERIES, InMemory())


def test_execution_and_order_change_no_score(get):
    """Claim: shards, batches of queries, pools beside each other, order of images: nothing beyond rounding."""
    settings = {"depth": 30, "batch_size": 5, "scale": 60.0}
    expected = lissa(**settings).score(RECORD, TRAIN, QUERIES, get).values
    for execution, batch in ((Execution(device="cpu", batch_size=4, shard=4, query_shard=2), 64), (Execution(device="cpu"), 1)):
        method, memory = lissa(**settings, execution=execution, query_batch=batch), InMemory()
        node = method.scores(RECORD, TRAIN, QUERIES)
        assert node.fingerprint == lissa(**settings).scores(RECORD, TRAIN, QUERIES).fingerprint
        other = method.scores(RECORD, TRAIN, Blobs(n=2, first=500, size=4))
        np.testing.assert_allclose(memory.many([node, other])[0].values, expected, rtol=1e-5)
    order = (3, 0, 5, 1, 4, 2)
    shuffled = lissa(**settings).score(RECORD, _reordered(order), QUERIES, get).values
    np.testing.assert_allclose(shuffled, expected[:, order], rtol=1e-5)


def _reordered(order):
    images = Reordered(TRAIN, order)
    object.__setattr__(images, "size", TRAIN.size)
    return images


BAD: list[dict[str, Any]] = [
    {"scale": 0}, {"scale": "a"}, {"damping": -1}, {"damping": [1e-3]}, {"depth": 0}, {"depth": 2.5}, {"repeats": 0},
    {"batch_size": WHOLE + 1}, {"batch_size": 0}, {"query_batch": 0},
]  # fmt: skip


@pytest.mark.parametrize("changes", BAD)
def test_bad_settings_are_refused(changes):
    """Claim: by their names, before anything is computed."""
    with pytest.raises(ValueError, match=rf"LiSSA\.{next(iter(changes))}="):
        lissa(**changes).scores(RECORD, TRAIN, QUERIES)
