"""Self-influence under estimators of the final model."""

from dataclasses import replace

import numpy as np
import pytest

from attribution.checks import FieldError
from attribution.estimators.embedding import Random
from attribution.estimators.final_self_influence import self_influence
from attribution.execution import Execution
from attribution.images.draws import Uniform
from attribution.nodes import InMemory
from tests.attribution.estimators.test_replicates import ESTIMATORS, TRAIN
from tests.worlds import trained


@pytest.fixture(scope="module")
def model():
    return trained(data=TRAIN)


@pytest.mark.parametrize("name", ["kfac", "trak", "grad_dot"])
@pytest.mark.parametrize("shard", [3, 256])
def test_it_is_the_diagonal_of_the_scores_of_training_images(name, shard, model):
    """Claim: the score of each training image for itself as a query, whatever the size of a block."""
    estimator, get = replace(ESTIMATORS[name], execution=Execution(device="cpu", shard=shard)), InMemory()
    influence = get(self_influence(estimator, model, TRAIN))
    [(_, scores)] = estimator.variants(estimator.score(model, TRAIN, TRAIN, get))
    np.testing.assert_allclose(influence.values, np.diagonal(scores.values), rtol=1e-4)
    np.testing.assert_array_equal(influence.train_index, get(TRAIN).index)


def test_the_passes_of_both_sides_are_counted(model):
    """Claim: a plan, which adds up the parts of nodes, has every example at its draws as a query and as a training image."""
    estimator = replace(ESTIMATORS["kfac"], execution=Execution(device="cpu", shard=3, query_shard=2))
    draws = estimator.draws
    expected = TRAIN.count * (draws.side("query").count + draws.side("train").count)
    assert self_influence(estimator, model, TRAIN).passes(InMemory()) == expected


def test_the_sides_of_an_example_have_independent_draws():
    """Claim: an example as a query is at other timesteps and noises than as a training image."""
    ids = InMemory()(TRAIN).ids()
    query, train = (Uniform(8, seed=1).draw(role, ids, 1000) for role in ("query", "attribution"))
    assert (query.timestep == train.timestep).float().mean() < 0.1
    assert not (query.noise_seed == train.noise_seed).any()


def test_what_has_no_self_influence_is_refused(model):
    """Claim: several dampings or numbers of draws, and estimators without draws, are refused by a sentence."""
    kfac = ESTIMATORS["kfac"]
    with pytest.raises(FieldError, match=r"damping=\[0\.1, 0\.2\]: self-influence takes one value"):
        self_influence(replace(kfac, damping=[0.1, 0.2]), model, TRAIN)
    with pytest.raises(FieldError, match=r"draws=\[2, 4\]: self-influence takes one value"):
        self_influence(replace(kfac, draws=Uniform([2, 4])), model, TRAIN)
    with pytest.raises(FieldError, match="models=2: self-influence is of one model"):
        self_influence(replace(ESTIMATORS["trak"], models=2), model, TRAIN)
    in_groups, plain = (self_influence(replace(kfac, draws=Uniform(4, replicates=r)), model, TRAIN) for r in (2, 1))
    assert in_groups.fingerprint == plain.fingerprint
    with pytest.raises(ValueError, match="Random has no self-influence: choose an estimator with draws"):
        self_influence(Random(seed=1), model, TRAIN)
