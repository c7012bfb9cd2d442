"""ASTRA against dense matrices, and where its preconditioner is exact."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from attribution.checks import FieldError
from attribution.curvature import EKFAC, KFAC, ExactGGN
from attribution.curvature.exact import flat
from attribution.curvature.vector_products import GaussNewton
from attribution.estimators.astra import ASTRA, Whitening
from attribution.estimators.influence import KFACInfluence
from attribution.execution import Execution
from attribution.images.draws import Uniform
from attribution.nodes import InMemory
from tests.attribution.estimators.test_lissa import DRAWS, LOSS, QUERIES, RECORD, TRAIN, WHOLE, exact, lissa

CPU = Execution(device="cpu")
PRECONDITIONER = EKFAC(draws=DRAWS, execution=CPU)


def astra(**changes: Any) -> ASTRA:
    settings = {"measurement": LOSS, "draws": DRAWS, "curvature": PRECONDITIONER, "damping": 0.05, "batch_size": WHOLE}
    return ASTRA(**{**settings, "execution": CPU, **changes})


@pytest.fixture(scope="module")
def get():
    return InMemory()


MANY = Uniform(32, seed=3)


@functools.cache
def gauss_newton() -> Tensor:
    """The exact Gauss-Newton matrix, ``[P, P]``."""
    basis = InMemory()(ExactGGN(draws=MANY, execution=CPU).basis(RECORD, TRAIN))
    return basis.vectors @ torch.diag(basis.eigenvalues) @ basis.vectors.T


@dataclass(frozen=True)
class Dense(GaussNewton):
    """The product with the exact matrix."""

    NAME = "Dense"

    def __call__(self, per_example, objective, x0, draws, vectors, condition=None, sample=0):
        parts = (flat(vectors) @ gauss_newton()).split([block[0].numel() for block in vectors.values()], 1)
        return {layer: part.view_as(vectors[layer]) for layer, part in zip(vectors, parts, strict=True)}


def test_it_converges_to_the_inverse_and_faster_than_lissa(get):
    """Claim: the scores become those of the dense (H + λI)⁻¹, off-diagonal blocks included, where LiSSA has hardly begun."""
    matrix = gauss_newton()
    highest = float(torch.linalg.eigvalsh(matrix)[-1])
    damping = 1e-3 * highest
    expected = exact(get, matrix, damping)

    def error(method):
        return np.abs(method.score(RECORD, TRAIN, QUERIES, get).values - expected).max() / np.abs(expected).max()

    settings = {"product": Dense(), "damping": damping}
    of_astra = {"curvature": EKFAC(draws=MANY, execution=CPU), "scale": 2.0, **settings}
    errors = [error(astra(depth=depth, **of_astra)) for depth in (5, 20, 300)]
    of_lissa = [error(lissa(scale=0.6 * highest, depth=depth, **settings)) for depth in (20, 300)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3
    assert errors[1] < of_lissa[0] / 3
    assert errors[2] < of_lissa[1] / 30


@dataclass(frozen=True)
class OfPreconditioner(GaussNewton):
    """The product with the curvature of K-FAC itself."""

    NAME = "OfPreconditioner"

    def __call__(self, per_example, objective, x0, draws, vectors, condition=None, sample=0):
        basis = InMemory()(KFAC(draws=DRAWS, execution=CPU).basis(RECORD, TRAIN))
        return basis.restored({layer: rotated * basis.values[layer].to(rotated) for layer, rotated in basis.rotations(vectors)})


def test_it_is_k_fac_where_that_is_exact(get):
    """Claim: if H is K-FAC's matrix, the recursion with σ = 1 stands still at K-FAC's scores; larger σ only take longer."""
    curvature = KFAC(draws=DRAWS, execution=CPU)
    influence = KFACInfluence(measurement=LOSS, draws=DRAWS, curvature=curvature, damping=0.05, execution=CPU)
    expected = influence.score(RECORD, TRAIN, QUERIES, get).at(damping=0.05, draws=DRAWS.count).values
    for scale, depth in ((1.0, 1), (2.0, 30)):
        method = astra(product=OfPreconditioner(), curvature=curvature, scale=scale, depth=depth, damping=0.05)
        scores = method.score(RECORD, TRAIN, QUERIES, get).values
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_whitening_takes_the_preconditioner_to_the_identity(get):
    """Claim: ``back`` undoes nothing but P: back(of(v)) = P⁻¹ v, and both are adjoint."""
    basis = get(PRECONDITIONER.basis(RECORD, TRAIN))
    white, random = Whitening(basis, 0.3), torch.Generator().manual_seed(0)
    v, w = ({layer: torch.randn(2, *x.shape, generator=random) for layer, x in basis.values.items()} for _ in range(2))
    divided = {layer: x / (basis.values[layer] + 0.3).float() for layer, x in basis.rotations(v)}
    for layer, x in basis.restored(divided).items():
        torch.testing.assert_close(white.back(white.of(v))[layer], x, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            (white.of(v)[layer] * w[layer]).sum(), (v[layer] * white.back(w)[layer]).sum(), rtol=1e-3, atol=1e-3
        )


def test_queries_take_the_preconditioner_into_account(get):
    """Claim: LiSSA and ASTRA with equal recursions are not computed as one, and the curvature is computed before the queries."""
    settings = {"damping": 0.05, "scale": 9.0, "depth": 2, "batch_size": WHOLE}
    one, other = (
        method.scores(RECORD, TRAIN, QUERIES).training_blocks[0].query_blocks()[0]
        for method in (astra(**settings), lissa(**settings))
    )
    assert one.together() != other.together()
    assert PRECONDITIONER.basis(RECORD, TRAIN).fingerprint in {parent.fingerprint for parent in one.parents()}


def test_passes_count_a_recursion_once(get):
    """Claim: blocks of queries that share a recursion count its passes once together, as the scores do."""
    method = astra(scale=9.0, depth=2, execution=Execution(device="cpu", query_shard=1))
    of_draws = (QUERIES.n + TRAIN.n) * DRAWS.count
    scores = method.scores(RECORD, TRAIN, QUERIES)
    assert scores.passes(get) == scores.cost().passes == of_draws + 2 * WHOLE


def test_a_recursion_that_grows_is_an_error(get):
    """Claim: a step size that is too large ends with an error that says what to raise."""
    with pytest.raises(FloatingPointError, match="raise scale"):
        astra(scale=1e-2, depth=40).score(RECORD, TRAIN, QUERIES, get)


def test_bad_settings_are_refused():
    """Claim: without damping nothing can be whitened, and the exact curvature has no Kronecker factors."""
    with pytest.raises(FieldError, match=r"ASTRA.damping=0: must be above 0"):
        astra(damping=0)
    with pytest.raises(FieldError, match="choose kfac or ekfac"):
        astra(curvature=ExactGGN(draws=DRAWS, execution=CPU))
    with pytest.raises(FieldError, match="ASTRA takes one number of draws"):
        astra(draws=Uniform([2, 4], seed=3))


def test_the_defaults_belong_together():
    """Claim: without settings, damping, step size and number of steps are those of the shipped configuration."""
    shipped = OmegaConf.load(Path(__file__).parents[3] / "conf/estimator/astra.yaml")
    of_class = ASTRA(measurement=LOSS, draws=DRAWS, curvature=PRECONDITIONER, execution=CPU)
    for name in ("damping", "scale", "depth", "batch_size"):
        assert getattr(of_class, name) == shipped[name]
