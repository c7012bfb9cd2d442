"""Scores from groups of draws (``draws.replicates``)."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.curvature import KFAC
from attribution.estimators import Estimator
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.lissa import LiSSA
from attribution.estimators.replicated import MOST_BYTES, MOST_PAIRS, in_groups
from attribution.estimators.retrac import ReTrac
from attribution.estimators.scores import Scores
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.trak import TRAK
from attribution.execution import Execution
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Even, Uniform
from attribution.images.replicates import Group
from attribution.images.window import Window
from attribution.measurements import Loss
from attribution.nodes import InMemory
from attribution.nodes.identity import describe
from attribution.projection import Identity
from tests.worlds import PROCESS, Blobs, trained

TRAIN, QUERIES = Blobs(8), Blobs(3, first=7)
DRAWS = Uniform(6, seed=1, train=4)
CPU, LOSS = Execution(device="cpu"), Loss(PROCESS)
ESTIMATORS = {
    "kfac": KFACInfluence(measurement=LOSS, draws=DRAWS, curvature=KFAC(draws=Uniform(2)), damping=1e-3, execution=CPU),
    "grad_dot": GradientSimilarity(measurement=LOSS, draws=DRAWS, projection=Identity(), cosine=False, execution=CPU),
    "trak": TRAK(measurement=LOSS, draws=DRAWS, projection=Identity(), damping=1e-3, execution=CPU),
    "retrac": ReTrac(measurement=LOSS, draws=Uniform(6, seed=1), checkpoints="last", execution=CPU),
}


@pytest.fixture(scope="module")
def model():
    return trained(data=TRAIN)


def scored(estimator: Estimator, model) -> Scores:
    scores = estimator.score(model, TRAIN, QUERIES, InMemory())
    return estimator.variants(scores)[0][1]


def with_replicates(estimator, R: int):
    return replace(estimator, draws=replace(estimator.draws, replicates=R))


@pytest.mark.parametrize("scheme", [Uniform(6, seed=3), Window(6, 20, 60, seed=3)])
def test_groups_are_consecutive_draws(scheme):
    """Claim: the groups of either side together are its draws, in order."""
    ids = torch.arange(5)
    whole = scheme.draw("query", ids, 100, flips=True, dropout=0.5)
    groups = [Group(scheme, r, 3).draw("query", ids, 100, flips=True, dropout=0.5) for r in range(3)]
    for name in ("timestep", "noise_seed", "flip", "condition_dropped"):
        joined = torch.cat([getattr(group, name) for group in groups], 1)
        assert torch.equal(joined, getattr(whole, name))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.slow
def test_scores_are_the_mean_of_cross_scores(name, model):
    """Claim: they are those without replicates up to rounding, and their identity is another one."""
    estimator = ESTIMATORS[name]
    plain, replicated = scored(estimator, model), scored(with_replicates(estimator, 2), model)
    assert plain.cross is None
    assert replicated.cross is not None
    assert replicated.cross.shape == (2, 1 if name in ("trak", "retrac") else 2, 3, 8)
    np.testing.assert_allclose(replicated.values, replicated.cross.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(replicated.values, plain.values, rtol=1e-3, atol=1e-5 * np.abs(plain.values).max())
    assert np.abs(np.diff(replicated.cross, axis=0)).max() > 1e-2 * np.abs(plain.values).max()
    nodes = [each.scores(model, TRAIN, QUERIES) for each in (estimator, with_replicates(estimator, 2))]
    assert nodes[0].fingerprint != nodes[1].fingerprint


@pytest.mark.slow
def test_cross_scores_are_those_of_their_groups(model):
    """Claim: τ_rs is the inner product of the mean gradients over group r and group s, computed one draw at a time."""
    cross = scored(with_replicates(ESTIMATORS["grad_dot"], 2), model).cross
    assert cross is not None
    get = InMemory()
    network = model.network(get).eval()

    def means(images, role: str, scheme: Uniform) -> torch.Tensor:
        """``[R, n, P]``"""
        loaded = get(images)
        draws = scheme.draw(role, loaded.ids(), PROCESS.T)
        rows = []
        for i in range(len(loaded)):
            x0, of_image = loaded.x0(slice(i, i + 1)), draws.rows(slice(i, i + 1))
            gradients = []
            for k in range(draws.count):
                of_draw = PerExampleGradients(network).capture(LOSS, x0, of_image.columns(slice(k, k + 1))).mean()
                gradients.append(torch.cat([g.flatten() for g in of_draw.values()]))
            rows.append(torch.stack(gradients).view(2, -1, gradients[0].numel()).mean(1))
        return torch.stack(rows, 1).double()

    left = means(QUERIES, "query", DRAWS.side("query"))
    right = means(TRAIN, "attribution", DRAWS.side("train"))
    np.testing.assert_allclose(cross, torch.einsum("rqp,snp->rsqn", left, right), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["kfac", "trak", "retrac"])
@pytest.mark.slow
def test_replicates_take_no_more_passes(name, model, monkeypatch):
    """Claim: as many inputs of the network are differentiated as without replicates."""
    inputs = []
    original = PerExampleGradients.capture

    def counted(self, measure, x0, draws, condition=None):
        inputs.append(len(x0) * draws.count)
        return original(self, measure, x0, draws, condition)

    monkeypatch.setattr(PerExampleGradients, "capture", counted)
    taken = []
    for estimator in (ESTIMATORS[name], with_replicates(ESTIMATORS[name], 2)):
        get = InMemory()
        get(model)
        if name == "kfac":
            get(estimator.basis(model, TRAIN))
        inputs.clear()
        node = estimator.scores(model, TRAIN, QUERIES)
        get(node)
        taken.append(sum(inputs))
        assert node.passes(get) == taken[0] or name == "trak"  # the Gram matrix has passes of its own
    assert taken[1] == taken[0]


def test_scores_with_replicates_are_saved(model, tmp_path):
    """Claim: a folder has the cross scores, also at one damping of a sweep."""
    estimator = with_replicates(ESTIMATORS["kfac"], 2)
    scores = estimator.score(model, TRAIN, QUERIES, InMemory())
    scores.save(tmp_path)
    loaded = Scores.load(tmp_path)
    assert loaded.axes["draws"] == [6]
    at = loaded.at(damping=1e-3, draws=6)
    assert at.cross is not None
    np.testing.assert_array_equal(at.cross.mean((0, 1), dtype=np.float64).astype(np.float32), at.values)


def test_replicates_that_are_refused():
    """Claim: the sentence says what to set."""
    with pytest.raises(FieldError, match=r"replicates=4: 6 draws cannot be cut into as many equal groups: choose a divisor"):
        Uniform(6, replicates=4)
    with pytest.raises(FieldError, match=r"replicates=2: 3 draws cannot be cut"):
        Uniform(6, train=3, replicates=2)
    several: list[dict[str, Any]] = [{"n": [2, 4]}, {"n": 4, "bins": 2}]
    for settings in several:
        with pytest.raises(FieldError, match=r"replicates=2: the groups are of one number of draws, over all timesteps"):
            Uniform(**settings, replicates=2)
    with pytest.raises(FieldError, match=r"replicates=0: must be a whole number"):
        Uniform(6, replicates=0)
    two = Uniform(4, replicates=2)
    for build in (
        functools.partial(LiSSA, measurement=LOSS),
        functools.partial(GradientSimilarity, measurement=LOSS, projection=Identity(), cosine=True),
        KFAC,
    ):
        with pytest.raises(FieldError, match=r"replicates=2: .* has no errors by groups of draws: set 1"):
            build(draws=two)


@pytest.mark.parametrize(
    ("draws", "groups"),
    [
        (Uniform(16, replicates="auto"), 4),
        (Window(64, 20, 60, replicates="auto"), 4),
        (Uniform(250, replicates="auto"), 5),
        (Uniform(8, replicates="auto"), 2),
        (Uniform(64, train=9, replicates="auto"), 1),  # no divisor of both
        (Uniform(64, train=8, replicates="auto"), 2),
        (Uniform(4, replicates="auto"), 1),
        (Uniform([16, 64], replicates="auto"), 1),
        (Uniform(64, bins=2, replicates="auto"), 1),
        (Uniform(64), 1),
        (Uniform(64, replicates=2), 2),
        (Even(64), 1),
    ],
)
def test_an_automatic_number_of_groups(draws, groups, model):
    """Claim: 4 groups, or as many as divide the draws of both sides, of 4 draws or more; a number that is given stays."""
    found = in_groups(replace(ESTIMATORS["kfac"], draws=draws), model, QUERIES.count, TRAIN.count)
    assert isinstance(found, KFACInfluence)
    assert found.draws.replicates == groups


def test_groups_are_automatic_only_where_they_cost_little(model):
    """Claim: not for many parameters and queries, nor for many scores, nor for estimators without groups."""
    draws = Uniform(16, replicates="auto")
    kfac = replace(ESTIMATORS["kfac"], draws=draws)
    assert in_groups(kfac, model, int(MOST_BYTES / (4 * model.parameter_count)) + 1, 1) is kfac
    assert in_groups(kfac, model, 1000, MOST_PAIRS // 1000 + 1) is kfac
    cosine = GradientSimilarity(measurement=LOSS, draws=draws, projection=Identity(), cosine=True)
    assert in_groups(cosine, model, 1, 8) is cosine
    lissa = LiSSA(measurement=LOSS, draws=draws)
    assert in_groups(lissa, model, 1, 8) is lissa


def test_automatic_groups_do_not_change_what_is_stored():
    """Claim: until it is chosen, the number is one, with the identity of one."""
    assert describe(Uniform(16, replicates="auto")) == describe(Uniform(16))
    assert Uniform(16, replicates="auto") == Uniform(16)
    assert not replace(Uniform(16, replicates="auto"), replicates=1).automatic
