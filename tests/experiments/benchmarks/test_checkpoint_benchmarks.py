"""benchmark=gradient_norms, one_checkpoint and influential_timesteps: rows against slow truths, figures, the command line."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from attribution.diffusion import EDM
from attribution.gradients.norms import Norms
from experiments import figures
from experiments.benchmarks.influential_timesteps import DISTANCE, InfluentialTimesteps
from experiments.benchmarks.one_checkpoint import SHARE, OneCheckpoint
from experiments.benchmarks.timestep_bias_rows import DIRECTION, EXPLAINED, Bias
from experiments.queries import Validation
from experiments.report.row import Estimate, Row, Subject
from tests.experiments.benchmarks.test_image_tracing import TINY
from tests.experiments.figures.drawn import overlaps
from tests.experiments.tasks.test_cli import rows, run
from tests.worlds import Blobs

QUERIES = {"validation": Validation(n=4, seed=0)}
QUIET = [*TINY, "workers=1", "estimator.checkpoints=[10,20]", "benchmark.queries.validation.n=8"]


def bias() -> Bias:
    """Two checkpoints: norms that grow with the timestep for most examples at the first, and none that does at the second."""
    random, grid = np.random.default_rng(0), np.linspace(1, 100, 12).astype(int)
    curves = np.exp(np.stack([grid / 40 + random.normal(size=(150, 12)) / 2, random.normal(size=(150, 12))]))
    trained_at = random.integers(1, 101, (2, 150))
    norms = np.exp(np.stack([trained_at[0] / 30 + random.normal(size=150) / 2, random.normal(size=150)]))
    timesteps = np.broadcast_to(grid, (2, 150, 12))
    return Bias([5, 10], [1.0, 1.0], Norms(norms[..., None], trained_at[..., None]), Norms(curves, timesteps), np.arange(150), 100)


def test_direction_of_the_trend_is_scipys_spearman():
    """Claim: a mean over examples of SciPy's correlation between timestep and norm, positive where norms grow towards noise."""
    world = bias()
    for s, row in enumerate(row for row in world.norm_rows() if row.metric == DIRECTION):
        expected = [spearmanr(world.curves.timestep[s, i], world.curves.norms[s, i]).statistic for i in range(150)]
        assert row.estimate.value == pytest.approx(np.mean(expected))
        assert row.estimate.low < row.estimate.value < row.estimate.high
    assert world.norm_rows().__next__().metric == EXPLAINED


def test_a_trend_that_fades_is_a_difference_below_zero():
    """Claim: the last checkpoint minus the first, of the same examples; below 0 with its interval where the trend fades."""
    world = bias()
    of_checkpoint = {(row.metric, row.settings.get("checkpoint")): row.estimate.value for row in world.norm_rows()}
    for row in world.convergence_rows():
        assert row.estimate.value == pytest.approx(of_checkpoint[row.metric, 10] - of_checkpoint[row.metric, 5])
        assert row.estimate.high < 0
        assert row.minus is not None
        assert (row.subject.settings, row.minus.settings) == ({"checkpoint": 10}, {"checkpoint": 5})
    profiles = world.profiles
    np.testing.assert_allclose(np.exp(np.log(profiles).mean(1)), 1)
    expected = np.median(world.curves.norms[0][:, 3]) / np.median(world.curves.norms[0][:, 7])
    assert profiles[0, 3] / profiles[0, 7] == pytest.approx(expected)


def test_rows_of_one_checkpoint_against_loops():
    """Claim: the mean over a query's top k of the largest part's share; of generally influential images only those; levels."""
    random = np.random.default_rng(1)
    parts = random.normal(size=(3, 4, 20))
    parts[1, :, 7] = 50.0  # one image is influential to all queries through one checkpoint
    benchmark = OneCheckpoint(queries=QUERIES, k=5, influential=0.6)
    found = {row.metric: row for row in benchmark._rows([Subject("tracin")], [parts], "validation")}
    shares, general = [], []
    for q in range(4):
        for i in np.argsort(-parts[:, q].sum(0))[:5]:
            share = np.abs(parts[:, q, i]).max() / np.abs(parts[:, q, i]).sum()
            shares.append(share)
            frequent = sum(i in np.argsort(-parts[:, other].sum(0))[:5] for other in range(4)) > 0.6 * 4
            general += [share] if frequent else []
    everything = np.abs(parts).max(0) / np.abs(parts).sum(0)
    assert found[f"{SHARE}@5"].estimate.value == pytest.approx(np.mean(shares))
    assert found[f"{SHARE}_of_generally_influential"].estimate.value == pytest.approx(np.mean(general))
    assert found[f"{SHARE}@5"].levels.random == pytest.approx(everything.mean())
    assert found[f"{SHARE}@5"].about["equal_shares"] == pytest.approx(1 / 3)
    assert found["top_5_from_one_checkpoint"].levels.random == 0.25


def test_rows_of_influential_outliers_against_loops():
    """Claim: the mean distance over pairs of a query and an outlier in its top k, against that over all pairs."""
    distance = np.array([[1.0, 2.0, 9.0], [3.0, 8.0, 7.0], [5.0, 6.0, 4.0]])
    chosen = np.array([[True, False, False], [True, True, False], [False, False, False]])
    benchmark = InfluentialTimesteps(queries=QUERIES, outlier=1, k=4)
    row, difference = benchmark._rows([Subject("tracin")], [distance], [chosen], "validation", 100)
    assert row.estimate.value == pytest.approx((1 + 3 + 8) / 3)
    assert row.levels.random == pytest.approx(distance.mean())
    assert row.about["influential"] == 2
    assert difference.estimate.value == pytest.approx(4 - distance.mean())
    assert difference.estimator == "tracin outliers=in the top 4 − tracin outliers=all"


