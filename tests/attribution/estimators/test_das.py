"""DAS against a literal float64 computation, and its special cases."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.estimators import residuals as residuals_module
from attribution.estimators.das import DAS
from attribution.estimators.final_self_influence import self_influence
from attribution.execution import Execution
from attribution.images.draws import Uniform
from attribution.measurements import SquareNorm
from attribution.nodes import InMemory
from attribution.projection import Gaussian
from experiments.store.store import Store
from tests.attribution.estimators.test_kernel import (
    DAMPING,
    PROCESS,
    QUERIES,
    RECORD,
    _rows,
    estimator,
    literal,
    only,
    solved,
)  # fmt: skip

SQUARE = SquareNorm(PROCESS)


@pytest.fixture(scope="module")
def get():
    return InMemory()


@functools.cache
def residuals():
    """√(mean over pixels of (ε - ε_θ)²), ``[N, K]``, one network input at a time, in float64."""
    get = InMemory()
    network, images = RECORD.network(get, None).double(), get(RECORD.data)
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.1, 100, dtype=torch.float64), 0)
    drawn = Uniform(4, seed=1).draw("attribution", images.ids(), 100)
    noise, r = drawn.noise((1, 8, 8), torch.float64), np.empty((len(images), 4))
    for i in range(len(images)):
        for k in range(4):
            t, epsilon = int(drawn.timestep[i, k]), noise[i, k][None]
            x_t = bars[t - 1].sqrt() * images.x0([i]).double() + (1 - bars[t - 1]).sqrt() * epsilon
            with torch.no_grad():
                r[i, k] = (epsilon - network(x_t, torch.tensor([t - 1])).sample).square().mean().sqrt()
    return r


def expected(residual, leverage, squared):
    q, z = _rows(SQUARE)
    inverse = solved(z, DAMPING)  # N (ΦᵀΦ + NλI)⁻¹ Φᵀ
    r = residuals()
    factor = {
        "mean": r.mean(1),
        "normalized": np.sqrt(r.shape[1]) * (r / np.linalg.norm(r, axis=1, keepdims=True)).mean(1),
        "none": np.ones(len(z)),
    }[residual]
    h = np.diagonal(z @ inverse) / len(z) if leverage else np.zeros(len(z))
    scores = q @ inverse * factor / (1 - h)
    return scores**2 if squared else scores


@pytest.mark.parametrize(
    ("residual", "leverage", "squared"),
    [("mean", True, True), ("normalized", True, False), ("none", True, False), ("mean", False, False)],
)
def test_scores_are_the_equation(get, residual, leverage, squared):
    """Claim: every variant is its equation with gradients and residuals of single draws, written out; scale included."""
    method = estimator(DAS, SQUARE, residual=residual, leverage=leverage, squared=squared)
    of_equation = expected(residual, leverage, squared)
    np.testing.assert_allclose(only(method, get), of_equation, rtol=2e-4, atol=1e-5 * np.abs(of_equation).max())


def test_without_residual_and_leverage_it_is_d_trak(get):
    """Claim: D-TRAK is the signed special case, and the squares are those of D-TRAK's scores."""
    plain = {"residual": "none", "leverage": False}
    np.testing.assert_allclose(only(estimator(DAS, SQUARE, squared=False, **plain), get), literal(SQUARE), rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(only(estimator(DAS, SQUARE, **plain), get), only(estimator(feature=SQUARE), get) ** 2, rtol=1e-5)


def test_leverage_is_that_of_leaving_one_out():
    """Claim: the score is the change of a ridge regression's prediction when one observation is left out."""
    rng = np.random.default_rng(0)
    Z, y, q, damping = rng.normal(size=(6, 4)), rng.normal(size=6), rng.normal(size=4), 0.7

    def fitted(rows):
        return np.linalg.solve(Z[rows].T @ Z[rows] + damping * np.eye(4), Z[rows].T @ y[rows])

    whole, inverse = fitted(slice(None)), np.linalg.inv(Z.T @ Z + damping * np.eye(4))
    for i in range(6):
        h = Z[i] @ inverse @ Z[i]
        change = q @ (whole - fitted(np.arange(6) != i))
        assert change == pytest.approx(q @ inverse @ Z[i] * (y[i] - Z[i] @ whole) / (1 - h))


def test_both_forms_give_the_same_numbers(get):
    """Claim: leverages are the same from the covariance (fewer features than images) and from the Gram matrix."""
    for k in (6, 64):
        method = estimator(DAS, SQUARE, projection=Gaussian(k=k, seed=3), residual="none", squared=False)
        q, z = (
            np.concatenate(list(method.features(RECORD, images, role).blocks(get))).astype(np.float64)
            for images, role in ((QUERIES, "query"), (RECORD.data, "attribution"))
        )
        inverse = np.linalg.inv(z.T @ z + len(z) * DAMPING * np.eye(k))
        scores = len(z) * q @ inverse @ z.T / (1 - np.einsum("nk,kl,nl->n", z, inverse, z))
        np.testing.assert_allclose(only(method, get), scores, rtol=1e-4, atol=1e-6 * np.abs(scores).max())


def test_shards_and_batches_change_nothing(get, tmp_path):
    """Claim: scores from shards of three images and passes of two inputs, kept in a store, are those of one block."""
    method = estimator(DAS, SQUARE)
    divided = replace(method, execution=Execution(device="cpu", shard=3, batch_size=2))
    stored = only(divided, Store(tmp_path))
    np.testing.assert_allclose(stored, only(method, get), rtol=1e-4)
    assert np.array_equal(only(divided, Store(tmp_path)), stored)


def test_residuals_hold_what_the_memory_of_a_pass_holds(monkeypatch):
    """Claim: with memory for the activations of one input, residuals are computed one input at a time, and are the same."""
    sizes, of = [], residuals_module.root_error

    def counted(objective, network, inputs):
        sizes.append(len(inputs.t))
        return of(objective, network, inputs)

    monkeypatch.setattr(residuals_module, "root_error", counted)
    method = estimator(DAS, SQUARE, execution=Execution(device="cpu", pass_memory=1))
    (node,) = method.node(RECORD.data, QUERIES, RECORD)._residuals
    np.testing.assert_allclose(InMemory()(node).mean, residuals().mean(1), rtol=1e-5)
    assert sizes == [1] * 40


def test_passes_count_the_residuals(get):
    """Claim: residuals take a forward pass of every draw of a training image, a third of a pass, and none without residuals."""
    of = [
        estimator(DAS, SQUARE, residual=kind, projection=Gaussian(k=6)).scores(RECORD, RECORD.data, QUERIES)
        for kind in ("mean", "none")
    ]
    assert of[0].passes(get) - of[1].passes(get) == pytest.approx(10 * 4 / 3)


def test_self_influence_has_the_residual(get):
    """Claim: self-influence is the diagonal of the scores, residuals and squares included."""
    method = estimator(DAS, SQUARE)
    diagonal = get(self_influence(method, RECORD, RECORD.data)).values
    np.testing.assert_allclose(diagonal, np.diagonal(only(method, get, RECORD.data)), rtol=1e-5)


def test_bad_settings_are_refused():
    """Claim: an unknown residual is refused by name, and so are groups of draws, in which squares are not linear."""
    with pytest.raises(FieldError, match=r"residual.*mean, normalized, none"):
        estimator(DAS, SQUARE, residual="median")
    for name in ("leverage", "squared"):
        with pytest.raises(FieldError, match=f"DAS.{name}=no: must be true or false"):
            estimator(DAS, SQUARE, **{name: "no"})
    with pytest.raises(FieldError, match="replicates"):
        estimator(DAS, SQUARE, draws=Uniform(4, replicates=2))
