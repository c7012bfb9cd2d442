"""Estimators from retraining: the regression, its sign and scale, and that it shares nothing with a benchmark's truth."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hydra.utils import instantiate

from attribution.diffusion.samplers import DDPMSampler
from attribution.images.draws import Even, Uniform
from attribution.measurements import Loss, TrajectoryLikelihood
from attribution.nodes import InMemory
from attribution.retraining.modes import Alone
from attribution.retraining.selection import Selection
from experiments.benchmarks.base import Benchmark
from experiments.estimators.datamodels import GRID, Datamodels, fit, removed
from experiments.metrics import lds as lds_metrics
from experiments.models.measured import Measured, MeasuredValues
from experiments.models.retrained import Retrained
from experiments.models.subsets import RandomSubsets, Subsets
from experiments.store.plan import plan
from experiments.store.store import Store
from experiments.tasks.composition import experiment_of
from tests.experiments.tasks.test_cli import FINAL, rows, run
from tests.experiments.tasks.test_configs import composed
from tests.worlds import PROCESS, Blobs, trained

RECORD = trained()
QUERIES = Blobs(n=3, first=900)
TRAIN = InMemory()(RECORD.data)
N = len(TRAIN)


@dataclass(frozen=True, kw_only=True)
class Coins(Subsets):
    """Each example is kept or not by a coin of its own: unlike halves, subsets of all sizes."""

    count: int

    def masks(self, train):
        return np.random.default_rng(0).random((self.count, len(train))) < 0.5


def datamodels(**changes: Any) -> Datamodels:
    settings: dict[str, Any] = {
        "measurement": Loss(PROCESS),
        "measurement_draws": Even(4),
        "subsets": RandomSubsets(count=8, seed=5),
        "mode": Alone(group=16),
    }
    return Datamodels(**{**settings, **changes})


class Linear(InMemory):
    """A world in which nothing is trained: each query costs a constant, ``influence [Q, N]`` of all that is left out, and noise."""

    def __init__(self, noise: float = 0.0):
        super().__init__()
        random = np.random.default_rng(1)
        self.influence, self.constant = random.normal(size=(3, N)), random.normal(size=3)
        self.noise, self.seeds = noise, set[int]()

    def cost(self, selection: Selection, seed: int = 0) -> np.ndarray:
        noise = self.noise * np.random.default_rng([seed, *selection.rows]).normal(size=3)
        return self.constant + self.influence @ removed([selection], N)[0] + noise

    def many(self, nodes: Any, title: str = "") -> list[Any]:
        if not isinstance(nodes[0], Measured):
            return super().many(nodes, title)
        models = [node.model for node in nodes]
        self.seeds |= {model.seed for model in models}
        return [MeasuredValues(self.cost(model.selection, model.seed)) for model in models]


def scored(estimator: Datamodels, world: Linear):
    return estimator.scores(RECORD, RECORD.data, QUERIES).compute(world)


@pytest.mark.parametrize(("M", "N"), [(7, 12), (30, 6)])
def test_ridge_regression_by_the_normal_equations(M, N):
    """Claim: for every damping, τ/N are the coefficients that minimize the mean square error + λ‖·‖², constant not penalized."""
    random = np.random.default_rng(0)
    taken, measured = random.integers(0, 2, (M, N)) * 0.7, random.normal(size=(4, M))
    dampings = (1e-4, 0.03, 1.0, 50.0)
    for scores, damping in zip(fit(measured, taken, dampings), dampings, strict=True):
        for query, y in zip(scores, measured, strict=True):
            X = np.column_stack([np.ones(M), taken])
            penalty = damping * np.diag([0.0] + [1.0] * N)
            solution = np.linalg.solve(X.T @ X / M + penalty, X.T @ y / M)
            np.testing.assert_allclose(query / N, solution[1:], rtol=2e-6, atol=1e-8)


def test_the_limits_of_damping():
    """Claim: a vanishing damping leads to that of 0, the least norm; a large one to covariances over λ."""
    random = np.random.default_rng(0)
    taken, measured = random.integers(0, 2, (7, 12)).astype(float), random.normal(size=(4, 7))
    none, small, large = fit(measured, taken, (0.0, 1e-9, 1e9)).astype(float)
    R, Y = taken - taken.mean(0), measured - measured.mean(1, keepdims=True)
    np.testing.assert_allclose(none, 12 * Y @ np.linalg.pinv(R).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(small, none, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(large * 1e9, 12 * Y @ R / 7, rtol=1e-5, atol=1e-6)


def test_what_subsets_take_away_is_in_their_selections():
    """Claim: of selections, left out or weighed down, the same weights are missing as ``Subsets.removed`` says."""
    for subsets in (RandomSubsets(count=4), RandomSubsets(count=4, weight=0.9)):
        np.testing.assert_allclose(removed(subsets.selections(TRAIN), N), subsets.removed(TRAIN), atol=1e-15)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_linear_world_is_recovered_with_its_sign_and_scale(weight):
    """Claim: costs linear in what is left out, more subsets than examples, λ = 0: (1/N) Σ τ is what a removal does."""
    world = Linear()
    scores = scored(datamodels(subsets=Coins(count=60, weight=weight), seeds=2), world).at(damping=0.0).values
    np.testing.assert_allclose(scores / N, world.influence, rtol=1e-5, atol=1e-6)
    whole = Selection(np.arange(N))
    for rows_ in ([4], [0, 7, 20]):
        change = world.cost(Selection.without(rows_, N)) - world.cost(whole)
        np.testing.assert_allclose(scores[:, rows_].sum(1) / N, change, rtol=1e-4)
    assert (np.sign(scores[:, 4]) == np.sign(world.cost(Selection.without([4], N)) - world.cost(whole))).all()


def test_of_halves_all_but_a_constant_is_known():
    """Claim: subsets of one size say nothing about a constant added to all τ of a query; least norm leaves their mean at 0."""
    world = Linear()
    scores = scored(datamodels(subsets=RandomSubsets(count=90)), world).at(damping=0.0).values
    np.testing.assert_allclose(scores.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(scores / N, world.influence - world.influence.mean(1, keepdims=True), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seeds", [1, 3])
def test_least_norm_is_exact_retraining(seeds):
    """Claim: with λ = 0, what LDS predicts of the estimator's own subsets is what they measure, but for a constant of the query."""
    world, subsets = Linear(noise=5.0), RandomSubsets(count=10)
    scores = scored(datamodels(subsets=subsets, seeds=seeds), world)
    used = [RECORD.seed + 1000 + seed for seed in range(seeds)]
    assert sorted(world.seeds) == used
    truth = np.stack([[world.cost(s, seed) for s in subsets.selections(TRAIN)] for seed in used]).mean(0).T
    predicted = lds_metrics.predicted(scores.at(damping=0.0).values, subsets.removed(TRAIN)) / N
    difference = predicted - truth
    np.testing.assert_allclose(difference - difference.mean(1, keepdims=True), 0, atol=1e-5)
    assert lds_metrics.per_query(predicted, truth) == pytest.approx(1)
    ridge = lds_metrics.predicted(scores.at(damping=1e3).values, subsets.removed(TRAIN)) / N
    assert np.ptp(ridge - truth, axis=1).min() > 1


