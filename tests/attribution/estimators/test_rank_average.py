"""Averages of ranks against counting, and what they do not depend on."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from attribution.checks import FieldError
from attribution.diffusion.samplers import DDIMSampler
from attribution.estimators import Estimator
from attribution.estimators.embedding import EmbeddingSimilarity, Pixels, Random
from attribution.estimators.nda import NDA
from attribution.estimators.rank_average import RankAverage
from attribution.estimators.replicated import in_groups
from attribution.estimators.scores import Scores
from attribution.images.draws import Uniform
from attribution.measurements import JourneyLoss, SquareNorm
from attribution.models.given import UntrainedModel
from attribution.nodes import InMemory, Node
from tests.attribution.estimators.test_ensemble import ESTIMATORS
from tests.golden import CPU, LOSS, QUERIES, RECORD
from tests.worlds import PROCESS

TRAIN = RECORD.data
COSINE = EmbeddingSimilarity(embedding=Pixels(), cosine=True, execution=CPU)
MODEL = UntrainedModel(model=RECORD.model, objective=LOSS)


@dataclass(frozen=True)
class Given(Node[Scores]):
    """Known scores."""

    STORED = False
    ARTIFACT = Scores

    rows: tuple[tuple[float, ...], ...]

    def compute(self, get) -> Scores:
        values = np.array(self.rows, np.float32)
        return Scores(values, np.arange(len(values)), np.arange(values.shape[1]))


@dataclass(frozen=True, kw_only=True)
class Of(Estimator):
    """The scores ``rows``."""

    rows: tuple[tuple[float, ...], ...]

    def scores_of_model(self, trained, train, queries):
        return Given(self.rows)


def averaged(*rows, **settings) -> np.ndarray:
    parts = {str(i): Of(rows=tuple(map(tuple, np.asarray(of).tolist()))) for i, of in enumerate(rows)}
    return RankAverage(of=parts, **settings).score(MODEL, TRAIN, QUERIES, InMemory()).values


def borda(values: np.ndarray) -> np.ndarray:
    """The share of the other images that an image beats, a tie counting half, by comparing all pairs."""
    Q, N = values.shape
    points = np.zeros((Q, N))
    for q in range(Q):
        for z in range(N):
            for other in range(N):
                if other != z:
                    points[q, z] += float(values[q, other] < values[q, z]) + 0.5 * float(values[q, other] == values[q, z])
    return points / (N - 1)


def test_it_is_the_mean_borda_count():
    """Claim: the mean over estimators of the share of images with a smaller score, with half of those with an equal one."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(3, 8)), random.integers(0, 3, (3, 8))  # the second has ties
    np.testing.assert_allclose(averaged(first, second), (borda(first) + borda(second)) / 2, rtol=1e-6)
    np.testing.assert_allclose(averaged([[1, 2, 3]], [[5, 9, 5]])[0], [(0 + 0.25) / 2, (0.5 + 1) / 2, (1 + 0.25) / 2])


def test_it_depends_on_the_order_of_scores_alone():
    """Claim: increasing functions of scores change nothing, nor do equal estimators; a sign turns the ranks around."""
    random = np.random.default_rng(1)
    first, second = random.normal(size=(2, 8)), random.normal(size=(2, 8))
    plain = averaged(first, second)
    np.testing.assert_array_equal(averaged(np.exp(3 * first) * [[1e-4], [1e4]], second**3), plain)
    np.testing.assert_allclose(averaged(first, first), borda(first), rtol=1e-6)
    np.testing.assert_allclose(averaged(first, -first), np.full((2, 8), 0.5))
    np.testing.assert_array_equal(averaged(second, first), plain)
    assert 0 <= plain.min() <= plain.max() <= 1


