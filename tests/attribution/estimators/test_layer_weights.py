"""Scores by groups of layers add up to those of all layers, and weights of the groups are learned as written out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attribution.checks import FieldError
from attribution.curvature import EKFAC, KFAC, ExactGGN
from attribution.estimators.balance import Balance
from attribution.estimators.final_self_influence import self_influence
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.layer_weights import LayerWeights, LayerWeightScores, learned
from attribution.estimators.layers import AllLayers, OnlyLayers
from attribution.estimators.retrac import ReTrac
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.tracin import TracIn
from attribution.execution import Execution
from attribution.gradients.network_cache import gradient_shapes
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Uniform
from attribution.nodes import InMemory
from attribution.projection import Identity
from attribution.projection.sparse import SJLT
from attribution.training.recipe import Recipe
from experiments.store.store import Store
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.estimators.test_lissa import DRAWS, LOSS, QUERIES, RECORD, TRAIN
from tests.worlds import Blobs, trained

CPU = Execution(device="cpu")
SETTINGS: dict[str, Any] = {"measurement": LOSS, "draws": DRAWS, "execution": CPU}
CURVED = {**SETTINGS, "curvature": KFAC(draws=DRAWS, execution=CPU)}
OTHERS = Blobs(n=2, first=700, size=4)
PARTS = np.random.default_rng(0).normal(size=(3, 4, 20)) * np.array([1.0, 3.0, 0.2])[:, None, None]
"""Scores of three groups of layers."""


@pytest.fixture(scope="module")
def get():
    return InMemory()


@pytest.fixture(scope="module")
def model():
    """A perceptron with a record of its training."""
    return trained(data=TRAIN, model=worlds.perceptron, flips=False, recipe=Recipe(steps=3, batch_size=3))


def scored(method, get, record: Any = RECORD):
    return method.score(record, TRAIN, QUERIES, get).values


@pytest.mark.parametrize(
    "method",
    [
        KFACInfluence(**CURVED),
        KFACInfluence(**{**CURVED, "curvature": EKFAC(draws=DRAWS, execution=CPU)}, balance=Balance(side="both")),
        KFACInfluence(**{**CURVED, "draws": Uniform([1, 2], seed=5, bins=2)}),
        KFACInfluence(**{**CURVED, "draws": Uniform(2, seed=5, replicates=2)}),
        GradientSimilarity(**SETTINGS, projection=Identity(), cosine=False),
        GradientSimilarity(**SETTINGS, projection=Identity(), cosine=True),
    ],
    ids=["kfac", "balanced ekfac", "draws and bins", "replicates", "dot", "cos"],
)
def test_groups_add_up_to_all_layers(method, get):
    """Claim: scores over the layers of a partition add up to those of all layers, at every point of their axes."""
    parts = [replace(method, layers=OnlyLayers([name])) for name in gradient_shapes(RECORD)]
    whole = scored(method, get)
    np.testing.assert_allclose(sum(scored(part, get) for part in parts), whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max())
    assert np.array_equal(scored(replace(method, layers=OnlyLayers(list(gradient_shapes(RECORD)))), get), whole)


@pytest.mark.parametrize("kind", [TracIn, ReTrac])
def test_groups_of_trajectories_add_up(kind, model, get):
    """Claim: the same for estimators that replay training, whose norms in ReTrac are those of whole gradients; and their passes."""
    method = kind(measurement=LOSS, draws=Uniform(2, seed=5), checkpoints=[2, 3], execution=CPU)
    whole = scored(method, get, model)
    parts = sum(scored(replace(method, layers=OnlyLayers([name])), get, model) for name in ("first", "second"))
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6 * np.abs(whole).max())
    node = replace(method, layers=LayerWeights("layer", top=2)).scores(model, TRAIN, QUERIES)
    assert isinstance(node, LayerWeightScores)
    planned = method.scores(model, TRAIN, QUERIES).cost().passes  # before training, when parts are not known
    assert sum(member.cost().passes for member in node.weights.members) == pytest.approx(planned)


def literal(parts, top, decay):
    """The objective at weights w = softmax(a), query by query."""

    def objective(a):
        w = np.exp(a) / np.exp(a).sum()
        total = 0.0
        for q in range(parts.shape[1]):
            scores = np.zeros(parts.shape[2])
            for g in range(len(parts)):
                scores += w[g] * parts[g, q]
            total += np.sort(scores)[-top:].mean() / np.sqrt((scores**2).sum())
        return -total / parts.shape[1] + decay * (w**2).sum()

    return objective


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_weights_minimize_the_objective(decay):
    """Claim: no weights near the learned ones, and none of 300 others, have a smaller objective; they are ≥ 0, with mean 1."""
    w, objective, random = learned(PARTS, 3, decay), literal(PARTS, 3, decay), np.random.default_rng(1)
    assert (w >= 0).all()
    assert w.mean() == pytest.approx(1)
    a = np.log(np.maximum(w, 1e-300))
    least = objective(a)
    for scale in (1e-3, 0.1, 3.0):
        assert all(objective(a + scale * random.normal(size=3)) > least - 1e-6 for _ in range(100))
    assert least < objective(np.zeros(3)) - 1e-3
    assert np.array_equal(learned(PARTS, 3, decay), w)


def test_weights_do_not_depend_on_the_length_of_scores_or_on_their_order():
    """Claim: scaling the scores of a query, or exchanging training images, changes no weight; groups that are equal weigh alike."""
    w, random = learned(PARTS, 3, 0.1), np.random.default_rng(2)
    scaled = PARTS * np.array([1.0, 10.0, 0.1, 1e3])[None, :, None]
    np.testing.assert_allclose(learned(scaled, 3, 0.1), w, atol=1e-3)
    np.testing.assert_allclose(learned(PARTS[:, :, random.permutation(20)], 3, 0.1), w, atol=1e-3)
    np.testing.assert_allclose(learned(PARTS[[1, 1, 1]], 3, 0.0), 1)
    assert learned(np.zeros((2, 1, 4)), 1, 0.0).tolist() == [1, 1]
    large = PARTS * np.array([1.0, 1.0, 1e4])[:, None, None]  # one group drowns the others at equal weights
    assert literal(large, 3, 0.0)(np.log(learned(large, 3, 0.0) + 1e-300)) < literal(PARTS, 3, 0.0)(np.zeros(3)) + 1e-6
    with pytest.raises(FloatingPointError, match="not finite"):
        learned(np.full((2, 1, 4), np.nan), 1, 0.0)


def test_equal_weights_are_the_estimator_and_learned_ones_weigh_the_parts(get):
    """Claim: scores are Σ w τ_g at each damping; a large decay makes all weights 1 and gives back the estimator."""
    method = KFACInfluence(**CURVED)
    plain = scored(method, get)
    equal = replace(method, layers=LayerWeights("layer", top=2, decay=1e6))
    np.testing.assert_allclose(
        scored(equal, get), plain, rtol=1e-4, atol=1e-5 * np.abs(plain).max(axis=(2, 3), keepdims=True).min()
    )
    node = replace(method, layers=LayerWeights(["first", "second"], top=2, decay=0.01)).scores(RECORD, TRAIN, QUERIES)
    assert isinstance(node, LayerWeightScores)
    weights, found = get(node.weights).values, get(node)
    assert weights.shape == (*plain.shape[:2], 2)
    assert len(np.unique(weights.round(3))) > 2  # each damping has weights of its own
    parts = [scored(replace(method, layers=OnlyLayers([name])), get) for name in ("first", "second")]
    expected = sum(weights[..., g, None, None] * part for g, part in enumerate(parts))
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())
    assert found.axes == get(method.scores(RECORD, TRAIN, QUERIES)).axes


def test_replicates_have_the_weights_of_all_draws(get):
    """Claim: cross scores get the weights of their mean, and average to the weighted scores."""
    method = KFACInfluence(**{**CURVED, "draws": Uniform(2, seed=5, replicates=2)}, layers=LayerWeights("layer", top=2))
    found = get(method.scores(RECORD, TRAIN, QUERIES))
    assert found.cross is not None
    np.testing.assert_allclose(
        np.asarray(found.cross).mean((-4, -3)), found.values, rtol=1e-3, atol=1e-5 * np.abs(found.values).max()
    )


def test_all_groups_share_the_passes(tmp_path, monkeypatch):
    """Claim: gradients of an image are computed once for all groups and kinds of queries, in memory and by a store."""
    method = KFACInfluence(**CURVED)
    for memory in (InMemory(), Store(tmp_path)):
        memory(CURVED["curvature"].basis(RECORD, TRAIN))
        counts = []
        for layers in (AllLayers(), LayerWeights("layer", top=2)):
            inputs: list[int] = []
            capture = PerExampleGradients.capture

            def counted(self, measure, x0, *rest, inputs=inputs, capture=capture):
                inputs.append(len(x0))
                return capture(self, measure, x0, *rest)

            with monkeypatch.context() as patch:
                patch.setattr(PerExampleGradients, "capture", counted)
                memory.many([replace(method, layers=layers).scores(RECORD, TRAIN, kind) for kind in (QUERIES, OTHERS)])
            counts.append(sum(inputs))
        assert counts[0] == counts[1] > 0
    nodes = [
        replace(method, layers=layers).scores(RECORD, TRAIN, QUERIES) for layers in (AllLayers(), LayerWeights("layer", top=2))
    ]
    assert nodes[0].passes(InMemory()) == nodes[1].passes(InMemory())


def test_resumed_and_relearned_from_stored_parts(tmp_path, monkeypatch):
    """Claim: after a kill, scores are the same to the bit; another top takes no pass, because the parts are stored."""
    method, store = KFACInfluence(**CURVED, layers=LayerWeights("layer", top=2)), Store(tmp_path / "killed")
    node = method.scores(RECORD, TRAIN, QUERIES)
    assert isinstance(node, LayerWeightScores)
    store(node.weights.members[0])
    expected = scored(method, Store(tmp_path / "whole"))
    assert np.array_equal(scored(method, Store(tmp_path / "killed")), expected)
    monkeypatch.delattr(PerExampleGradients, "capture")
    assert not np.array_equal(scored(replace(method, layers=LayerWeights("layer", top=1)), Store(tmp_path / "killed")), expected)


NAMES = [
    "conv_in",
    "down_blocks.0.conv",
    "down_blocks.0.norm",
    "down_blocks.1.conv",
    "mid_block.conv",
    "time.linear_1",
    "time.linear_2",
]


def test_groups_partition_the_layers():
    """Claim: every layer is in one group: of its block, on its own, or of the first pattern that matches."""
    blocks = LayerWeights().groups_of(NAMES)
    assert list(blocks) == ["conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "time"]
    assert LayerWeights().groups_of([f"module.{name}" for name in NAMES]).keys() == {f"module.{group}" for group in blocks}
    for groups in ("block", "layer", ["down", "conv", ".*"]):
        found = LayerWeights(groups).groups_of(NAMES)
        assert sorted(name for names in found.values() for name in names) == sorted(NAMES)
    assert LayerWeights(["down", "conv", ".*"]).groups_of(NAMES)["conv"] == ["conv_in", "mid_block.conv"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": "blocks"}, r"LayerWeights\.groups=blocks: choose block, layer, or a list"),
        ({"groups": []}, r"groups=\[\]: must be a list of at least one value"),
        ({"groups": ["("]}, r"groups\[0\]=\(: is not a regular expression"),
        ({"top": 0}, r"top=0: must be a whole number"),
        ({"decay": -1}, r"decay=-1: must be a number, at least 0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, message):
    """Claim: wrong settings are refused when they are made."""
    with pytest.raises(FieldError, match=message):
        LayerWeights(**settings)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (KFACInfluence(**CURVED, layers=LayerWeights(top=6)), r"top=6: there are 6 training images"),
        (KFACInfluence(**CURVED, layers=LayerWeights([".*"], top=2)), "all 2 layers are in one group"),
        (KFACInfluence(**CURVED, layers=LayerWeights([".*", "x"], top=2)), "no layer belongs to 'x' first: first, second"),
        (KFACInfluence(**CURVED, layers=LayerWeights(["first"], top=2)), "the layer second matches none of them"),
        (KFACInfluence(**CURVED, layers=OnlyLayers(["third"])), "third is none of the 2 layers that scores cover: first, second"),
        (KFACInfluence(**CURVED, layers=None), "layers=None: give AllLayers"),  # pyright: ignore[reportArgumentType]
        (KFACInfluence(**{**CURVED, "curvature": ExactGGN(draws=DRAWS)}, layers=LayerWeights()), "choose K-FAC or EK-FAC"),
        (
            KFACInfluence(**{**CURVED, "draws": Uniform(2, bins=2)}, layers=LayerWeights("layer", top=2)),
            r"bins=2: learned weights of layers are for all timesteps together",
        ),
        (GradientSimilarity(**SETTINGS, projection=SJLT(8), cosine=False, layers=LayerWeights()), "choose no projection"),
    ],
)
def test_what_has_no_parts_is_refused(method, message):
    """Claim: weights that cannot be learned are refused before anything is computed, and the message says how to fix it."""
    with pytest.raises(FieldError, match=message):
        method.scores(RECORD, TRAIN, QUERIES)
    with pytest.raises(FieldError, match="must be a list of at least one name"):
        OnlyLayers("first")


def test_what_is_not_made_of_scores_is_refused():
    """Claim: self-influence, which takes no weights, says so."""
    with pytest.raises(FieldError, match="self-influence is of all layers with weight 1: choose all"):
        self_influence(KFACInfluence(**CURVED, layers=LayerWeights()), RECORD, TRAIN)