@pytest.mark.slow
def test_figures_are_legible():
    """Claim: no text of any of the figures covers another or leaves the page, with one variant and with several."""
    random = np.random.default_rng(2)
    images = Blobs(n=30).compute(None)  # pyright: ignore[reportArgumentType]
    trends = [
        Row(benchmark="b", metric=m, subject=Subject("none"), estimate=Estimate(0.5, 0.4, 0.6), swept={"checkpoint": step})
        for m in (EXPLAINED, DIRECTION)
        for step in (100, 1000)
    ]
    profiles = np.exp(random.normal(size=(2, 9)))
    losses, log_snr = np.exp(random.normal(size=1000)), EDM().log_snr
    drawn = [figures.norm_trend(trends, [100, 1000], np.linspace(1, 1000, 9), profiles, losses, log_snr)]
    for count in (1, 3):
        names = [f"estimator {i} strength={i}" for i in range(count)]
        parts = {name: random.normal(size=(4, 6, 30)) / 1e4 for name in names}
        drawn.append(figures.checkpoint_parts(images, images, parts, {name: [5, 10, 150, 2000] for name in names}, [0, 2], 10))
        scores = {name: part.sum(0) for name, part in parts.items()}
        drawn.append(figures.ranks_of_chosen(images, images, scores, [0, 3], range(10, 26), 8))
        panels = [figures.Influential(name, random.integers(0, 900, 20), random.random(20) * (np.arange(20) > 9)) for name in names]
        drawn.append(figures.distance_to_t_max(panels, 20))
    assert [overlaps(figure) for figure in drawn] == [[]] * len(drawn)


def test_ranks_of_chosen_images():
    """Claim: the chosen images in descending order of their scores, each with its rank among all."""
    images = Blobs(n=5).compute(None)  # pyright: ignore[reportArgumentType]
    figure = figures.ranks_of_chosen(images, images, {"a": np.array([[0.1, 0.5, 0.3, 0.9, 0.2]])}, [0], [0, 2, 4], 2)
    shown = [text.get_text().split("\n")[0] for text in figure.axes[0].texts]
    assert [text for text in shown if "." in text and "#" in text] == [f"3. #{images.index[2]}", f"4. #{images.index[4]}"]


@pytest.mark.parametrize(
    ("arguments", "metrics", "drawn"),
    [
        (
            ["benchmark=gradient_norms", "benchmark.examples=20", "benchmark.timesteps=4", "benchmark.correlated=8",
             "estimator=tracin", "benchmark.example=3", "benchmark.resamples=50"],
            {EXPLAINED, DIRECTION, "algorithm_1_spearman", "algorithm_1_slope", "mean_t_max", "largest_over_median_norm"},
            {"norm_trend", "norm_vs_timestep", "norm_over_timesteps", "algorithm_1"},
        ),
        (
            ["benchmark=one_checkpoint", "benchmark.k=5", "benchmark.compare=[tracin]", "~benchmark.queries.generated"],
            {f"{SHARE}@5", f"{SHARE}_of_generally_influential", "top_5_from_one_checkpoint"},
            {"checkpoints_validation"},
        ),
        (
            ["benchmark=influential_timesteps", "benchmark.k=40", "benchmark.timesteps=4", "benchmark.compare=[tracin]",
             "~benchmark.queries.generated"],
            {DISTANCE},
            {DISTANCE},
        ),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_on_the_command_line(tmp_path, arguments, metrics, drawn):
    """Claim: each benchmark gives its rows and its figures."""
    given = {argument.partition("=")[0] for argument in arguments}
    settings = [word for word in QUIET if word.partition("=")[0] not in given]
    settings = [word for word in settings if "queries" not in word or "benchmark=gradient_norms" not in arguments]
    run(tmp_path, *settings, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    found = rows(tmp_path / "out")
    name = arguments[0].partition("=")[2]
    assert {row["metric"] for row in found if row["benchmark"] == name} == metrics
    assert all(row["low"] <= row["value"] <= row["high"] for row in found if row["low"] is not None)
    for figure in drawn:
        assert (tmp_path / "out" / f"{figure}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["benchmark=one_checkpoint", "benchmark.k=71"], "benchmark.k=71"),
        (["benchmark=one_checkpoint", "benchmark.compare=[raw_cos]"], "estimator=raw_cos does not replay training"),
        (["benchmark=influential_timesteps", "benchmark.outlier=2"], "benchmark.outlier=2"),
        (["benchmark=influential_timesteps", "benchmark.timesteps=1"], "benchmark.timesteps=1"),
        (["benchmark=gradient_norms", "benchmark.example=70"], "benchmark.example=70"),
    ],
)
def test_errors_come_before_training(tmp_path, arguments, said):
    """Claim: bad settings end with a sentence that names them, and nothing was trained."""
    settings = [word for word in QUIET if "queries" not in word or "benchmark=gradient_norms" not in arguments]
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *settings, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    assert said in str(ended.value.code)
    assert not (tmp_path / "store" / "TrainedModel").exists()