def test_a_list_of_dampings_is_one_result():
    """Claim: the grid is there in any case, the asked ones besides; those asked for are the variants, of one stored node."""
    node = datamodels(damping=[0.3, 10.0]).scores(RECORD, RECORD.data, QUERIES)
    scores = node.compute(Linear())
    assert set(scores.axes["damping"]) == {*GRID, 0.3}
    settings = [chosen for chosen, _ in datamodels(damping=[0.3, 10.0]).variants(scores)]
    assert settings == [{"estimator.damping": 0.3}, {"estimator.damping": 10.0}]
    first, second = (datamodels(damping=damping).scores(RECORD, RECORD.data, QUERIES).fingerprint for damping in (0.0, 1.0))
    assert first == second != node.fingerprint


def test_a_plan_counts_each_model_once(tmp_path):
    """Claim: the models of two pools of queries and of two dampings are trained once; each pool is measured under each."""
    estimator = datamodels(seeds=2, steps=3)
    nodes = [estimator.scores(RECORD, RECORD.data, queries) for queries in (QUERIES, Blobs(n=5, first=500))]
    by_class = {row["class"]: row for row in plan(nodes, Store(tmp_path))}
    assert (by_class["Retrained"]["nodes"], by_class["Retrained"]["passes"]) == (16, 16 * 3 * 10)
    assert (by_class["Measured"]["nodes"], by_class["Measured"]["passes"]) == (32, pytest.approx(16 * (3 + 5) * 4 / 3))
    assert (by_class["DatamodelScores"]["nodes"], by_class["DatamodelScores"]["passes"]) == (2, 0)


