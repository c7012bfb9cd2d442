"""LDS of pairs of timesteps: matrices against loops, estimators that measure at a timestep, and the command line."""

import re

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig
from scipy.stats import spearmanr

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.measurements import LossAtT
from experiments import figures
from experiments.benchmarks import lds_timestep_rows as shapes_of
from experiments.metrics import lds as lds_metrics
from experiments.metrics.bootstrap import Bootstrap, Statistic
from experiments.report.row import Estimate, Levels, Row, Subject
from experiments.tasks.composition import experiment_of
from experiments.tasks.settings import build, by_setting
from tests.experiments.figures.drawn import overlaps
from tests.experiments.tasks.test_cli import FINAL, rows, run
from tests.experiments.tasks.test_configs import composed, options

P, TARGETS, Q, M, K, B = 3, 4, 5, 9, 3, 20
RANDOM = np.random.default_rng(0)
MEASURED = RANDOM.normal(size=(K, TARGETS, Q, M))
PREDICTIONS = MEASURED[:, :P].mean(0) + RANDOM.normal(size=(P, Q, M))
BOOTSTRAP = Bootstrap(B)


def rho(a, b):
    return float(spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def alone(prediction, target) -> Statistic:
    """LDS of one pair."""
    return lds_metrics.lds(prediction[None], target[None], BOOTSTRAP)[0, 0]


def same_spread(first: Statistic, second: Statistic) -> bool:
    """Whether two statistics deviate alike along the queries and the subsets."""
    assert first.spread.keys() == second.spread.keys() == {"queries", "subsets"}
    return all(np.allclose(first.spread[axis], second.spread[axis], rtol=1e-6, atol=1e-12) for axis in first.spread)


def test_a_grid_is_a_loop_over_pairs():
    """Claim: the entry [p, t] is the mean over queries of Spearman's correlation of prediction p with target t."""
    grid = lds_metrics.lds(PREDICTIONS, MEASURED[0], BOOTSTRAP)
    for p in range(P):
        for t in range(TARGETS):
            assert grid.value[p, t] == pytest.approx(np.mean([rho(PREDICTIONS[p, q], MEASURED[0, t, q]) for q in range(Q)]))
            assert same_spread(grid[p, t], alone(PREDICTIONS[p], MEASURED[0, t]))


def test_exact_retraining_is_a_loop_over_seeds():
    """Claim: [p, t] is each seed at p against the mean of the others at t; on the diagonal the estimate of benchmark=lds."""
    grid = lds_metrics.retraining(MEASURED, BOOTSTRAP)
    for p in range(TARGETS):
        for t in range(TARGETS):
            found = [
                rho(MEASURED[k, p, q], np.mean([MEASURED[other, t, q] for other in range(K) if other != k], 0))
                for k in range(K)
                for q in range(Q)
            ]
            assert grid.value[p, t] == pytest.approx(np.mean(found))
        own = lds_metrics.retraining(MEASURED[:, p, None], BOOTSTRAP)[0, 0]
        assert grid.value[p, p] == pytest.approx(own.value)
        assert same_spread(grid[p, p], own)


def test_differences_are_paired():
    """Claim: a grid minus itself is 0 without spread; minus another it is the difference of the pair in each resample."""
    grid, other = (lds_metrics.lds(side, MEASURED[0], BOOTSTRAP) for side in (PREDICTIONS, PREDICTIONS[::-1]))
    nothing = (grid - grid)[0, 1].estimate()
    assert (nothing.value, nothing.low, nothing.high) == (0, 0, 0)
    first, second = (alone(PREDICTIONS[p], MEASURED[0, 1]).spread for p in (0, 2))
    for axis in ("queries", "subsets"):
        assert (grid - other)[0, 1].spread[axis] == pytest.approx(first[axis] - second[axis])


@pytest.mark.parametrize("n", [4, 5, 8])
def test_shapes_are_means_by_hand(n):
    """Claim: same, neighboring and farther predictions are averaged target by target; later minus earlier halves the diagonal."""
    values = RANDOM.normal(size=(n + 1, n + 1))  # "all" stands last and is left out
    grid = Statistic(values, {"queries": np.stack([0 * values, 0 * values + 1])}, {"queries": 4})
    near, far = [], []
    for t in range(n):
        near.append(np.mean([values[p, t] for p in range(n) if abs(p - t) == 1]))
        far.append(np.mean([values[p, t] for p in range(n) if abs(p - t) > 1]))
    own = [values[t, t] for t in range(n)]
    half = n // 2
    expected = {
        shapes_of.diagonal: np.mean(own),
        shapes_of.neighbors: np.mean(near),
        shapes_of.farther: np.mean(far),
        shapes_of.later: np.mean(own[-half:]) - np.mean(own[:half]),
    }
    for weights, value in expected.items():
        estimate = (grid[:n, :n] * weights(n)).sum().estimate()
        assert estimate.value == pytest.approx(value)
        one_more = 0 if weights is shapes_of.later else 1  # in the second resample every entry is larger by 1
        width = 2.776445 * 0.5 * one_more  # Student's t times the deviation of 0 and 1
        assert (estimate.low, estimate.high) == pytest.approx((value - width, value + width))


MEASURES_NOTHING = {"raw_cos", "raw_dot", "clip_cos", "clip_dot", "random", "dtrak", "journey_trak"}
MEASURES_NOTHING |= {"half_dtrak", "tuned_dtrak", "trak_square", "balanced_dtrak", "das", "nda"}
MEASURES_NOTHING |= {"dino_cos", "sscd_cos", "frequency", "perceptual"}
MEASURES_THE_LOSS = {"kfac_loss", "trak_loss"}
"""Estimators that measure the training loss whatever the command line measures."""


@pytest.fixture(scope="module")
def world():
    """A training on few images, and three queries of it."""
    config = composed("data.n_train=24", "data.n_validation=12")
    experiment = experiment_of(config)
    return experiment, instantiate(config.queries, n=3, _convert_="all").node(experiment)


@pytest.mark.parametrize("name", [name for name in options("estimator") if not name.endswith("_average")])
def test_measuring_is_the_measurement_of_the_command_line(world, name):
    """Claim: an estimator measuring at t is the one with measurement=loss_at_t; one that asks for no measurement is itself."""
    experiment, queries = world
    estimator = instantiate(composed(f"estimator={name}").estimator, _convert_="all")
    at_500 = estimator.measuring(LossAtT(experiment.diffusion.process, 500))
    assert (at_500 is estimator) == (name in MEASURES_NOTHING)
    if name not in MEASURES_NOTHING:
        said = instantiate(composed(f"estimator={name}", "measurement=loss_at_t", "measurement.t=500").estimator, _convert_="all")
        nodes = [how.scores(experiment.trained, experiment.train, queries) for how in (at_500, said, estimator)]
        own, by_setting, unchanged = (node.fingerprint for node in nodes)
        assert by_setting == (unchanged if name in MEASURES_THE_LOSS else own)
        assert own != unchanged


def test_timesteps_share_the_passes_over_the_training_set(world):
    """Claim: influence at every timestep waits for the same training gradients, pass by pass."""
    experiment, queries = world
    estimator = instantiate(composed("estimator=kfac").estimator, _convert_="all")
    estimators = [estimator, *(estimator.measuring(LossAtT(experiment.diffusion.process, t)) for t in (1, 999))]
    scores = [each.scores(experiment.trained, experiment.train, queries) for each in estimators]
    assert len({node.fingerprint for node in scores}) == 3
    blocks = [[block for batch in node.batches for block in batch.training_blocks] for node in scores]
    assert all(len({block.together() for block in same}) == 1 for same in zip(*blocks, strict=True))


SMALL = [
    "benchmark=lds_timesteps",
    "benchmark.timesteps=[1,10,200,999]",
    "benchmark.subsets.count=4",
    "benchmark.repeats=3",
    "benchmark.steps=6",
    "benchmark.draws.n=4",
    "benchmark.queries.validation.n=4",
    "benchmark.queries.generated.n=3",
    "benchmark.resamples=50",
]
KFAC = ["estimator=kfac", "estimator.draws.n=2", "curvature.draws.n=2"]


@pytest.mark.slow
def test_on_the_command_line(tmp_path):
    """Claim: a row for each target with its interval, ceiling and column of the matrix; the models are those of benchmark=lds."""
    out, lds = tmp_path / "out", tmp_path / "lds"
    printed = run(tmp_path, *FINAL, *SMALL, *KFAC, "benchmark.compare=[raw_cos]", f"hydra.run.dir={out}")
    found, labels = rows(out), [1, 10, 200, 999, "all"]
    for kind in ("validation", "generated"):
        here = [row for row in found if row["queries"] == kind]
        own = {(row["estimator"], row["swept"]["measured_t"]): row for row in here if row["metric"] == "lds_%"}
        assert set(own) == {
            (name, t) for name in ("kfac", "raw_cos", "exact retraining", "noise ceiling", "kfac − raw_cos") for t in labels
        }
        for (name, t), row in own.items():
            assert row["low"] <= row["high"]
            if name == "kfac − raw_cos":
                assert row["value"] == pytest.approx(own["kfac", t]["value"] - own["raw_cos", t]["value"])
                continue
            if name == "noise ceiling":
                assert row["value"] == pytest.approx(own["kfac", t]["ceiling"])
                assert row["interval"] == "confidence, over queries and subsets"
                continue
            assert list(row["by_predicted"]) == [str(label) for label in labels]
            assert row["by_predicted"][str(t)] == {end: row[end] for end in ("value", "low", "high")}
            assert 0 <= row["ceiling"] <= 100
        assert len({str(own["raw_cos", t]["by_predicted"][p]) for t in [10] for p in map(str, labels)}) == 1
        by_all = {(row["estimator"], row["swept"]["measured_t"]): row for row in here if row["metric"] == "lds_%_by_all"}
        assert set(by_all) == {(name, t) for name in ("kfac", "exact retraining") for t in labels[:-1]}
        for row in (row for row in here if row["metric"] == "lds_%_−_by_all"):
            place = row["estimator"], row["swept"]["measured_t"]
            assert row["value"] == pytest.approx(own[place]["value"] - by_all[place]["value"])
            assert by_all[place]["value"] == own[place]["by_predicted"]["all"]["value"]
        shapes = {row["metric"]: row for row in here if row["estimator"] == "kfac" and row["benchmark"] == "lds_timesteps_shape"}
        assert shapes["same_t"]["value"] == pytest.approx(np.mean([own["kfac", t]["value"] for t in labels[:-1]]))
        for name in ("kfac", "exact_retraining"):
            assert (out / f"lds_{kind}_{name}.png").exists()
        assert not (out / f"lds_{kind}_raw_cos.png").exists()
    assert len(printed.splitlines()) < 120
    assert (out / "lds_by_timestep.png").exists()
    store = tmp_path / "store"
    models, measured = (set((store / kind).iterdir()) for kind in ("Retrained", "Measured"))
    same = [s for s in SMALL if "timesteps" not in s]
    run(tmp_path, *FINAL, *KFAC, "benchmark=lds", *same, "benchmark.compare=[]", f"hydra.run.dir={lds}")
    assert (models, measured) == tuple(set((store / kind).iterdir()) for kind in ("Retrained", "Measured"))
    for row in rows(lds):
        if row["estimator"] == "kfac" and row["metric"] == "lds_%":
            here = {"estimator": "kfac", "metric": "lds_%", "queries": row["queries"]}
            (mine,) = [r for r in found if here.items() <= r.items() and r["swept"]["measured_t"] == "all"]
            assert (mine["value"], mine["scores"]) == (pytest.approx(row["value"]), row["scores"])
            assert mine["ceiling"] == pytest.approx(row["ceiling"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["benchmark.timesteps=[-1,5]"], "benchmark.timesteps=[-1,5]: give at least one timestep of 1..1000"),
        (["benchmark.timesteps=[1001]"], "at least one timestep of 1..1000"),
        (["benchmark.timesteps=[5,5]"], "benchmark.timesteps"),
        (["benchmark.timesteps=[]"], "benchmark.timesteps=[]"),
        (["benchmark.timesteps=[2.5]"], "benchmark.timesteps[0]=2.5"),
        (["benchmark.timesteps=5"], "benchmark.timesteps=5"),
        (["benchmark.seeds=0"], "benchmark.seeds=0"),
        (["benchmark.repeats=2"], "benchmark.repeats=2"),
        (["benchmark.resamples=0"], "benchmark.resamples=0"),
        (["benchmark.subsets.count=1"], "benchmark.subsets"),
        (["benchmark.queries.validation.n=13"], "benchmark.queries"),
    ],
)
def test_bad_settings_are_named_before_anything_is_trained(settings, said):
    """Claim: what cannot be is refused by the setting's name when the nodes are listed."""
    with pytest.raises(ValueError, match=re.escape(said)):
        list_nodes(composed("benchmark=lds_timesteps", "data.n_train=24", "data.n_validation=12", *settings))


