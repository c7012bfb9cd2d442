"""benchmark=sparse_timesteps: scores from a few timesteps against scores from all, the time of either, two sources."""

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
from hydra.utils import instantiate
from scipy.stats import spearmanr

from attribution.estimators import ReTrac, TracIn
from attribution.gradients import hooks
from attribution.images import Images
from attribution.images.at_checkpoints import UniformAtCheckpoints
from attribution.images.draws import Even, Fixed, Uniform
from attribution.nodes import InMemory, describe
from experiments.benchmarks import sparse_timesteps as sparse_module
from experiments.benchmarks.sparse_timesteps import ALL, FASTER, SPEARMAN, SparseTimesteps
from experiments.datasets.source import Source, Splits
from experiments.figures.sparse_timesteps import sparse_timesteps
from experiments.queries import Validation
from experiments.report.report import Report
from experiments.report.row import Row
from experiments.speed.queries import query_seconds
from experiments.tasks.composition import experiment_of
from tests.experiments.figures.drawn import overlaps
from tests.experiments.tasks.test_cli import rows, run
from tests.experiments.tasks.test_configs import composed

T = 24
SETTINGS = [
    "estimator=tracin",
    "estimator.checkpoints=[3,6]",
    "estimator.draws.n=2",
    f"diffusion.schedule.T={T}",
    "diffusion.sampler.steps=4",
    "data.n_train=24",
    "data.n_validation=12",
    "trainer.steps=6",
    "trainer.batch_size=8",
    "model.block_out_channels=[8,8]",
    "checkpoints.every=3",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
]
BENCHMARK = SparseTimesteps(queries={"validation": Validation(n=5, seed=0)}, n=(4, 12), fixed=7, k=6, repeats=2)


@dataclass(frozen=True, kw_only=True)
class DarkAndBright(Source):
    """Two sources, one four times as frequent as the other: noise, and noise with a bright square."""

    def read(self):
        return Splits(self._images(20, 0), self._images(15, 1))

    def _images(self, n, seed):
        label = (np.arange(n) % 5 == 0).astype(np.int64)
        pixels = np.random.default_rng(seed).integers(0, 100, (n, 1, 8, 8)).astype(np.uint8)
        pixels[label == 1, :, 2:6, 2:6] += 150
        return Images(pixels, np.arange(n), label)


def evaluated(folder, data=None):
    """The rows of the benchmark for both estimators, with all that they are made of."""
    config = composed(*SETTINGS)
    experiment = experiment_of(config)
    experiment = experiment if data is None else replace(experiment, data=data)
    tracin = instantiate(config.estimator, _convert_="all")
    estimators = {"tracin": tracin, "retrac": ReTrac(**{field.name: getattr(tracin, field.name) for field in fields(tracin)})}
    report, get = Report(folder, "test", 0), InMemory()
    BENCHMARK.evaluate(experiment, estimators, get, report)
    return [row.to_dict() for row in report.rows], experiment, estimators, get


