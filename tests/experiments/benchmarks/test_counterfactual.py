"""Counterfactuals: which images are removed, the effect on a query, and its interval."""

import functools
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from attribution.diffusion import denoiser
from attribution.diffusion.samplers import DDIMSampler
from attribution.estimators.clip import CLIP
from attribution.estimators.embedding import EmbeddingSimilarity, Pixels, Random
from attribution.images import Images
from attribution.images.draws import Even
from attribution.measurements import Loss
from attribution.models.trained import with_parameters
from attribution.nodes import InMemory
from attribution.retraining.modes import Together
from attribution.training.checkpoints import EverySteps
from attribution.training.fit import fit
from attribution.training.recipe import Hardware, Recipe
from attribution.training.record import TrainingRecord
from experiments import figures
from experiments.benchmarks.regenerated import Regenerated
from experiments.benchmarks.removals import Ranking, Removals, random_orders, removed_count
from experiments.metrics import counterfactual as metrics
from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.metrics.ranking import top_k
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained
from experiments.models.samples import Samples, _seed
from experiments.models.trained import TrainedModel
from tests.attribution.estimators.test_embedding import folder as clip  # noqa: F401
from tests.attribution.estimators.test_exact import LinearWorld
from tests.attribution.retraining.test_together import Small
from tests.experiments.figures.drawn import overlaps, texts
from tests.experiments.tasks.test_cli import FINAL, rows, run
from tests.worlds import OBJECTIVE, PROCESS, Blobs

RECIPE = Recipe(steps=6, batch_size=5, lr_schedule="cosine", warmup=0.2, clip=0.5, precision="64-true")
ADAMW: Any = functools.partial(torch.optim.AdamW, lr=1e-2)
LOSS, DRAWS = Loss(PROCESS), Even(n=5)
RAW, CHANCE = EmbeddingSimilarity(embedding=Pixels(), cosine=True), Random()
RECORD = TrainedModel(
    model=Small, objective=OBJECTIVE, data=Blobs(), optimizer=ADAMW, recipe=RECIPE, checkpoints=EverySteps(6), seed=3, flips=False,
    hardware=Hardware(accelerator="cpu"),
)  # fmt: skip
HELD_OUT = Blobs(n=3, first=900)
GENERATED = Samples(trained=RECORD, sampler=DDIMSampler(steps=4), shape=(1, 8, 8), n=2, seed=1)


def removals(*rankings: tuple[Any, Any], **changes: Any) -> Removals:
    """Two fractions (2 and 6 of 24 images), two random removals, two seeds."""
    pairs = rankings or ((HELD_OUT, RAW), (HELD_OUT, CHANCE), (GENERATED, RAW))
    settings: dict[str, Any] = {
        "trained": RECORD,
        "rankings": [Ranking(queries, how, how.scores(RECORD, RECORD.data, queries)) for queries, how in pairs],
        "fractions": [0.1, 0.25],
        "random": 2,
        "random_seed": 0,
        "seeds": [11, 12],
        "steps": 4,
        "measurement": LOSS,
        "draws": DRAWS,
        "mode": Together(group=40),
    }
    return Removals(**{**settings, **changes})


@pytest.fixture(scope="module")
def get():
    return InMemory()


def test_effects_are_those_of_each_query_s_own_removals():
    """Claim: Δ is the measurement without a set minus that with all images, of one query and seed; others' sets are not its own."""
    random = np.random.default_rng(0)
    measured, sets = random.normal(size=(2, 3, 6)), np.array([[1, 4], [5, 5], [2, 0]])
    found = metrics.effect(metrics.changes(measured), sets)
    for q, r, k in itertools.product(range(3), range(2), range(2)):
        assert found[q, r, k] == measured[k, q, sets[q, r]] - measured[k, q, 0]
    assert metrics.of_others(np.array([4, 7, 9])).tolist() == [[7, 9], [4, 9], [4, 7]]


def ends(statistic: Statistic) -> list[float]:
    estimate = statistic.estimate()
    return [estimate.value, estimate.low, estimate.high]


