"""Ensembles (``models``): scores averaged over training runs with different seeds."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from attribution.checks import FieldError
from attribution.curvature import EKFAC, KFAC
from attribution.estimators import Guided, LiSSA, ReTrac, TracIn
from attribution.estimators.astra import ASTRA
from attribution.estimators.balance import Balance
from attribution.estimators.das import DAS
from attribution.estimators.embedding import EmbeddingSimilarity, Pixels, Random
from attribution.estimators.ensemble import FIRST_SEED, EnsembleScores, members_of
from attribution.estimators.final_self_influence import self_influence
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.nda import NDA
from attribution.estimators.scores import Scores
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.trak import TRAK
from attribution.estimators.unlearning import Unlearning
from attribution.images.draws import Uniform
from attribution.models.given import UntrainedModel
from attribution.nodes import InMemory, Node
from attribution.nodes.identity import describe
from attribution.projection import Identity
from experiments.benchmarks.lds import APART
from experiments.benchmarks.variants import effort_of, require_replay
from experiments.estimators.datamodels import Datamodels
from experiments.models.trained import TrainedModel
from tests.golden import CPU, LOSS, QUERIES, RECORD

DRAWS = Uniform(4, seed=1)
MEASURED = {"measurement": LOSS, "draws": DRAWS, "execution": CPU}
GROUPED = {**MEASURED, "draws": Uniform(4, seed=1, replicates=2)}
CURVATURE = EKFAC(draws=DRAWS, execution=CPU)
FEATURES = {"draws": DRAWS, "projection": Identity(), "query_feature": LOSS, "train_feature": LOSS, "execution": CPU}
ESTIMATORS = {
    "kfac": KFACInfluence(**GROUPED, curvature=KFAC(draws=DRAWS, execution=CPU), damping=[1e-3, 1.0]),
    "balanced": KFACInfluence(
        **{**MEASURED, "draws": Uniform([2, 4], seed=1)}, curvature=CURVATURE, damping=1e-2, balance=Balance("draw")
    ),
    "trak": TRAK(**{**FEATURES, "draws": GROUPED["draws"]}, damping=[1e-3, 1.0]),
    "das": DAS(**FEATURES, damping=1e-2),
    "gas": GradientSimilarity(**MEASURED, projection=Identity(), cosine=True, checkpoints=2),
    "tracin": TracIn(**MEASURED, checkpoints=2),
    "retrac": ReTrac(**GROUPED, checkpoints=2),
    "guided": Guided(**MEASURED, checkpoints=2, strength=[0.3, 1.0]),
    "lissa": LiSSA(**MEASURED, damping=0.05, scale=20.0, depth=4, batch_size=8),
    "astra": ASTRA(**MEASURED, curvature=CURVATURE, depth=2, batch_size=8),
    "unlearning": Unlearning(**MEASURED, curvature=CURVATURE, damping=0.1),
}


@pytest.fixture(scope="module")
def get():
    return InMemory()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_ensemble_is_the_mean_of_its_members(name, get):
    """Claim: at each setting, the scores, their cross scores and halves are the means of those of the model and of another."""
    estimator, other = ESTIMATORS[name], RECORD.member(FIRST_SEED)
    ensemble = replace(estimator, models=2).score(RECORD, RECORD.data, QUERIES, get)
    singles = [estimator.score(model, RECORD.data, QUERIES, get) for model in (RECORD, other)]
    of_variants = [estimator.variants(scores) for scores in (ensemble, *singles)]
    for (setting, mean), *each in zip(*of_variants, strict=True):
        assert [setting, setting] == [settings for settings, _ in each]
        first, second = (scores for _, scores in each)
        assert not np.allclose(first.values, second.values, rtol=1e-2)
        for field in ("values", "cross", "halves"):
            parts = [getattr(scores, field) for scores in (mean, first, second)]
            if parts[1] is not None:
                expected = (parts[1].astype(np.float64) + parts[2]) / 2
                np.testing.assert_allclose(parts[0], expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
            else:
                assert parts[0] is None
    np.testing.assert_array_equal(ensemble.train_index, singles[0].train_index)
    np.testing.assert_array_equal(ensemble.query_index, singles[0].query_index)


@dataclass(frozen=True)
class Known(Node[Scores]):
    """Scores 10 λ + ``level`` at the ``dampings`` λ."""

    STORED = False
    ARTIFACT = Scores

    dampings: tuple[float, ...]
    level: float

    def compute(self, get) -> Scores:
        values = np.stack([np.full((2, 3), 10 * damping + self.level, np.float32) for damping in self.dampings])
        return Scores(values, np.arange(2), np.arange(3), {"damping": list(self.dampings)})


def test_dampings_are_those_of_all_members():
    """Claim: a damping that is too small for one model is left out, and every other one keeps its place."""
    scores = InMemory()(EnsembleScores((Known((0.1, 1.0, 2.0), 1.0), Known((1.0, 2.0, 3.0), 3.0))))
    assert list(scores.axes["damping"]) == [1.0, 2.0]
    for damping in (1.0, 2.0):
        np.testing.assert_array_equal(scores.at(damping=damping).values, np.full((2, 3), 10 * damping + 2))
    with pytest.raises(ValueError, match=r"no scores at damping=0\.1"):
        scores.at(damping=0.1)


def test_all_members_count(get):
    """Claim: the passes of an ensemble are those of all members, at each number of draws; each member is a node with its cost."""
    for name in ("balanced", "retrac"):
        estimator = ESTIMATORS[name]
        one, three = (replace(estimator, models=models).scores(RECORD, RECORD.data, QUERIES) for models in (1, 3))
        assert isinstance(three, EnsembleScores)
        assert len({parent.fingerprint for parent in three.parents()}) == 3
        assert three.members[0].fingerprint == one.fingerprint
        assert three.cost().disk == one.cost().disk
        settings = {"estimator.draws.n": 2} if name == "balanced" else {}
        assert effort_of(estimator, settings, three, get).passes == 3 * (effort_of(estimator, settings, one, get).passes or 0)


def test_members_share_no_seed_with_retrained_models():
    """Claim: benchmarks retrain with the next seeds, datamodels from seed + 1000, and further trainings are 10,000 apart."""
    seeds = [member.seed - RECORD.seed for member in members_of(RECORD, 100) if isinstance(member, TrainedModel)]
    assert seeds[0] == 0
    assert len(set(seeds)) == 100
    assert Datamodels.FIRST_SEED + 999 < min(seeds[1:]) <= max(seeds) < APART


def test_identities_are_those_without_ensembles():
    """Claim: one model leaves no trace in a description, except where descriptions always had one."""
    described = {name: describe(estimator) for name, estimator in ESTIMATORS.items()}
    assert {name for name, fields in described.items() if "models" in fields} == {"trak", "das"}
    assert described["trak"]["models"] == 1
    assert describe(replace(ESTIMATORS["kfac"], models=2))["models"] == 2


def test_what_has_no_ensemble_is_refused():
    """Claim: the sentence names the field, before anything is computed."""
    kfac, retrac = ESTIMATORS["kfac"], ESTIMATORS["retrac"]
    with pytest.raises(FieldError, match=r"KFACInfluence.models=0: must be a whole number, at least 1"):
        replace(kfac, models=0).scores(RECORD, RECORD.data, QUERIES)
    for alone in (Random(), NDA(), EmbeddingSimilarity(embedding=Pixels(), cosine=True)):
        with pytest.raises(FieldError, match=r"models=2: .* take no gradients of the model: set 1"):
            replace(alone, models=2).scores(RECORD, RECORD.data, QUERIES)
    with pytest.raises(FieldError, match=r"models=2: the explained model was trained elsewhere .* set 1"):
        replace(kfac, models=2).scores(UntrainedModel(model=RECORD.model, objective=LOSS), RECORD.data, QUERIES)
    with pytest.raises(FieldError, match=r"models=2: benchmark=targeted looks at the checkpoints of one training: set 1"):
        require_replay({"retrac": replace(retrac, models=2)}, "targeted")
    for estimator in (kfac, retrac):
        with pytest.raises(FieldError, match="models=2: self-influence is of one model"):
            self_influence(replace(estimator, models=2), RECORD, RECORD.data)
