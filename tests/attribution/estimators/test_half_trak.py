"""TRAK in half precision against literal computations in NumPy's float16, and where it fails."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.estimators.half_trak import HalfPrecisionTRAK, half_scores, rounded_product
from attribution.nodes import InMemory
from attribution.projection import SJLT, Automatic, Gaussian, Identity
from tests.attribution.estimators.test_kernel import QUERIES, RECORD, estimator

RANDOM = np.random.default_rng(0)
PROJECTION = Gaussian(6, seed=3)


def test_products_are_rounded_as_numpy_rounds():
    """Claim: features, ΦᵀΦ, the scaled inverse and both products are rounded to float16; sums and the inversion are in float32."""
    q, z, damping = RANDOM.normal(size=(2, 3)).astype(np.float16), RANDOM.normal(size=(7, 3)).astype(np.float16), 0.01
    gram = (z.T.astype(np.float32) @ z.astype(np.float32)).astype(np.float16)
    inverse = np.linalg.inv(gram.astype(np.float32) + 7 * damping * np.eye(3, dtype=np.float32))
    inverse = (inverse / np.abs(inverse).mean()).astype(np.float16)
    solved = (z.astype(np.float32) @ inverse.astype(np.float32)).astype(np.float16)
    expected = (q.astype(np.float32) @ solved.T.astype(np.float32)).astype(np.float16)
    queries, train = torch.from_numpy(q), torch.from_numpy(z)
    found = half_scores(queries, train, rounded_product(train.T, train), damping)
    assert found.dtype == torch.float16
    np.testing.assert_allclose(found.float().numpy(), expected.astype(np.float32), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("dtype", "finite"), [(torch.float16, False), (torch.bfloat16, True)])
def test_large_features_overflow_float16_only(dtype, finite):
    """Claim: a ΦᵀΦ above 65,504 has no finite score in float16; bfloat16 has the range of float32."""
    train = torch.from_numpy(300 * RANDOM.normal(size=(20, 4))).to(dtype)
    scores = half_scores(train[:2], train, rounded_product(train.T, train), 1e-3)
    assert bool(torch.isfinite(scores).all()) == finite
    assert finite or torch.isnan(scores).all()


def test_small_features_vanish_in_float16():
    """Claim: without damping a ΦᵀΦ that underflows to 0 has no inverse, so all scores are NaN rather than an error."""
    train = torch.full((5, 3), 1e-5, dtype=torch.float16)
    assert torch.isnan(half_scores(train, train, rounded_product(train.T, train), 0.0)).all()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_scores_are_those_of_trak_up_to_a_factor(precision):
    """Claim: with a large damping, scores agree with TRAK's up to a positive factor and the precision; features are shared."""
    get, dampings = InMemory(), [1.0, 100.0]
    half = estimator(HalfPrecisionTRAK, projection=PROJECTION, damping=dampings, precision=precision)
    whole = estimator(projection=PROJECTION, damping=dampings)
    found, expected = (get(each.scores(RECORD, RECORD.data, QUERIES)) for each in (half, whole))
    assert found.axes == {"damping": dampings}
    for damping in dampings:
        a, b = (np.asarray(scores.at(damping=damping).values, np.float64) for scores in (found, expected))
        cosine = (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        assert cosine > 0.99
    assert {shard.fingerprint for shard in half.scores(RECORD, RECORD.data, QUERIES).parts(get)} == {
        shard.fingerprint
        for role, images in (("query", QUERIES), ("attribution", RECORD.data))
        for shard in whole.features(RECORD, images, role).shards
    }


def test_a_projection_that_depends_on_the_model_shares_a_name_with_what_it_stands_for():
    """Claim: ``projection=auto`` gives the scores of the projection that it chooses, and an error if it chooses none."""
    half = estimator(HalfPrecisionTRAK, projection=Automatic(parameters=0, k=6))
    plain = replace(half, projection=SJLT(6))
    assert half.scores(RECORD, RECORD.data, QUERIES).fingerprint == plain.scores(RECORD, RECORD.data, QUERIES).fingerprint
    with pytest.raises(FieldError, match="the covariance of whole gradients"):
        replace(half, projection=Automatic(parameters=1e9, k=6)).scores(RECORD, RECORD.data, QUERIES)


def test_settings_that_cannot_be():
    """Claim: another precision, whole gradients and an ensemble are refused when the estimator is made."""
    half = estimator(HalfPrecisionTRAK, projection=PROJECTION)
    for field, value in (("precision", "float8"), ("projection", Identity()), ("models", 2)):
        with pytest.raises(FieldError, match=field):
            replace(half, **{field: value})