def test_a_resample_draws_queries_removals_and_seeds():
    """Claim: the interval is from means over resampled queries, over random removals and over seeds, each drawn by itself."""
    effect = np.random.default_rng(1).normal(size=(4, 3, 2))
    bootstrap = Bootstrap(40, seed=5)
    variances = []
    for place, (axis, n) in enumerate(zip(metrics.AXES, (4, 3, 2), strict=True)):
        drawn = [np.repeat(np.arange(n), times.astype(int)) for times in bootstrap.counts(axis, n)]
        variances.append(np.var([effect.take(indices, place).mean() for indices in drawn]) * n / (n - 1))
    degrees = sum(variances) ** 2 / sum(v**2 / d for v, d in zip(variances, (3, 2, 1), strict=True))
    width = stats.t.ppf(0.975, degrees) * sum(variances) ** 0.5
    result = bootstrap.mean(effect, metrics.AXES)
    np.testing.assert_allclose(ends(result), [effect.mean(), effect.mean() - width, effect.mean() + width], rtol=1e-12)
    assert result.estimate().interval == "95 % confidence, over queries, removals and seeds"
    one = bootstrap.mean(effect[:, :1], metrics.AXES)  # an estimator's removal, the same against every random one
    repeated = bootstrap.mean(np.repeat(effect[:, :1], 3, 1), metrics.AXES)
    np.testing.assert_allclose(ends(one), ends(repeated), rtol=1e-12)
    np.testing.assert_allclose(ends(one - result), ends(bootstrap.mean(effect[:, :1] - effect, metrics.AXES)), rtol=1e-12)
    assert np.isnan(bootstrap.mean(effect[:1, :1, :1], metrics.AXES).estimate().low)


def test_intervals_cover():
    """Claim: with queries and seeds that differ, the 95 % interval holds the truth about as often; of queries alone, much less."""
    random, hits, narrow = np.random.default_rng(2), 0, 0
    for trial in range(100):
        of_query, of_seed = random.normal(size=(20, 1, 1)), 2 * random.normal(size=(1, 1, 10))
        effect = of_query + of_seed + random.normal(size=(20, 1, 10))
        both, queries = (Bootstrap(300, trial).mean(e, metrics.AXES).estimate() for e in (effect, effect.mean(2, keepdims=True)))
        hits += both.low <= 0 <= both.high
        narrow += queries.low <= 0 <= queries.high
    assert hits >= 82
    assert narrow < 70


def test_distances_of_images_and_embeddings():
    """Claim: ℓ2 of what is shown, pixels from 0 to 1; 1 - cosine."""
    first, second = np.full((1, 3, 2, 2), -1.0), np.full((1, 3, 2, 2), 1.0)
    second[0, 0, 0, 0] = 7.0  # shown as white
    assert metrics.pixel_distance(first, second).tolist() == [pytest.approx(np.sqrt(12))]
    assert metrics.cosine_distance(np.array([1.0, 0.0]), np.array([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])).tolist() == [0, 1, 2]


def test_random_removals_are_nested_and_stay():
    """Claim: more random removals leave the first as they are, and another seed gives others; fractions of nobody are refused."""
    assert np.array_equal(random_orders(30, 2, seed=0), random_orders(30, 5, seed=0)[:2])
    assert not np.array_equal(random_orders(30, 2, seed=0), random_orders(30, 2, seed=1))
    assert (np.sort(random_orders(30, 2, seed=0)) == np.arange(30)).all()
    assert removed_count(0.1, 24) == 2
    for fraction in (0.02, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"benchmark.fractions has"):
            removed_count(fraction, 24)


def test_exact_influence_finds_whom_to_remove():
    """Claim (sign): a linear denoiser retrained exactly without the top 3 of 30 by exact influence is worse off than without any of
    20 random triples on average, and without the most negative better."""
    world = LinearWorld(0.3, n=30)
    tau = world.tau.numpy()
    sets = np.concatenate([top_k(tau, 3), top_k(-tau, 3), random_orders(30, 20, 0)[:, :3]])
    weights = np.ones((1 + len(sets), 30))
    np.put_along_axis(weights[1:], sets, 0.0, axis=1)
    measured = torch.stack([world.costs(torch.from_numpy(w)) for w in weights], 1).numpy()[None]
    top, bottom = np.arange(1, 4)[:, None], np.arange(4, 7)[:, None]
    chance = np.broadcast_to(np.arange(7, 27), (3, 20))
    removed_top, removed_bottom, removed_random = (
        metrics.effect(metrics.changes(measured), s)[:, :, 0] for s in (top, bottom, chance)
    )
    assert (removed_top[:, 0] > removed_random.max(1)).all()
    assert (removed_bottom[:, 0] < removed_random.min(1)).all()


