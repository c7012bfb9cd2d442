"""benchmark=timestep_bias: rows of norms and scores, Algorithm 1, manipulated timesteps, the command line."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.estimators.scores import Scores
from attribution.gradients.norms import Norms
from experiments.benchmarks.timestep_bias_rows import RANDOM, T_MAX, Bias
from experiments.figures import norms as figures
from experiments.figures.rank_rises import rank_rises
from experiments.metrics import timestep_bias as bias_metrics
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.estimate import Estimate, bounded_interval, t_interval
from experiments.report.row import Levels, Row, Subject
from tests.experiments.figures.drawn import overlaps
from tests.experiments.tasks.test_cli import rows, run
from tests.worlds import UNET, Blobs


def bias(trained_at, norms, curve_timesteps, curves, columns=None):
    """One checkpoint: ``trained_at, norms [N]``, ``curve_timesteps [K]``, ``curves [P, K]``."""
    columns = np.arange(len(norms)) if columns is None else columns
    timesteps = np.broadcast_to(curve_timesteps, (len(curves), len(curve_timesteps)))[None]
    return Bias(
        steps=[10],
        rates=[0.5],
        trained=Norms(np.asarray(norms, float)[None, :, None], np.asarray(trained_at)[None, :, None]),
        curves=Norms(np.asarray(curves, float)[None], timesteps),
        columns=columns,
        T=100,
        bootstrap=Bootstrap(200),
    )


def rise_rows(world: Bias, scores: dict[str, Scores], retimed: dict[tuple[str, str], Scores], most: int) -> list[Row]:
    return list(world.rise_rows(scores, retimed, {name: Subject(name) for name in scores}, most, "validation"))


@pytest.mark.parametrize(("sign", "rho"), [(-1, 1.0), (1, -1.0)])
def test_algorithm_1_where_the_answer_is_known(sign, rho):
    """Claim: where the norm falls (rises) with the distance from t_max, whichever that is, ρ is exactly 1 (-1)."""
    random = np.random.default_rng(0)
    grid = np.arange(1, 101)
    t_max, trained_at = random.integers(40, 60, 30), random.permutation(100)[:30] + 1
    curves = 200.0 - np.abs(grid - t_max[:, None])
    distance = np.abs(t_max - trained_at)
    norms = 200.0 + sign * distance + random.random(30) * 1e-6
    keep = np.unique(distance, return_index=True)[1]  # no ties
    (found,) = bias(trained_at, norms, grid, curves).algorithm_1(keep)
    np.testing.assert_array_equal(found.distance, distance[keep])
    assert found.rho.value == pytest.approx(rho, abs=1e-12)
    assert found.p < 1e-10
    assert np.sign(found.slope.value) == rho


def test_algorithm_1_against_a_loop():
    """Claim: distances, ranks, ρ, p and slope as the paper's loop, SciPy and NumPy have them; intervals hold their value."""
    random = np.random.default_rng(1)
    N, columns, chosen = 40, np.arange(5, 35), np.array([2, 3, 7, 11, 15, 20, 29])
    grid, trained_at, norms = np.array([1, 34, 67, 100]), random.integers(1, 101, N), random.random(N)
    curves = random.random((len(columns), 4))
    world = bias(trained_at, norms, grid, curves, columns)
    y1, y2 = [], []
    for x in chosen:
        best = max(range(4), key=lambda k, x=x: curves[x, k])
        y1.append(abs(grid[best] - trained_at[columns[x]]))
        y2.append(1 + sum(norms[other] > norms[columns[x]] for other in range(N)))
    (result,) = world.algorithm_1(chosen)
    assert result.distance.tolist() == y1
    assert result.rank.tolist() == y2
    expected = spearmanr(y1, y2)
    assert result.rho.value == pytest.approx(expected.statistic)
    assert result.p == pytest.approx(expected.pvalue)
    assert [result.slope.value, result.intercept] == pytest.approx(np.polyfit(y1, y2, 1).tolist())
    assert result.rho.low <= result.rho.value <= result.rho.high
    assert result.slope.low <= result.slope.value <= result.slope.high


def test_nothing_varies():
    """Claim: where all distances are equal nothing is known, and no row pretends otherwise."""
    result = bias_metrics.algorithm_1(np.ones(5), np.arange(5), Bootstrap(50))
    assert np.isnan([result.rho.value, result.p, result.slope.value]).all()