def test_as_many_epochs_unless_told():
    """Claim: a model retrained on a share of the images takes this share of the steps, or as many as asked for."""
    selections = [Selection(np.arange(6)), Selection(np.arange(10))]
    steps = [how.truth(RECORD, selections).models()[0].recipe.steps for how in (datamodels(), datamodels(steps=7))]
    assert steps == [RECORD.recipe.steps * 8 / N, 7]


def test_models_of_two_estimators_are_not_mixed_in_blocks():
    """Claim: the models of lists that are asked for together are in blocks of their own list."""
    nodes = [datamodels(subsets=RandomSubsets(count=3, seed=seed)).scores(RECORD, RECORD.data, QUERIES) for seed in (1, 2)]
    keys = [{part.together() for part in node.parts(InMemory()) if isinstance(part, Retrained)} for node in nodes]
    assert [len(key) for key in keys] == [1, 1]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("seed", [0, 42, 1000])
def test_nothing_is_shared_with_the_truth_of_lds(seed):
    """Claim: as shipped, models of either estimator are trained with other seeds than those of benchmark=lds and the explained one;
    datamodels on other subsets; retraining on the benchmark's own, for its steps, with its draws and mode.
    """
    chosen = [f"seed={seed}", "data.n_train=40", "data.n_validation=80", "benchmark=lds"]
    config = composed(*chosen)
    experiment, benchmark = experiment_of(config), instantiate(config.benchmark, _convert_="all")
    assert isinstance(benchmark, Benchmark)
    truth = [node for node in benchmark.nodes(experiment, {}) if isinstance(node, Measured)]
    seeds, subsets, settings = what_defines(truth)
    for name, shared in (("datamodels", set()), ("retraining", subsets)):
        estimator = instantiate(composed(*chosen, f"estimator={name}").estimator, _convert_="all")
        node = estimator.scores(experiment.trained, experiment.train, truth[0].images)
        own = what_defines([part for part in node.parts(InMemory()) if isinstance(part, Measured)])
        assert not {experiment.seed, *seeds} & own[0]
        assert subsets & own[1] == shared
        assert settings == own[2]


def what_defines(nodes: list[Measured]) -> tuple[set, set, set]:
    """Training seeds, subsets, and the other settings of models and measurements."""
    models: list[Any] = [node.model for node in nodes]
    settings = {(model.recipe.steps, model.mode, node.draws) for model, node in zip(models, nodes, strict=True)}
    return {model.seed for model in models}, {model.selection.rows.tobytes() for model in models}, settings


def test_retraining_follows_the_benchmark_or_stands_alone():
    """Claim: settings of benchmark=lds are its own too; beside a benchmark without subsets it has some of its own."""
    follows = ["benchmark=lds", "benchmark.subsets.count=5", "benchmark.steps=9", "mode@benchmark.mode=alone"]
    estimator = instantiate(composed("estimator=retraining", *follows).estimator, _convert_="all")
    assert (estimator.subsets.count, estimator.steps, type(estimator.mode).__name__) == (5, 9, "Alone")
    alone = instantiate(composed("estimator=retraining", "benchmark=targeted", "seed=3").estimator, _convert_="all")
    assert (alone.subsets, alone.steps, alone.damping) == (RandomSubsets(count=64, seed=3), None, 0.0)