def test_sets_are_the_top_of_the_scores(get):
    """Claim: each query's sets are its largest scores, the smaller within the larger; equal sets are trained without once."""
    node = removals()
    sets = node.sets(get)
    for ranking, (numbers,) in zip(node.rankings, sets.top, strict=True):
        order = np.argsort(-get(ranking.scores).values, axis=1, kind="stable")
        for f, k in enumerate((2, 6)):
            for q, number in enumerate(numbers[f]):
                assert sets.rows[number].tolist() == sorted(order[q, :k])
    assert len(sets.rows[0]) == 0
    names = {rows.tobytes() for rows in sets.rows}
    assert len(names) == len(sets.rows) == 1 + 2 * (2 + 3 + 3 + 2)
    twice = removals((HELD_OUT, RAW), (HELD_OUT, CHANCE), (GENERATED, RAW), (HELD_OUT, RAW))
    assert len(twice.sets(get).rows) == len(sets.rows)
    assert np.array_equal(twice.sets(get).top[3], twice.sets(get).top[0])


def by_hand(folder, seed: int, removed: np.ndarray, get: InMemory) -> torch.nn.Module:
    """The network that Lightning trains on the other images."""
    recipe = Recipe(**{**RECIPE.__dict__, "steps": 4})
    images = get(RECORD.data).take(np.setdiff1d(np.arange(24), removed))
    fit(folder, images, Small, LOSS, ADAMW, recipe, EverySteps(4), seed, False, Hardware(accelerator="cpu"))
    return with_parameters(Small(), TrainingRecord(folder).final_parameters()).eval()


@pytest.mark.slow
def test_what_is_measured_is_what_models_trained_by_hand_measure(get, tmp_path):
    """Claim: Δ is the difference of measurements under models that ``fit`` trains without and with the images; so are samples."""
    node = removals()
    sets, outcomes = node.sets(get), get(node)
    number = int(sets.top[1][0][1, 2])  # of the random estimator, the larger fraction, the third query
    assert np.flatnonzero(outcomes.removed[number]).tolist() == sets.rows[number].tolist()
    asked = get(HELD_OUT)
    x, t, noise, _ = LOSS.inputs(asked.x0().double(), DRAWS.draw("measurement", asked.ids(), PROCESS.T))
    costs, networks = [], []
    for name, removed in (("without", sets.rows[number]), ("all", sets.rows[0])):
        (tmp_path / name).mkdir()
        networks.append(by_hand(tmp_path / name, 12, removed, get))
        costs.append(LOSS(denoiser(networks[-1]), x, t, noise).view(3, -1).mean(1)[2].item())
    delta = metrics.changes(outcomes.measured)[1, node.place(HELD_OUT)][2, number]
    assert delta == pytest.approx(costs[0] - costs[1], rel=1e-6)
    assert abs(delta) > 1e-5

    anew = Regenerated.of(node, GENERATED, sets, get)
    seeds = torch.tensor([_seed(1, i) for i in range(2)])
    expected = GENERATED.sampler.sample(networks[1].float(), PROCESS, (1, 8, 8), seeds)
    np.testing.assert_allclose(anew.regenerated[1, list(anew.indices).index(0)], expected.numpy(), atol=1e-4)
    distances = anew.distances(anew.original, metrics.pixel_distance)
    own, intact = int(sets.top[2][0][1, 1]), anew.distances(anew.intact, metrics.pixel_distance)
    pair = [np.clip(anew.regenerated[1, list(anew.indices).index(m), 1], -1, 1) / 2 for m in (own, 0)]
    assert intact[1, 1, own] == pytest.approx(np.linalg.norm(pair[0] - pair[1]), rel=1e-5)
    assert (intact[:, :, 0] == 0).all()
    shown = [np.clip(image, -1, 1) / 2 for image in (expected.numpy()[1], get(GENERATED).pixels[1])]
    assert distances[1, 1, 0] == pytest.approx(np.linalg.norm(shown[0] - shown[1]), abs=1e-3)
    assert np.isnan(distances[:, :, number]).all()  # what the other kind's queries have removed is of no concern


