"""TRAK at the damping with the best LDS."""

import functools
from dataclasses import replace

import numpy as np
import pytest

from attribution.diffusion.samplers import DDIMSampler
from attribution.estimators.kernel import GRID
from attribution.images.draws import Uniform
from attribution.measurements import LossAtT, SquareNorm
from attribution.nodes import InMemory
from attribution.projection import Automatic, Identity
from attribution.retraining.modes import Auto, Together
from experiments.estimators.tuned import TunedScores, TunedTRAK
from experiments.metrics.correlation import spearman
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained
from experiments.models.samples import Samples
from experiments.models.subsets import RandomSubsets
from tests.attribution.estimators.test_kernel import CPU, LOSS, RECORD, SMALL, estimator
from tests.worlds import PROCESS, Blobs, trained

PLAIN = replace(RECORD, recipe=replace(RECORD.recipe, precision="32-true", clip=None), model=SMALL)
SUBSETS = RandomSubsets(count=5)
SETTINGS = {
    "query_feature": None,
    "train_feature": None,
    "measurement": LOSS,
    "target": LOSS,
    "target_draws": Uniform(3, seed=2),
    "subsets": SUBSETS,
    "mode": Together(group=5),
    "pool": 4,
}
TUNED = estimator(TunedTRAK, **SETTINGS)
MODEL = trained(model=functools.partial(SMALL, dropout=0.0), data=Blobs(n=10), recipe=PLAIN.recipe)
QUERIES = Blobs(n=3, first=900)


@pytest.fixture(scope="module")
def get():
    return InMemory()


@pytest.mark.slow
def test_the_damping_has_the_best_lds(get):
    """Claim: of all stored dampings, it takes the one at which TRAK predicts the retrained models best."""
    node = TUNED.scores(MODEL, MODEL.data, QUERIES)
    found = get(node)
    plain = estimator(query_feature=None, train_feature=None, measurement=LOSS)
    scores = get(plain.scores(MODEL, MODEL.data, QUERIES))
    masks = SUBSETS.masks(get(MODEL.data))
    measured = np.empty((3, 5))
    steps = round(0.5 * MODEL.recipe.steps)
    for m, selection in enumerate(SUBSETS.selections(get(MODEL.data))):
        model = Retrained.of(MODEL, selection, MODEL.seed + 1, steps, TUNED.mode, CPU)
        costs = Measured(model=model, images=QUERIES, measure=LOSS, draws=TUNED.target_draws, execution=CPU)
        measured[:, m] = get(costs).values
    lds = {}
    for damping in scores.axes["damping"]:
        predicted = np.asarray(scores.at(damping=damping).values, np.float64) @ ~masks.T
        lds[damping] = spearman(predicted, measured).mean()
    best = max(lds, key=lambda damping: lds[damping])
    assert found.axes["damping"] == [best]
    ((settings, values),) = TUNED.variants(found)
    assert settings == {"estimator.damping": best}
    assert np.array_equal(values.values, scores.at(damping=best).values)
    assert best in GRID


def test_choices_that_depend_on_the_model_share_a_name_with_what_they_stand_for():
    """Claim: ``projection=auto`` and ``mode=auto`` give the stored scores of the projection and the mode that they choose."""
    automatic = replace(TUNED, projection=Automatic(parameters=1e9, k=8), mode=Auto(group=5))
    plain = replace(TUNED, projection=Identity())
    found, expected = (each.scores(MODEL, MODEL.data, QUERIES) for each in (automatic, plain))
    assert found.fingerprint == expected.fingerprint


def test_generated_queries_are_tuned_on_more_of_their_stream():
    """Claim: a pool of generated images is that of the same stream, whatever queries are explained; others are their own pool."""
    samples = Samples(trained=MODEL, sampler=DDIMSampler(steps=2), shape=(1, 8, 8), n=2, seed=0, execution=CPU)
    node = TUNED.scores(MODEL, MODEL.data, samples)
    assert isinstance(node, TunedScores)
    assert node.of_pool.queries.fingerprint == replace(samples, n=4).fingerprint
    assert node.of_queries.queries.fingerprint == samples.fingerprint
    own = TUNED.scores(MODEL, MODEL.data, QUERIES)
    assert isinstance(own, TunedScores)
    assert own.of_pool.fingerprint == own.of_queries.fingerprint


def test_measuring_something_else_tunes_for_it():
    """Claim: with another measurement the target follows; a feature that is no measurement stays."""
    at_5 = LossAtT(PROCESS, 5)
    assert TUNED.measuring(at_5).target == TUNED.measuring(at_5).measurement == at_5
    feature = replace(TUNED, measurement=None, query_feature=SquareNorm(PROCESS))
    assert feature.measuring(at_5) is feature
    assert isinstance(TUNED.projection, Identity)
