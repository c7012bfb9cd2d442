"""Attribution to a part of the parameters."""

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.curvature import KFAC
from attribution.estimators import TracIn
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.trak import TRAK
from attribution.execution import Execution
from attribution.images.draws import Even
from attribution.models.given import UntrainedModel
from attribution.nodes import InMemory
from attribution.projection import Identity
from attribution.training.selected import ALL, Matching, unselected
from tests.references import draw_gradients
from tests.worlds import OBJECTIVE, Blobs, trained

RECORD, QUERIES = trained(), Blobs(n=3, first=900)
DRAWS, EXECUTION = Even(2), Execution(device="cpu", shard=10)
UP, REST = r"^up_blocks", r"^(?!up_blocks)"
ESTIMATORS = {
    "dot": GradientSimilarity(measurement=OBJECTIVE, cosine=False, projection=Identity(), draws=DRAWS, execution=EXECUTION),
    "tracin": TracIn(measurement=OBJECTIVE, checkpoints=[6, 12], draws=DRAWS, execution=EXECUTION),
    "kfac": KFACInfluence(
        measurement=OBJECTIVE, curvature=KFAC(draws=DRAWS, execution=EXECUTION), damping=1e-3, draws=DRAWS, execution=EXECUTION
    ),
}


@pytest.fixture(scope="module")
def get():
    return InMemory()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scores_of_parts_add_up(name, get):
    """Claim: where the scores are sums over parameters (or blocks of them), those of a part and of the rest add up to all."""
    whole, up, rest = (
        ESTIMATORS[name].score(model, RECORD.data, QUERIES, get).values
        for model in (RECORD, Matching(UP).of(RECORD), Matching(REST).of(RECORD))
    )
    scale = np.abs(whole).max()
    assert np.abs(up).max() > 1e-3 * scale
    assert np.abs(rest).max() > 1e-3 * scale
    np.testing.assert_allclose(up + rest, whole, rtol=1e-3, atol=1e-5 * scale)


def test_gradients_are_those_of_the_chosen_parameters(get):
    """Claim: the inner products of gradients are sums over the parameters whose names match, by autograd draw by draw."""
    network = RECORD.network(get)
    means = []
    for role, images in (("query", QUERIES), ("attribution", RECORD.data)):
        x0, ids = get(images).x0().double(), get(images).ids()
        flips = {"flips": True} if role == "attribution" else {}
        found = draw_gradients(OBJECTIVE, network, x0, DRAWS.draw(role, ids, RECORD.process.T, **flips))
        chosen = [g.mean(1).flatten(1) for parameter, g in found.items() if "bias" in parameter]
        means.append(torch.cat(chosen, 1))
    estimator = GradientSimilarity(
        measurement=OBJECTIVE, cosine=False, projection=Identity(), draws=DRAWS, execution=EXECUTION, flips=True
    )
    scores = estimator.score(Matching("bias$").of(RECORD), RECORD.data, QUERIES, get).values
    np.testing.assert_allclose(scores, (means[0] @ means[1].T).numpy(), rtol=1e-4, atol=1e-7)


def test_a_part_is_of_the_same_training(get):
    """Claim: its record is that of the whole model; other parts have other scores; all parameters are no part."""
    part = Matching(UP).of(RECORD)
    assert get(part) is get(RECORD)
    assert unselected(part) is RECORD
    assert ALL.of(RECORD) is RECORD
    assert Matching(".").of(RECORD) is RECORD
    given = UntrainedModel(model=RECORD.model, objective=RECORD.objective)
    assert Matching(UP).of(given).fingerprint != Matching(REST).of(given).fingerprint
    settings = {"query_feature": OBJECTIVE, "train_feature": OBJECTIVE, "damping": 1.0, "projection": Identity(), "draws": DRAWS}
    nodes = [TRAK(**settings).scores(model, RECORD.data, QUERIES) for model in (RECORD, part, Matching(REST).of(RECORD))]
    assert len({node.fingerprint for node in nodes}) == 3


def test_members_of_an_ensemble_have_the_same_part():
    """Claim: the model with another seed has gradients of the same parameters."""
    other = Matching(UP).of(RECORD).member(2)
    assert unselected(other) == RECORD.member(2)
    assert other.parameter_count == Matching(UP).of(RECORD).parameter_count < RECORD.parameter_count


def test_patterns_are_checked():
    """Claim: a pattern that is none, or matches nothing, is refused, with names of parameters that there are."""
    with pytest.raises(FieldError, match=r"Matching\.pattern=\(: is not a regular expression"):
        Matching("(")
    with pytest.raises(
        FieldError, match=r"Matching\.pattern=nothing: matches none of the \d+ trainable parameters: conv_in\.weight"
    ):
        Matching("nothing").of(RECORD)
