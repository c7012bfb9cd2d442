"""Predictions by groups of draws and bins of timesteps."""

from dataclasses import replace

import numpy as np
import pytest

from attribution.curvature import KFAC
from attribution.estimators.influence import KFACInfluence
from attribution.execution import Execution
from attribution.images.draws import Uniform
from attribution.images.replicates import CrossGroups
from attribution.measurements import Loss
from attribution.nodes import InMemory
from experiments.estimators.timestep_groups import TimestepGroups
from experiments.models.subsets import RandomSubsets
from tests.worlds import PROCESS, Blobs, trained

TRAIN, QUERIES = Blobs(8), Blobs(3, first=7)
HALVES = RandomSubsets(count=5, seed=2)
ESTIMATOR = KFACInfluence(
    measurement=Loss(PROCESS),
    draws=Uniform(4, seed=1, train=6, bins=3),
    curvature=KFAC(draws=Uniform(2)),
    damping=1e-3,
    execution=Execution(device="cpu"),
)


@pytest.fixture(scope="module")
def model():
    return trained(data=TRAIN)


def node(model, groups: int) -> TimestepGroups:
    return TimestepGroups(ESTIMATOR, model, TRAIN, QUERIES, groups, HALVES)


@pytest.mark.slow
def test_they_are_what_scores_of_the_groups_predict(model):
    """Claim: all bins of the mean of groups predict what the scores do, and a pair of groups what its own draws do, bin by bin."""
    get = InMemory()
    values = node(model, 2).compute(get).values
    removed = HALVES.removed(get(TRAIN))
    assert values.shape == (2, 2, 3, 3, 3, 5)
    scores = replace(ESTIMATOR, draws=Uniform(4, seed=1, train=6)).score(model, TRAIN, QUERIES, get).at(damping=1e-3, draws=4)
    expected = scores.values @ removed.T
    np.testing.assert_allclose(values.mean((0, 1)).sum((0, 1)), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    pair = replace(ESTIMATOR, draws=CrossGroups(ESTIMATOR.draws, 0, 1, 2)).score(model, TRAIN, QUERIES, get)
    of_bins = pair.at(damping=1e-3, draws=2, query_bin="35-67", train_bin="68-100")
    np.testing.assert_allclose(values[0, 1, 1, 2], of_bins.values @ removed.T, rtol=1e-4, atol=1e-4 * np.abs(values).max())


def test_groups_and_halves_are_part_of_the_identity(model):
    """Claim: other groups, halves or bins are other nodes, and a pass of the network serves all groups."""
    first = node(model, 2)
    others = [node(model, 1), replace(first, halves=RandomSubsets(count=6, seed=2))]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert first.passes(InMemory()) == 3 * 4 + 8 * 6