def timesteps(row):
    """The choice of timesteps that a row is about; None for differences."""
    return (row.get("swept") or {}).get("timesteps")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return evaluated(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    return evaluated(tmp_path_factory.mktemp("sources"), DarkAndBright(channels=1, size=8, flips=False))


def scores(world, name, draws):
    _, experiment, estimators, get = world
    queries = BENCHMARK.queries["validation"].node(experiment)
    return replace(estimators[name], draws=draws).score(experiment.trained, experiment.train, queries, get)


@pytest.mark.parametrize("name", ["tracin", "retrac"])
@pytest.mark.slow
def test_agreement_is_spearman_s_mean_over_queries(world, name):
    """Claim: each row is SciPy's Spearman with the estimator at all T even timesteps, a mean over queries."""
    full = scores(world, name, Even(T))
    schemes = {"12 even": Even(12), "4 even": Even(4), "only 7": Fixed([7]), "1 random": UniformAtCheckpoints(1)}
    for scheme, draws in schemes.items():
        (row,) = (r for r in world[0] if (r["estimator"], r["metric"], timesteps(r)) == (name, SPEARMAN, scheme))
        expected = [spearmanr(a, b).statistic for a, b in zip(scores(world, name, draws).values, full.values, strict=True)]
        assert row["value"] == pytest.approx(np.mean(expected))
        assert row["low"] <= row["value"] <= row["high"]
        r = np.array([spearmanr(a, b).statistic for a, b in zip(*full.halves, strict=True)])
        assert row["ceiling"] == pytest.approx(np.mean(2 * r / (1 + r)))


def test_estimators_are_compared_in_pairs(world):
    """Claim: for each choice of timesteps the first estimator minus the other, with an interval that holds it."""
    found = [row for row in world[0] if row["metric"] == SPEARMAN]
    value = {(row["estimator"], timesteps(row)): row["value"] for row in found}
    for scheme in ("12 even", "4 even", "only 7", "1 random"):
        difference = value[f"tracin timesteps={scheme} − retrac timesteps={scheme}", None]
        assert difference == pytest.approx(value["tracin", scheme] - value["retrac", scheme])
    assert len([row for row in found if "difference" in row]) == 4


def test_nothing_but_the_draws_is_replaced(world):
    """Claim: the nodes, all of scores, hold the estimators as they were given, but for their draws."""
    _, experiment, estimators, _ = world
    for node in BENCHMARK.nodes(experiment, estimators):
        described = describe(node.estimator)
        name = "tracin" if isinstance(node.estimator, TracIn) else "retrac"
        assert {**described, "draws": None} == {**describe(estimators[name]), "draws": None}
        assert described != describe(estimators[name])


def test_times_have_quartiles_and_the_ratio_of_passes(world):
    """Claim: a row for each choice but all, whose seconds are positive; its maximum is the ratio of the numbers of passes."""
    found = {timesteps(row): row for row in world[0] if row["metric"] == FASTER and row["estimator"] == "tracin"}
    assert {name: row["maximum"] for name, row in found.items()} == {"12 even": 2, "4 even": 6, "only 7": 24, "1 random": 24}
    for row in found.values():
        assert 0 < row["low"] <= row["value"] <= row["high"]
        assert min(row["seconds"], row["seconds_with_all"]) > 0
        assert row["repeats"] == BENCHMARK.repeats


def test_ratios_are_of_one_round(world, tmp_path, monkeypatch):
    """Claim: the seconds with all timesteps are divided by those of the same round, and the median is of these ratios."""
    rounds = {ALL: [8.0, 90.0, 10.0], "12 even": [4.0, 30.0, 5.0], "4 even": [1.0, 9.0, 5.0]}
    seconds = {**rounds, "only 7": [1.0] * 3, "1 random": [1.0] * 3}
    monkeypatch.setattr(sparse_module, "query_seconds", lambda *_: seconds)
    _, experiment, estimators, get = world
    report = Report(tmp_path, "test", 0)
    BENCHMARK.evaluate(experiment, {"tracin": estimators["tracin"]}, get, report)
    found = {timesteps(row): row for row in (row.to_dict() for row in report.rows) if row["metric"] == FASTER}
    assert {name: row["value"] for name, row in found.items()} == {"12 even": 2, "4 even": 8, "only 7": 10, "1 random": 10}
    assert (found["4 even"]["seconds"], found["4 even"]["seconds_with_all"]) == (5, 10)


def test_every_round_is_the_first_query_with_every_choice(world, monkeypatch):
    """Claim: timed are as many inputs of the network as a choice has draws, each choice once a round and once to warm up."""
    _, experiment, estimators, get = world
    queries, schemes = BENCHMARK.queries["validation"].node(experiment), {ALL: Even(T), "5": Even(5), "1": Uniform(1)}
    seen, run = [], hooks.run_all
    monkeypatch.setattr(hooks, "run_all", lambda *given: seen.append(len(given[3][0])) or run(*given))
    query_seconds(estimators["retrac"], experiment.trained, queries, schemes, 1, get)  # the first capture checks its gradients
    seen.clear()
    seconds = query_seconds(estimators["retrac"], experiment.trained, queries, schemes, 2, get)
    assert seen == [24, 5, 1] * 3
    assert {name: len(times) for name, times in seconds.items()} == {ALL: 2, "5": 2, "1": 2}


@pytest.mark.slow
def test_precision_where_there_are_two_sources(two_sources):
    """Claim: the share of a query's label among its top k, for the queries of each label, by a loop; with level and maximum."""
    found, experiment, _, get = two_sources
    train, images = get(experiment.train), get(BENCHMARK.queries["validation"].node(experiment))
    for label in np.unique(images.label):
        for scheme, draws in {ALL: Even(T), "4 even": Even(4)}.items():
            values = scores(two_sources, "tracin", draws).values
            shares = []
            for q in np.flatnonzero(images.label == label):
                best = sorted(range(20), key=lambda i, q=q: -values[q, i])[:6]
                shares.append(sum(train.label[i] == label for i in best) / 6)
            wanted = ("tracin", "precision@6", f"validation source {label}", scheme)
            (row,) = (r for r in found if (r["estimator"], r["metric"], r.get("queries"), timesteps(r)) == wanted)
            assert row["value"] == pytest.approx(np.mean(shares))
            assert row["random"] == pytest.approx([0.8, 0.2][label])
            assert row["maximum"] == pytest.approx([1, 4 / 6][label])
            assert row["queries_n"] == len(shares)
        here = {r["estimator"]: r["value"] for r in found if "difference" in r and r["queries"] == f"validation source {label}"}
        assert len(here) == 5 + 2 * 4, "estimators at each of five choices, and all minus four others of both estimators"
        assert "tracin timesteps=all − tracin timesteps=4 even" in here


def test_ten_sources_have_no_precision(world):
    """Claim: digits have ten labels, not two sources."""
    assert not any("precision" in row["metric"] for row in world[0])


def test_the_figure_is_legible(two_sources):
    """Claim: no text covers another or leaves the page."""
    shown = [row for row in map(Row.from_dict, two_sources[0]) if row.minus is None]
    assert overlaps(sparse_timesteps(shown, SPEARMAN, FASTER)) == []


@pytest.mark.slow
def test_on_the_command_line(tmp_path):
    """Claim: benchmark=sparse_timesteps leaves its rows and its figure."""
    settings = [
        "benchmark=sparse_timesteps",
        "benchmark.n=[4]",
        "benchmark.fixed=7",
        "benchmark.queries.validation.n=2",
        "samples.n=2",
    ]
    run(tmp_path, *SETTINGS, *settings, "benchmark.repeats=1", "workers=1", f"hydra.run.dir={tmp_path / 'out'}")
    found = [row for row in rows(tmp_path / "out") if row["benchmark"] == "sparse_timesteps"]
    schemes = ("4 even", "only 7", "1 random")
    differences = {f"tracin timesteps={scheme} − retrac timesteps={scheme}" for scheme in schemes}
    assert {row["estimator"] for row in found} == {"tracin", "retrac", *differences}
    assert {row["metric"] for row in found} == {SPEARMAN, FASTER}
    assert (tmp_path / "out" / "sparse_timesteps.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n": (24,)}, r"SparseTimesteps\.n\[0\]=24"),
        ({"n": (4, 2.5)}, r"SparseTimesteps\.n\[1\]=2\.5"),
        ({"n": ()}, r"SparseTimesteps\.n"),
        ({"fixed": 25}, r"SparseTimesteps\.fixed=25"),
        ({"fixed": True}, r"SparseTimesteps\.fixed=True"),
        ({"noises": 0}, r"SparseTimesteps\.noises=0"),
        ({"repeats": 1.5}, r"SparseTimesteps\.repeats=1\.5"),
        ({"queries": {}}, r"SparseTimesteps\.queries"),
    ],
)
def test_errors_name_the_field(world, changes, said):
    """Claim: bad settings are refused when the nodes are listed, before anything is trained."""
    _, experiment, estimators, _ = world
    with pytest.raises(ValueError, match=said):
        replace(BENCHMARK, **changes).nodes(experiment, estimators)


def test_other_estimators_and_too_many_proponents_are_refused(world, two_sources):
    """Claim: an estimator that does not replay training, and k beyond the training set, are errors that say so."""
    kfac = instantiate(composed("estimator=kfac").estimator, _convert_="all")
    with pytest.raises(ValueError, match="estimator=kfac does not replay training"):
        BENCHMARK.nodes(world[1], {"kfac": kfac})
    with pytest.raises(ValueError, match=r"SparseTimesteps\.k=21"):
        replace(BENCHMARK, k=21).nodes(*two_sources[1:3])
