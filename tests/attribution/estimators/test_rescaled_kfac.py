"""Rescaled influence against its equation written out, and where it is leaving one out."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attribution.checks import FieldError
from attribution.curvature import EKFAC, KFAC, ExactGGN
from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.estimators.balance import Balance
from attribution.estimators.final_self_influence import self_influence
from attribution.estimators.rescaled_kfac import HIGHEST, RescaledKFAC
from attribution.execution import Execution
from attribution.images import Images, ImageSet, philox
from attribution.images.draws import Uniform
from attribution.measurements import SquareNorm
from attribution.nodes import InMemory
from experiments.store.store import Store
from tests.attribution.curvature.curvature_worlds import Given
from tests.attribution.estimators.test_lissa import DRAWS, LOSS, QUERIES, RECORD, TRAIN
from tests.references import draw_gradients
from tests.worlds import PROCESS

CPU = Execution(device="cpu")
CURVATURE = KFAC(draws=DRAWS, execution=CPU)


def rescaled(**changes: Any) -> RescaledKFAC:
    settings = {"measurement": LOSS, "draws": DRAWS, "curvature": CURVATURE, "damping": 0.05}
    return RescaledKFAC(**{**settings, "execution": CPU, **changes})


def influence_of(method: RescaledKFAC, get) -> np.ndarray:
    return method.influence.score(RECORD, TRAIN, QUERIES, get).at(damping=method.damping, draws=DRAWS.count).values


def scored(method, get) -> np.ndarray:
    return method.score(RECORD, TRAIN, QUERIES, get).at(damping=method.damping, draws=DRAWS.count).values


def written_out(get, curvature, damping: float) -> np.ndarray:
    """h of each training image: dense matrices of each layer, gradients of single draws by ``backward``, ``[N]`` float64."""
    basis, model, x0 = get(curvature.basis(RECORD, TRAIN)), RECORD.network(get), get(TRAIN).x0().double()
    pseudo, true = (
        draw_gradients(measure, model, x0, DRAWS.draw(role, get(TRAIN).ids(), PROCESS.T))
        for measure, role in ((OutputProbe(PROCESS), "curvature"), (LOSS, "attribution"))
    )
    above, below = np.zeros(TRAIN.n), np.zeros(TRAIN.n)
    for layer in basis.layers:
        p, g = (torch.cat([of[f"{layer}.weight"], of[f"{layer}.bias"].unsqueeze(3)], 3).flatten(2) for of in (pseudo, true))
        Q = torch.kron(basis.QB[layer].double(), basis.QA[layer].double())
        H = Q @ torch.diag(basis.values[layer].flatten()) @ Q.T
        for n in range(TRAIN.n):
            gradient = g[n].mean(0)
            u = torch.linalg.solve(H + damping * torch.eye(len(H), dtype=torch.float64), gradient)
            above[n] += float(u @ (p[n].T @ p[n] / DRAWS.count) @ u) / TRAIN.n
            below[n] += float(gradient @ u)
    return above / below


@pytest.mark.parametrize("kind", [KFAC, EKFAC])
def test_scores_are_influence_over_one_minus_leverage(kind):
    """Claim: at every requested damping, with K-FAC's or EK-FAC's curvature; the leverages differ between images and dampings."""
    get, curvature = InMemory(), kind(draws=DRAWS, execution=CPU)
    method = rescaled(curvature=curvature, damping=[0.05, 0.5])
    scores = method.score(RECORD, TRAIN, QUERIES, get)
    plain = method.influence.score(RECORD, TRAIN, QUERIES, get)
    for damping in (0.05, 0.5):
        at = {"damping": damping, "draws": DRAWS.count}
        h = written_out(get, curvature, damping)
        assert 0 < h.min() < h.max() < HIGHEST
        np.testing.assert_allclose(scores.at(**at).values, plain.at(**at).values / (1 - h), rtol=1e-3)


@dataclass(frozen=True)
class Points(ImageSet):
    """``n`` images of one pixel."""

    STORED = False

    n: int = 7
    first: int = 0

    @property
    def count(self) -> int:
        return self.n

    def compute(self, get) -> Images:
        pixels = np.random.default_rng(self.first).integers(0, 256, (self.n, 1, 1, 1)).astype(np.uint8)
        return Images(pixels, self.first + np.arange(self.n), np.zeros(self.n, np.int64))


class Line(nn.Module):
    """A linear network of one pixel."""

    def __init__(self, parameters):
        super().__init__()
        self.only = nn.Linear(1, 1).double()
        weight, bias = torch.tensor(parameters, dtype=torch.float64)
        self.only.weight.data, self.only.bias.data = weight.view(1, 1), bias.view(1)

    def forward(self, x, t):
        return self.only(x.flatten(1)).view_as(x)


def test_it_is_leaving_one_out_in_ridge_regression(monkeypatch):
    """Claim: in linear regression with one output, τ/N is the change of the parameters on leaving z out, times ∇m(q).

    The pseudo-gradients are ±√2 here, so that their squares have no noise, and all images share one draw.
    """
    normal = philox.normal
    monkeypatch.setattr(philox, "normal", lambda *args: normal(*args).sign())
    one, damping, train, queries = Uniform(1, seed=3, shared=True), 0.1, Points(), Points(n=3, first=50)
    get = InMemory()
    x_t, t, noise, _ = LOSS.inputs(get(train).x0().double(), one.draw("attribution", get(train).ids(), PROCESS.T))
    inputs = PROCESS.add_noise(x_t, t, noise).flatten(1)
    X, y = torch.cat([inputs, torch.ones_like(inputs)], 1), noise.flatten()

    def solved(kept):
        return torch.linalg.solve(2 / len(X) * X[kept].T @ X[kept] + damping * torch.eye(2), 2 / len(X) * X[kept].T @ y[kept])

    everyone = torch.ones(len(X), dtype=torch.bool)
    theta = solved(everyone)
    record = Given(functools.partial(Line, theta.tolist()), LOSS)
    curvature = KFAC(draws=one, execution=CPU)
    method = rescaled(draws=one, curvature=curvature, damping=damping)
    found = method.score(record, train, queries, get).at(damping=damping, draws=1).values / train.n
    g = draw_gradients(LOSS, record.network(get), get(queries).x0().double(), one.draw("query", get(queries).ids(), PROCESS.T))
    gradient = torch.cat([g["only.weight"].flatten(1), g["only.bias"].flatten(1)], 1)
    moved = torch.stack([solved(torch.arange(len(X)) != z) - theta for z in range(len(X))])
    expected = (gradient @ moved.T).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    plain = method.influence.score(record, train, queries, get).at(damping=damping, draws=1).values / train.n
    assert np.abs(plain - expected).max() > 0.05 * np.abs(expected).max()


def test_leverages_are_bounded(monkeypatch):
    """Claim: a leverage above HIGHEST counts as HIGHEST, so that no score grows more than tenfold or changes its sign."""
    get, method = InMemory(), rescaled()
    h = written_out(get, CURVATURE, 0.05)
    bound = float(np.median(h))
    monkeypatch.setattr("attribution.estimators.rescaled_kfac.HIGHEST", bound)
    expected = influence_of(method, get) / (1 - np.minimum(h, bound))
    np.testing.assert_allclose(scored(method, get), expected, rtol=1e-3)


@pytest.mark.slow
def test_shards_change_nothing(tmp_path):
    """Claim: shards of three images and passes of two inputs give the same, also when resumed."""
    whole = scored(rescaled(), InMemory())
    small = Execution(device="cpu", shard=3, batch_size=2)
    method = rescaled(execution=small, curvature=KFAC(draws=DRAWS, execution=small))
    stored = scored(method, Store(tmp_path))
    np.testing.assert_allclose(stored, whole, rtol=1e-4)
    assert np.array_equal(scored(method, Store(tmp_path)), stored)


def test_groups_of_draws_share_the_leverages_of_all_draws():
    """Claim: the cross scores are influence's over 1 - h of all draws, and their mean is the score."""
    get, groups = InMemory(), Uniform(3, seed=5, replicates=3)
    method = rescaled(draws=groups)
    scores = method.score(RECORD, TRAIN, QUERIES, get).at(damping=0.05, draws=3)
    np.testing.assert_allclose(scores.values, scored(rescaled(), get), rtol=1e-3, atol=1e-6)
    plain = method.influence.score(RECORD, TRAIN, QUERIES, get).at(damping=0.05, draws=3)
    assert scores.cross is not None
    assert plain.cross is not None
    h = written_out(get, CURVATURE, 0.05)
    np.testing.assert_allclose(scores.cross, plain.cross / (1 - h), rtol=1e-3)