def measured_models(node: Removals, get: InMemory) -> list[Retrained]:
    return [part.model for part in node.parts(get) if isinstance(part, Measured) and isinstance(part.model, Retrained)]


def test_every_model_is_a_node_that_others_find(get):
    """Claim: what was retrained is shared: an estimator more trains only without the sets that are new, all in even blocks."""
    node = removals((HELD_OUT, RAW), mode=Together(group=4))
    models = {model.fingerprint: model for model in measured_models(node, get)}
    assert len(models) == 2 * (1 + 2 * (2 + 3))
    assert max(Counter(model.block for model in models.values()).values()) <= 4
    assert set(models) < {model.fingerprint for model in measured_models(removals(), get)}


def test_embeddings_of_regenerated_images(clip):  # noqa: F811
    """Claim: the embedding distance is 1 - cosine of CLIP's vectors of the original and of the image made anew."""
    random = np.random.default_rng(3)
    original, anew = random.uniform(-1, 1, (2, 1, 8, 8)), random.uniform(-1, 1, (2, 3, 2, 1, 8, 8))
    how = CLIP(str(clip))
    vectors = Regenerated(original, anew, [0, 2, 5], 6).embedded(how, torch.device("cpu"))
    found = vectors.distances(vectors.original, metrics.cosine_distance)

    def vector(pixels: np.ndarray) -> np.ndarray:
        return how.embed(Images(pixels[None], np.zeros(1, np.int64), np.zeros(1, np.int64)), torch.device("cpu"))[0]

    for k, (place, number), q in itertools.product(range(2), enumerate([0, 2, 5]), range(2)):
        a, b = vector(original[q]), vector(anew[k, place, q])
        assert found[k, q, number] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert np.isnan(found[:, :, [1, 3, 4]]).all()


def test_the_figure_shows_every_image_with_its_distance():
    """Claim: a line for each query, a column for each model; nothing overlaps, and what does not fit is said."""
    images = Blobs(n=4).compute(None)  # pyright: ignore[reportArgumentType]
    names = ["nothing removed", "random removal", "balanced_kfac damping=1e-08", "trak"]
    distances = {name: np.arange(4) + 0.25 * i for i, name in enumerate(names)}
    figure = figures.regenerated("Generated anew", images, dict.fromkeys(names, images), distances, range(3))
    assert overlaps(figure) == []
    assert len(figure.axes[0].images) == 3 * 5
    assert {f"{i + 0.25 * column:.2f}" for i in range(3) for column in range(4)} <= set(texts(figure))
    many = {f"estimator {i}": images for i in range(30)}
    figure = figures.regenerated("Generated anew", images, many, {name: np.zeros(4) for name in many}, range(4))
    assert figure.get_figwidth() <= 16
    assert overlaps(figure) == []
    assert any("more columns are left out" in text for text in texts(figure))


BENCHMARK = [
    "benchmark=counterfactual",
    "estimator=raw_cos",
    "benchmark.compare=[random]",
    "benchmark.queries.validation.n=2",
    "benchmark.queries.generated.n=2",
    "benchmark.fractions=[0.05,0.2]",
    "benchmark.steps=4",
    "benchmark.seeds=1",
    "benchmark.random=2",
    "benchmark.draws.n=4",
    "diffusion.sampler.steps=3",
]