def list_nodes(config: DictConfig) -> None:
    """List the nodes of the benchmark; errors as the command line has them."""
    try:
        build(config, "benchmark").nodes(experiment_of(config), {})
    except ValueError as error:
        raise by_setting(config, error) from error


def test_an_error_on_the_command_line(tmp_path, capfd):
    """Claim: the shell is told the setting in a sentence, and nothing was computed."""
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *FINAL, *SMALL, "estimator=random", "benchmark.compare=[]", "benchmark.timesteps=[0,5]")
    assert "benchmark.timesteps=[0,5]" in f"{ended.value.code}{capfd.readouterr().err}"
    assert not (tmp_path / "store" / "TrainedModel").exists()


def drawn(value: float, t, estimator: str = "kfac", queries: str = "validation") -> Row:
    return Row(
        benchmark="lds_timesteps",
        metric="lds_%",
        subject=Subject(estimator),
        estimate=Estimate(value, value - 5, value + 5),
        levels=Levels(random=0.0, ceiling=value + 20),
        queries=queries,
        swept={"measured_t": t},
    )


def test_the_figure_shows_every_timestep_evenly():
    """Claim: timesteps stand in order, a step apart, "all" behind them on its own; values, intervals and ceilings stand there."""
    rows = [
        drawn(value, t, name, kind)
        for name, value in (("kfac", 30), ("exact retraining", 50))
        for kind in ("validation", "generated")
        for t in ("all", 999, 1, 100)
    ]
    log_snr = DDPM(NoiseSchedule()).log_snr
    figure = figures.by_timestep(rows, "measured_t", "timestep of the loss", "LDS, %", log_snr)
    assert [axes.get_title() for axes in figure.axes] == ["validation queries", "generated queries"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "100", "999", "all"]
        steps = np.diff(axes.get_xticks())
        assert steps[0] == steps[1] < steps[2]
        (line,) = [line for line in axes.lines if line.get_label() == "kfac"]
        assert len(np.asarray(line.get_xdata())) == 3
        (noise,) = axes.child_axes
        assert [label.get_text() for label in noise.get_xticklabels()] == ["9.2", "2.2", "−10.1"]
        assert list(noise.get_xticks()) == list(axes.get_xticks()[:3])
        assert set(np.asarray(line.get_ydata())) == {30}
    assert overlaps(figure) == []
    lone = figures.by_timestep([drawn(1, 5)], "measured_t", "t", "LDS", log_snr)  # one point is a figure too
    assert overlaps(lone) == []