def test_balanced_queries_have_the_same_leverages():
    """Claim: weights of the queries' draws do not change leverages, which are of training images."""
    get, method = InMemory(), rescaled(balance=Balance(by="draw", side="query"))
    h = written_out(get, CURVATURE, 0.05)
    np.testing.assert_allclose(scored(method, get), influence_of(method, get) / (1 - h), rtol=1e-3)


def test_other_measurements_share_the_leverages():
    """Claim: what is measured of the queries does not matter to leverages, which are computed once."""
    other = rescaled(measurement=SquareNorm(PROCESS))
    assert other.leverages(RECORD, TRAIN).fingerprint == rescaled().leverages(RECORD, TRAIN).fingerprint


def test_passes_are_linear_in_the_training_images():
    """Claim: beside influence's passes, each training image takes its draws once more, and those of the curvature."""
    node, get = rescaled().scores(RECORD, TRAIN, QUERIES), InMemory()
    K = DRAWS.count
    assert node.passes(get) == (QUERIES.n + TRAIN.n) * K + TRAIN.n * 2 * K


def test_self_influence_is_the_diagonal():
    """Claim: an image's score for itself is that of all images for all images, without the other pairs."""
    get, method = InMemory(), rescaled(damping=[0.05])
    whole = method.score(RECORD, TRAIN, TRAIN, get).at(damping=0.05, draws=DRAWS.count)
    found = get(self_influence(method, RECORD, TRAIN))
    np.testing.assert_allclose(found.values, np.diagonal(whole.values), rtol=1e-5)
    np.testing.assert_array_equal(found.train_index, whole.train_index)


def test_bad_settings_are_refused():
    """Claim: several numbers of draws have several leverages, and the exact curvature has no Kronecker factors."""
    with pytest.raises(FieldError, match="a leverage takes one number of draws"):
        rescaled(draws=Uniform([2, 4], seed=3))
    with pytest.raises(FieldError, match="choose kfac or ekfac"):
        rescaled(curvature=ExactGGN(draws=DRAWS, execution=CPU))
    with pytest.raises(FieldError, match="damping"):
        rescaled(damping=-1)