@pytest.mark.slow
def test_counterfactuals_on_the_command_line(tmp_path, clip):  # noqa: F811
    """Claim: every estimator at every fraction with an interval, beside its levels; again, nothing is computed."""
    embedding = "benchmark.embedding={_target_:attribution.estimators.clip.CLIP,weights:" + str(clip) + "}"
    settings = [*FINAL, *BENCHMARK, embedding]
    out, again = tmp_path / "out", tmp_path / "again"
    assert "retraining without removed images" in run(tmp_path, *settings, "task=plan")
    run(tmp_path, *settings, f"hydra.run.dir={out}")
    reported = [row for row in rows(out) if row["benchmark"].startswith("counterfactual")]
    found = [row for row in reported if not row["metric"].endswith("_median")]
    expected = {
        "raw_cos", "random", "random removal", "nothing removed", "raw_cos, for another query", "random, for another query",
        "raw_cos − random", "raw_cos − random removal", "random − random removal",
    }  # fmt: skip
    tables = {(row["benchmark"], row["queries"], row["metric"], row["removed"]) for row in found}
    images = ("counterfactual images", "counterfactual images of the same seed")
    assert tables == {
        (table, kind, f"{metric}@{percent}%", removed)
        for table, kind, metric in [
            *(("counterfactual", kind, "delta_measurement") for kind in ("validation", "generated")),
            *((table, "generated", metric) for table in images for metric in ("image_l2", "embedding_distance")),
        ]
        for percent, removed in ((5, 2), (20, 8))
    }
    for place in tables:
        of_place = [row for row in found if (row["benchmark"], row["queries"], row["metric"], row["removed"]) == place]
        by_name = {row["estimator"]: row for row in of_place}
        assert by_name.keys() == expected
        assert len(of_place) == len(expected)
        for name, row in by_name.items():
            assert row["low"] <= row["high"]
            assert ("−" in name) == (row.get("random") is None)
        difference = by_name["raw_cos"]["value"] - by_name["random removal"]["value"]
        assert by_name["raw_cos − random removal"]["value"] == pytest.approx(difference)
        assert by_name["raw_cos"]["random"] == pytest.approx(by_name["random removal"]["value"])
        assert (abs(by_name["nothing removed"]["value"]) < 1e-6) == (place[0] != "counterfactual images")
    medians = {
        (row["benchmark"], row["queries"], row["metric"].removesuffix("_median"), row["removed"], row["estimator"]): row["value"]
        for row in reported
        if row["metric"].endswith("_median")
    }
    means = {(r["benchmark"], r["queries"], r["metric"], r["removed"], r["estimator"]): r["value"] for r in found}
    levels = ("raw_cos", "random", "random removal", "nothing removed")
    assert medians.keys() == {(*place, name) for place in tables for name in levels}
    # Of two queries, with one seed, median and mean are the same.
    assert all(value == pytest.approx(means[place], abs=1e-9) for place, value in medians.items())
    for name in ("counterfactual", "regenerated", "regenerated_generated", "boxes_generated"):
        assert (out / f"{name}.png").stat().st_size > 5000
    nodes = sorted((tmp_path / "store").glob("*/*/node.json"))
    before = {path: path.stat().st_mtime_ns for path in nodes}
    run(tmp_path, *settings, f"hydra.run.dir={again}")
    assert before == {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "store").glob("*/*/node.json"))}
    assert [row["value"] for row in rows(again)] == [row["value"] for row in rows(out)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["benchmark.fractions=[0.001]"], "benchmark.fractions has 0.001"),
        (["benchmark.fractions=[0.5,1.0]"], "benchmark.fractions[1]=1.0"),
        (["benchmark.fractions=[]"], "benchmark.fractions=[]"),
        (["benchmark.fractions=[half]"], "benchmark.fractions[0]=half"),
        (["benchmark.fractions=0.1"], "benchmark.fractions=0.1"),
        (["benchmark.random=0"], "benchmark.random=0"),
        (["benchmark.seeds=0"], "benchmark.seeds=0"),
        (["benchmark.steps=1.5"], "benchmark.steps=1.5"),
        (["benchmark.shown=0"], "benchmark.shown=0"),
        (["~benchmark.queries.validation", "~benchmark.queries.generated"], "benchmark.queries"),
        (["model.dropout=0.1", "mode@benchmark.mode=together"], "train each alone"),
        (["measurement=trajectory", "diffusion.sampler.eta=1"], "use generated queries"),
        (["benchmark.embedding={_target_:attribution.estimators.clip.CLIP,weights:nowhere}"], "weights=nowhere"),
    ],
)
def test_errors_come_before_training(tmp_path, monkeypatch, capfd, arguments, said):
    """Claim: a setting that would fail at the end is refused at once, by its name on the command line."""
    if "nowhere" in said:
        pytest.importorskip("transformers")
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *FINAL, *BENCHMARK, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    assert said in f"{ended.value.code}{capfd.readouterr().err}"
    assert not (tmp_path / "store").exists()
