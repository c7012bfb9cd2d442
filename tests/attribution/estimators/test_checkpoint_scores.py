"""Scores by checkpoint, and draws that differ between checkpoints."""

from dataclasses import replace

import numpy as np
import pytest

from attribution.estimators import ReTrac, TracIn
from attribution.estimators.checkpoint_scores import CheckpointScores
from attribution.execution import Execution
from attribution.images.at_checkpoints import UniformAtCheckpoints
from attribution.images.draws import Even, Fixed
from attribution.nodes import InMemory
from tests.worlds import OBJECTIVE, Blobs, trained

RECORD, QUERIES = trained(), Blobs(n=3, first=900)
STEPS = [6, 9, 12]
SETTINGS = {"measurement": OBJECTIVE, "checkpoints": STEPS, "execution": Execution(device="cpu", shard=10, query_shard=2)}


@pytest.fixture(scope="module")
def get():
    return InMemory()


@pytest.mark.parametrize("kind", [TracIn, ReTrac])
@pytest.mark.slow
def test_parts_are_scores_of_single_checkpoints_and_sum_to_the_scores(kind, get):
    """Claim: each part is the score with that checkpoint alone, in the order of the axis, and their sum is the score."""
    estimator = kind(**SETTINGS, draws=Even(4))
    whole = estimator.scores(RECORD, RECORD.data, QUERIES)
    parts = get(CheckpointScores(whole))
    assert parts.axes == {"checkpoint": STEPS}
    np.testing.assert_array_equal(parts.train_index, get(whole).train_index)
    np.testing.assert_allclose(parts.values.sum(0), get(whole).values, rtol=1e-4, atol=1e-6 * np.abs(parts.values).max())
    for step in STEPS:
        alone = replace(estimator, checkpoints=[step]).score(RECORD, RECORD.data, QUERIES, get)
        np.testing.assert_allclose(parts.at(checkpoint=step).values, alone.values, rtol=1e-5)


def test_every_checkpoint_has_draws_of_its_own(get):
    """Claim: at each checkpoint the scores are those at the timesteps that this checkpoint draws, which differ between them."""
    scheme = UniformAtCheckpoints(1, seed=5)
    ids, T = get(QUERIES).ids(), RECORD.process.T
    drawn = {step: scheme.at_checkpoint(step).draw("query", ids, T) for step in STEPS}
    assert len({tuple(draws.timestep[:, 0].tolist()) for draws in drawn.values()}) == len(STEPS)
    assert len(set(drawn[6].timestep[:, 0].tolist())) > 1  # and between queries
    whole = TracIn(**SETTINGS, draws=scheme).scores(RECORD, RECORD.data, QUERIES)
    parts = get(CheckpointScores(whole))
    for step in STEPS:
        alone = TracIn(**{**SETTINGS, "checkpoints": [step]}, draws=scheme).score(RECORD, RECORD.data, QUERIES, get)
        np.testing.assert_allclose(parts.at(checkpoint=step).values, alone.values, rtol=1e-5)


def test_draws_without_a_difference_between_checkpoints():
    """Claim: other schemes are themselves at every checkpoint, so stored results of theirs stay valid."""
    for scheme in (Even(4), Fixed([3])):
        assert scheme.at_checkpoint(6) is scheme


def test_numbers_of_draws_are_checked():
    """Claim: there is at least one draw."""
    with pytest.raises(ValueError, match="n"):
        UniformAtCheckpoints(0)