def test_standard_scores_keep_distances():
    """Claim: the mean of (τ - mean)/deviation over training images; equal scores count 0, units and offsets nothing."""
    random = np.random.default_rng(2)
    first, second = random.normal(size=(2, 8)), random.exponential(size=(2, 8))
    standard = [np.array([(row - row.mean()) / np.sqrt(((row - row.mean()) ** 2).mean()) for row in of]) for of in (first, second)]
    plain = averaged(first, second, normalize="standard")
    np.testing.assert_allclose(plain, (standard[0] + standard[1]) / 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(averaged(1e3 * first + 7, second, normalize="standard"), plain, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(averaged(first, np.ones((2, 8)), normalize="standard"), standard[0] / 2, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def get():
    return InMemory()


def test_parts_are_the_estimators_themselves(get):
    """Claim: the average of estimators is that of their own scores, whose nodes it shares; their passes are its passes."""
    parts = {"kfac": replace(ESTIMATORS["kfac"], damping=1e-3), "grad_cos": ESTIMATORS["gas"], "raw_cos": COSINE}
    average = RankAverage(of=parts)
    node = average.scores(RECORD, TRAIN, QUERIES)
    alone = {name: part.scores(RECORD, TRAIN, QUERIES) for name, part in parts.items()}
    assert {parent.fingerprint for parent in node.parents()} == {of.fingerprint for of in alone.values()}
    expected = np.mean([borda(part.variants(get(alone[name]))[0][1].values) for name, part in parts.items()], axis=0)
    np.testing.assert_allclose(get(node).values, expected, rtol=1e-6)
    assert node.passes(get) == sum(of.passes(get) for of in alone.values())
    turned = RankAverage(of=dict(reversed(parts.items())))
    assert turned.scores(RECORD, TRAIN, QUERIES).fingerprint == node.fingerprint
    other = RankAverage(of={**parts, "kfac": replace(parts["kfac"], damping=1.0)})
    assert other.scores(RECORD, TRAIN, QUERIES).fingerprint != node.fingerprint


def test_standard_scores_of_groups_of_draws(get):
    """Claim: cross scores are averaged at the scale of the scores from all draws; a part without draws is equal in all groups."""
    kfac, trak = replace(ESTIMATORS["kfac"], damping=1e-3), replace(ESTIMATORS["trak"], damping=1e-3)
    average = RankAverage(of={"kfac": kfac, "raw_cos": COSINE, "trak": trak}, normalize="standard").score(
        RECORD, TRAIN, QUERIES, get
    )
    of = [part.variants(part.score(RECORD, TRAIN, QUERIES, get))[0][1] for part in (kfac, COSINE, trak)]
    assert average.cross is not None
    assert of[0].cross is not None
    assert of[2].cross is not None
    assert average.cross.shape == (2, 2, *average.values.shape)
    for r, s in np.ndindex(2, 2):
        groups = [of[0].cross[r, s], of[1].values, of[2].cross[r, 0]]
        for q, values in enumerate(average.cross[r, s]):
            scaled = [(group[q] - all_.values[q].mean()) / all_.values[q].std() for group, all_ in zip(groups, of, strict=True)]
            np.testing.assert_allclose(values, sum(scaled) / 3, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(average.values, average.cross.mean((0, 1)), rtol=1e-5, atol=1e-6)
    plain = [replace(each, cross=None).values for each in of]
    np.testing.assert_allclose(average.values, averaged(*plain, normalize="standard"), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("other", "normalize"),
    [
        (NDA(timestep=5, noises=1, execution=CPU), "standard"),
        (replace(ESTIMATORS["kfac"], damping=1.0, draws=Uniform(4, seed=1)), "standard"),
        (replace(ESTIMATORS["kfac"], damping=1.0, draws=Uniform(4, seed=1, replicates=4)), "standard"),
        (COSINE, "rank"),
    ],
)
def test_without_groups_of_all_draws_there_are_no_errors(other, normalize, get):
    """Claim: groups of some parts say nothing about the noise of the others, nor do they about ranks, which are not linear."""
    average = RankAverage(of={"kfac": replace(ESTIMATORS["kfac"], damping=1e-3), "other": other}, normalize=normalize)
    assert average.score(RECORD, TRAIN, QUERIES, get).cross is None


@pytest.mark.parametrize("normalize", ["rank", "standard"])
def test_swept_values_are_axes_of_the_average(normalize, get):
    """Claim: at each of the values that parts sweep, the average is the one of parts that have this value alone."""
    guided, cosine = ESTIMATORS["guided"], {"raw_cos": COSINE}
    two = {
        "kfac": ESTIMATORS["kfac"],
        "trak": ESTIMATORS["trak"],
        "guided": guided,
        "nda": NDA(timestep=5, noises=1, execution=CPU),
    }
    several = RankAverage(of={**cosine, **two}, normalize=normalize)
    for settings, scores in several.variants(several.score(RECORD, TRAIN, QUERIES, get)):
        damping, strength = settings["estimator.damping"], settings["estimator.strength"]
        one = {name: replace(part, damping=damping) for name, part in two.items() if name in ("kfac", "trak")}
        one |= {"guided": replace(guided, strength=strength), "nda": two["nda"]}
        alone = RankAverage(of={**cosine, **one}, normalize=normalize)
        np.testing.assert_array_equal(scores.values, alone.score(RECORD, TRAIN, QUERIES, get).values)
    assert several.requested() == {"damping": [1e-3, 1.0], "strength": [0.3, 1.0]}


def test_settings_of_all_estimators_reach_the_parts():
    """Claim: another measurement, and groups of draws that are left open, as for the estimators themselves."""
    draws = Uniform(16, replicates="auto")
    average = RankAverage(of={"kfac": replace(ESTIMATORS["kfac"], draws=draws), "random": Random()})
    assert in_groups(average, MODEL, 3, 8).parts["kfac"] == in_groups(average.parts["kfac"], MODEL, 3, 8)
    square = SquareNorm(PROCESS)
    assert average.measuring(square).parts["kfac"] == average.parts["kfac"].measuring(square)


def test_an_average_that_cannot_be_is_refused():
    """Claim: the sentence says which estimator and why, before anything is computed."""
    pair = {"raw_cos": COSINE, "random": Random()}
    for of, said in (
        (["kfac"], r"of=\['kfac'\]: an average is over at least two estimators"),
        ({}, r"of=\[\]: an average is over at least two estimators"),
        (["a", "b", "a"], "a is named twice"),
        ({**pair, "both": RankAverage(of=pair)}, "both is an average of ranks itself"),
    ):
        with pytest.raises(FieldError, match=said):
            RankAverage(of=of)
    with pytest.raises(FieldError, match="normalize=mean: choose rank or standard"):
        RankAverage(of=pair, normalize="mean")  # pyright: ignore[reportArgumentType]
    with pytest.raises(FieldError, match="these are names: give a mapping"):
        RankAverage(of=["a", "b"]).scores(MODEL, TRAIN, QUERIES)
    for part, said in (
        (ESTIMATORS["balanced"], r"n=\[2, 4\]: an average of ranks takes one number of draws"),
        (
            replace(ESTIMATORS["trak"], damping=[0.1, 1.0]),
            r"damping=\[0\.1, 1\.0\]: another part of the average has \[0\.001, 1\.0\]",
        ),
    ):
        with pytest.raises(FieldError, match=said):
            RankAverage(of={**pair, "kfac": ESTIMATORS["kfac"], "part": part}).scores(RECORD, TRAIN, QUERIES)
    with pytest.raises(FloatingPointError, match="scores of 0 are not finite"):
        averaged([[1.0, np.nan]], [[1.0, 2.0]])


def test_it_explains_what_all_its_parts_explain():
    """Claim: queries without sampling trajectories are left out if one part needs them."""
    journey = replace(ESTIMATORS["trak"], query_feature=JourneyLoss(PROCESS, DDIMSampler(steps=5)))
    assert RankAverage(of={"a": COSINE, "b": Random()}).explains(QUERIES)
    assert not RankAverage(of={"a": COSINE, "b": journey}).explains(QUERIES)