ONE_POOL = [
    *FINAL,
    "benchmark=lds",
    "~benchmark.queries.generated",
    "benchmark.queries.validation.n=5",
    "benchmark.subsets.count=4",
    "benchmark.seeds=2",
    "benchmark.steps=6",
    "benchmark.draws.n=2",
    "benchmark.rows=1",
]


@pytest.mark.slow
def test_both_beside_another_estimator_in_the_dry_run(tmp_path):
    """Claim: benchmark.compare takes both; planned are the benchmark's models, as many again for one seed of retraining, and 64."""
    compared = ["estimator=random", "benchmark.compare=[retraining,datamodels]"]
    planned = run(tmp_path, *ONE_POOL, *compared, "task=plan")
    counted = dict(re.findall(r"(retraining|measurements of models|datamodels)\s+│\s+(\d+)", planned))
    models = str(4 * 2 + 4 + 64)
    assert counted == {"retraining": models, "measurements of models": models, "datamodels": "2"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "models"),
    [
        (["estimator=random", "benchmark.compare=[retraining]"], 4 * 2 + 4),
        (["estimator=datamodels", "estimator.subsets.count=5", "benchmark.compare=[]", "estimator.damping=[0,1]"], 4 * 2 + 5),
    ],
)
def test_lds_on_the_command_line(tmp_path, arguments, models):
    """Claim: either has its rows with intervals; its models come beside the benchmark's."""
    run(tmp_path, *ONE_POOL, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    found = {(row["estimator"], (row.get("swept") or {}).get("estimator.damping")): row for row in rows(tmp_path / "out")}
    wanted = [("retraining", None), ("random − retraining", None)] if models == 12 else [("datamodels", 0), ("datamodels", 1)]
    for name in wanted:
        # LDS is at most 100 %, a difference of two at most twice that.
        limit = 200 if "−" in name[0] else 100
        assert -limit <= found[name]["low"] <= found[name]["value"] <= found[name]["high"] <= limit
    assert len(list((tmp_path / "store" / "Retrained").iterdir())) == models


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 0}, r"Datamodels\.seeds=0"),
        ({"seeds": 1.5}, r"Datamodels\.seeds=1\.5"),
        ({"seeds": True}, r"Datamodels\.seeds=True"),
        ({"steps": 0}, r"Datamodels\.steps=0"),
        ({"damping": -1}, r"Datamodels\.damping=-1"),
        ({"measurement_draws": Uniform([2, 4])}, r"Uniform\.n=\[2, 4\]: a measurement takes one"),
    ],
)
def test_bad_settings_are_named(changes, said):
    """Claim: impossible settings are errors that name them, when the estimator is made."""
    with pytest.raises(ValueError, match=said):
        datamodels(**changes)


@dataclass(frozen=True, kw_only=True)
class Alike(Subsets):
    """Three times the same half."""

    def masks(self, train):
        return np.tile(np.arange(len(train)) % 2 == 0, (3, 1))


def test_what_cannot_be_answered_is_refused_before_training():
    """Claim: records that cannot be trained again, other images, equal subsets, what queries do not have: errors at once."""
    other = Blobs(n=5)
    with pytest.raises(ValueError, match="Blobs cannot be trained again"):
        datamodels().scores(other, RECORD.data, QUERIES)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="images that the model was trained on"):
        datamodels().scores(RECORD, other, QUERIES)
    with pytest.raises(ValueError, match=r"Datamodels\.subsets=.*: all 3 leave out the same"):
        datamodels(subsets=Alike()).scores(RECORD, RECORD.data, QUERIES)
    with pytest.raises(ValueError, match="use generated queries"):
        datamodels(measurement=TrajectoryLikelihood(PROCESS, DDPMSampler())).scores(RECORD, RECORD.data, QUERIES)