def test_ranks_after_a_change_against_a_loop():
    """Claim: each example alone gets its new score; its rank of |score| is counted among the others' old ones."""
    random = np.random.default_rng(2)
    scores, positions = random.normal(size=(3, 20)).round(1), np.array([1, 4, 9, 19])
    new = random.normal(size=(3, 4)).round(1)
    found = bias_metrics.rank_among(scores, positions, new)
    for q in range(3):
        for p, position in enumerate(positions):
            others = [abs(scores[q, j]) for j in range(20) if j != position]
            assert found[q, p] == 1 + sum(other > abs(new[q, p]) for other in others)


def test_manipulation_where_the_answer_is_known():
    """Claim: new scores above all others are a rise to rank 1 (the maximum), the old scores again are none."""
    random = np.random.default_rng(3)
    N, columns = 50, np.arange(10, 40)
    values = random.permutation(np.arange(1, N + 1))[None] * np.array([[1.0], [-1.0]])
    scores = {"tracin": Scores(values, np.arange(2), np.arange(N))}
    same, largest = (Scores(v, np.arange(2), columns) for v in (values[:, columns], np.full((2, 30), -1e3)))
    world = bias(np.ones(N, int), np.ones(N), np.array([1, 2]), np.ones((30, 2)), columns)
    found = rise_rows(world, scores, {("tracin", T_MAX): largest, ("tracin", RANDOM): same}, most=10)
    by_timing = {row.settings["timestep"]: row for row in found if row.minus is None}
    (difference,) = [row for row in found if row.minus is not None]
    neutral = np.sort(np.abs(values[0, columns]))[:10]  # |score| v is rank N + 1 - v
    assert by_timing[T_MAX].estimate.value == pytest.approx(100 * np.mean(N - neutral) / N)
    assert by_timing[T_MAX].levels.maximum == pytest.approx(by_timing[T_MAX].estimate.value)
    assert by_timing[T_MAX].about["positions"] == pytest.approx(np.mean(N - neutral))
    assert by_timing[RANDOM].estimate.value == 0
    assert by_timing[RANDOM].about["n"] == 10
    every_rank = [N + 1 - v - rank for v in neutral for rank in range(1, N + 1)]
    assert by_timing[RANDOM].levels.random == pytest.approx(100 * np.mean(every_rank) / N)
    assert difference.estimate.value == pytest.approx(by_timing[T_MAX].estimate.value)
    assert difference.estimator == "tracin timestep=t_max − tracin timestep=random"


def test_no_more_than_half_are_manipulated():
    """Claim: ``manipulated`` beyond half of the examples is half of them."""
    scores = {"tracin": Scores(np.arange(20.0)[None], np.arange(1), np.arange(20))}
    new = {("tracin", timing): Scores(np.ones((1, 20)), np.arange(1), np.arange(20)) for timing in (T_MAX, RANDOM)}
    world = bias(np.ones(20, int), np.ones(20), np.array([1, 2]), np.ones((20, 2)))
    assert rise_rows(world, scores, new, most=500)[0].about["n"] == 10


def test_equal_estimators_do_not_differ():
    """Claim: the paired difference of an estimator with itself is 0, with an interval of no width."""
    random = np.random.default_rng(4)
    of = Scores(random.normal(size=(4, 20)), np.arange(4), np.arange(20))
    new = {
        (name, timing): Scores(random.normal(size=(4, 20)), np.arange(4), np.arange(20))
        for name in "a"
        for timing in (T_MAX, RANDOM)
    }
    new |= {("b", timing): new["a", timing] for timing in (T_MAX, RANDOM)}
    world = bias(np.ones(20, int), random.random(20), np.array([1, 2]), np.ones((20, 2)))
    both = {"a": of, "b": of}
    rows_of_both = [*rise_rows(world, both, new, 8), *world.score_rows(both, {name: Subject(name) for name in both}, "validation")]
    found = [row.estimate for row in rows_of_both if row.estimator == "a − b"]
    assert len(found) == 3
    assert all((estimate.value, estimate.low, estimate.high) == (0, 0, 0) for estimate in found)


def test_intervals_come_from_queries_and_examples():
    """Claim: the interval of a mean over pairs covers the spread over queries, and over examples, as normal theory has it."""
    random = np.random.default_rng(5)
    for axis, shape in ((0, (400, 2)), (1, (2, 400))):
        spread = random.normal(size=400)
        values = np.broadcast_to(np.expand_dims(spread, 1 - axis), shape)
        found = Bootstrap(2000).mean(values, ("queries", "examples"), where=np.ones(shape, bool)).estimate()
        assert found.high - found.low == pytest.approx(2 * 1.96 * spread.std() / 20, rel=0.15)


def explained(timestep: np.ndarray, norm: np.ndarray) -> float:
    return bias_metrics.explained(timestep, norm, 100, 10, Bootstrap(50)).estimate().value


def test_resamples_of_examples_against_a_loop():
    """Claim: Spearman, slope and the share explained of every resample are those of the examples as often as they are drawn."""
    random, bootstrap = np.random.default_rng(9), Bootstrap(30)
    t, norm, rank = random.integers(1, 101, 25), np.exp(random.normal(size=25)), random.permutation(25) + 1
    shares, rhos, slopes = [], [], []
    for counts in bootstrap.counts("examples", 25).astype(int):
        some = np.repeat(np.arange(25), counts)
        logs, stretch = np.log(norm[some]), (t[some] - 1) // 10
        within = sum(((logs[stretch == s] - logs[stretch == s].mean()) ** 2).sum() for s in set(stretch.tolist()))
        shares.append(1 - within / ((logs - logs.mean()) ** 2).sum())
        rhos.append(spearmanr(t[some], rank[some]).statistic)
        slopes.append(np.polyfit(t[some], rank[some], 1)[0])
    result = bias_metrics.algorithm_1(t, rank, bootstrap)
    share = bias_metrics.explained(t, norm, 100, 10, bootstrap).estimate()
    for estimate, loop, limits in ((share, shares, (0, 1)), (result.rho, rhos, (-1, 1)), (result.slope, slopes, None)):
        error = np.std(loop) * (25 / 24) ** 0.5
        ends = t_interval(estimate.value, error, 24) if limits is None else bounded_interval(estimate.value, error, 24, limits)
        assert (estimate.low, estimate.high) == pytest.approx(ends)
        assert estimate.interval == "95 % confidence, over examples"


def test_what_the_timestep_explains():
    """Claim: all where the norm is a function of the stretch, about (B - 1)/(n - 1) where independent, by a loop in between."""
    random = np.random.default_rng(6)
    t = random.integers(1, 101, 2000)
    assert explained(t, np.exp((t - 1) // 10)) == pytest.approx(1)
    assert explained(t, np.exp(random.normal(size=2000))) == pytest.approx(9 / 1999, abs=0.006)
    logs = t / 50 + random.normal(size=2000)
    groups = [logs[(t > low) & (t <= low + 10)] for low in range(0, 100, 10)]
    within = sum(((group - group.mean()) ** 2).sum() for group in groups)
    assert explained(t, np.exp(logs)) == pytest.approx(1 - within / ((logs - logs.mean()) ** 2).sum())


def test_the_same_example_on_top_by_chance():
    """Claim: the level is what independent random scores reach, and the example is the most frequent one."""
    random = np.random.default_rng(7)
    shares = []
    for _ in range(300):
        top = np.argsort(random.random((12, 60)), axis=1)[:, :6]
        example = bias_metrics.most_frequent(top)
        assert (top == example).sum() == np.bincount(top.ravel()).max()
        shares.append((top == example).any(1).mean())
    assert bias_metrics.random_most_frequent(12, 60, 6) == pytest.approx(np.mean(shares), rel=0.03)


@pytest.mark.slow
def test_figures_are_legible():
    """Claim: no text of any of the figures covers another or leaves the page, with one checkpoint and with several."""
    random = np.random.default_rng(8)
    images = Blobs(n=30).compute(None)  # pyright: ignore[reportArgumentType]
    log_snr = DDPM(NoiseSchedule()).log_snr
    for count in (1, 3):
        scatters = [
            figures.Scatter(f"checkpoint {s}", random.integers(1, 1001, 30), np.exp(random.normal(size=30)), np.arange(30))
            for s in range(count)
        ]
        grid = np.linspace(1, 1000, 20).astype(int)
        curve = figures.Curve("checkpoint 1000", grid, np.exp(random.normal(size=20)), np.exp(random.normal(size=(9, 20))), 1000)
        pairs = random.integers(0, 900, 12), random.integers(1, 1000, 12)
        fitted = bias_metrics.algorithm_1(*pairs, Bootstrap(50))
        for figure in (
            figures.norms_by_timestep(scatters, log_snr, images, 20),
            figures.norm_curves([replace(curve) for _ in range(count)], log_snr, images.take([0])),
            figures.algorithm_1(range(count), [fitted] * count, 1000),
        ):
            assert overlaps(figure) == []
    shown = [
        Row(
            benchmark="timestep_bias",
            metric="rank_rise_%",
            queries=kind,
            subject=Subject(name),
            estimate=Estimate(20.0, 10.0, 30.0),
            levels=Levels(random=25.0, maximum=75.0),
            swept={"timestep": timing},
        )
        for name in ("tracin", "retrac")
        for kind in ("validation", "generated")
        for timing in (T_MAX, RANDOM)
    ]
    assert overlaps(rank_rises(shown)) == []


SETTINGS = [
    "benchmark=timestep_bias",
    "estimator=tracin",
    "estimator.checkpoints=[10,20]",
    "estimator.draws.n=2",
    "data.n_train=40",
    "data.n_validation=24",
    "trainer.steps=20",
    "trainer.batch_size=10",
    "model.block_out_channels=[8,8]",
    "checkpoints.every=5",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
    "samples.n=4",
    "workers=1",
    "benchmark.examples=20",
    "benchmark.timesteps=3",
    "benchmark.correlated=10",
    "benchmark.manipulated=8",
    "benchmark.resamples=50",
    "benchmark.queries.validation.n=3",
    "~benchmark.queries.generated",
]


@pytest.mark.slow
def test_on_the_command_line(tmp_path):
    """Claim: every number with its interval and level, the figures, the pretrained pipeline."""
    torch.manual_seed(0)
    diffusers.DDPMPipeline(UNET(), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    settings = [*SETTINGS, f"benchmark.pretrained={tmp_path / 'pipeline'}"]
    run(tmp_path, *settings, f"hydra.run.dir={tmp_path / 'out'}")
    found = [row for row in rows(tmp_path / "out") if row["benchmark"] == "timestep_bias"]
    said = {(row["estimator"], row["metric"], str((row["swept"] or {}).get("timestep"))) for row in found}
    for step in (10, 20):
        for metric in ("norm_explained_by_timestep", "mean_t_max", "algorithm_1_spearman", "algorithm_1_slope"):
            assert any(row["metric"] == metric and row["swept"].get("checkpoint") == step for row in found)
    assert any(row["swept"].get("checkpoint") == str(tmp_path / "pipeline") for row in found)
    assert ("tracin timestep=t_max − tracin timestep=random", "rank_rise_%", "None") in said
    for name in ("tracin", "retrac", "tracin − retrac"):
        assert (name, "score_with_norm_spearman", "None") in said
        assert {timing for estimator, metric, timing in said if (estimator, metric) == (name, "rank_rise_%")} >= {T_MAX, RANDOM}
    assert all(
        row["low"] <= row["value"] <= row["high"] for row in found if row["low"] is not None and row["metric"] != "mean_t_max"
    )
    names = ["norm_vs_timestep", "norm_vs_timestep_pretrained", "norm_over_timesteps", "algorithm_1", "rank_rise"]
    for name in [*names, "influential_validation_tracin", "influential_validation_retrac"]:
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["estimator=kfac", "~estimator.checkpoints"], "estimator=kfac does not replay training"),
        (["benchmark.compare=[raw_cos]"], "estimator=raw_cos does not replay training"),
        (["estimator.draws.bins=2"], "estimator.draws"),
        (["benchmark.timesteps=1001"], "benchmark.timesteps=1001"),
        (["benchmark.correlated=21"], "benchmark.correlated=21"),
        (["benchmark.manipulated=0"], "benchmark.manipulated=0"),
        (["benchmark.k=41"], "benchmark.k=41"),
        (["benchmark.pretrained=nowhere/at_all"], "benchmark.pretrained=nowhere/at_all"),
    ],
)
def test_errors_come_before_training(tmp_path, arguments, said):
    """Claim: bad settings end with a sentence that names them, and nothing was trained."""
    given = {argument.split("=")[0].lstrip("~") for argument in arguments}
    settings = [setting for setting in SETTINGS if setting.split("=")[0] not in given and "~estimator" not in setting]
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *settings, *(a for a in arguments if a[0] != "~"), f"hydra.run.dir={tmp_path / 'out'}")
    assert said in str(ended.value.code)
    assert not (tmp_path / "store" / "TrainedModel").exists()
