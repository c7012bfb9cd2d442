"""Groups as units: each part against its definition, the intervals, and what is refused."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from scipy.stats import pearsonr, spearmanr

from attribution.checks import FieldError
from attribution.estimators.scores import Scores
from attribution.nodes import InMemory
from attribution.retraining.selection import Selection
from experiments.benchmarks.group_parts import found_for_each_group, rows_of, surrogate
from experiments.benchmarks.variants import Variant
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.groups import coalitions, indicators, shapley
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained
from experiments.report.report import Report
from experiments.report.row import Effort, Levels, Subject
from experiments.store.plan import missing
from experiments.store.store import Store
from experiments.tasks.composition import experiment_of
from experiments.tasks.plan import models_on_disk
from tests.experiments.tasks.test_cli import FINAL, rows, run
from tests.experiments.tasks.test_configs import composed

SMALL = [*FINAL, "benchmark=groups", "trainer.steps=8", "benchmark.subsets.count=5", "benchmark.draws.n=4",
         "benchmark.queries.validation.n=2", "benchmark.resamples=60"]  # fmt: skip
ESTIMATORS = ("raw_cos", "random")
G = 4


def built(*overrides: str) -> tuple[Any, Any, dict[str, Any]]:
    """Experiment, benchmark and estimators of a small configuration."""
    config = composed(*SMALL, *overrides)
    estimators = {name: instantiate(composed(*SMALL, f"estimator={name}").estimator, _convert_="all") for name in ESTIMATORS}
    return experiment_of(config), instantiate(config.benchmark, _convert_="all"), estimators


@pytest.fixture(scope="module")
def four_groups(tmp_path_factory):
    """The setting of a file of four groups of 4 to 20 images."""
    train = experiment_of(composed(*SMALL)).data.load().train
    lines = [f"{index},{'abcd'[np.searchsorted([4, 12, 20], row, side='right')]}" for row, index in enumerate(train.index)]
    path = tmp_path_factory.mktemp("groups") / "four.csv"
    path.write_text("\n".join(["id,group", *lines]))
    return f"benchmark.subsets.groups={path}"


@pytest.fixture(scope="module")
def done(four_groups, tmp_path_factory):
    """All parts, evaluated once in memory."""
    experiment, benchmark, estimators = built(four_groups)
    get, report = InMemory(), Report(tmp_path_factory.mktemp("out"), data="digits", seed=0)
    nodes = benchmark.nodes(experiment, estimators)
    get.many([node.model for node in nodes if isinstance(node, Measured)])  # together
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "figure", lambda name, figure: report.figures.append(report.folder / f"{name}.png"))  # not drawn
        benchmark.evaluate(experiment, estimators, get, report)
    queries = benchmark.queries["validation"].node(experiment)
    groups = benchmark.subsets.groups_in(get(experiment.train))
    members = indicators(groups, 40)
    sums = {
        name: np.asarray(get(e.scores(experiment.trained, experiment.train, queries)).values, np.float64) @ members.T
        for name, e in estimators.items()
    }
    return SimpleNamespace(
        experiment=experiment, benchmark=benchmark, estimators=estimators, get=get, report=report, nodes=nodes, queries=queries,
        groups=groups, sums=sums, rows={(row.metric, row.estimator): row for row in report.rows},
    )  # fmt: skip


def measured(done: Any, kept: np.ndarray, steps: int) -> np.ndarray:
    """The mean measurement of every query under two models of the groups in each of ``kept [M, G]``, ``[Q, M]``."""
    b, e = done.benchmark, done.experiment
    mode = b.mode.choose(e.training.outline, e.shape, e.trainer)

    def one(groups: np.ndarray, seed: int) -> np.ndarray:
        selected = Selection(np.concatenate([rows for rows, keep in zip(done.groups.values(), groups, strict=True) if keep]))
        model = Retrained.of(e.training, selected, seed, steps, mode, e.execution)
        return done.get(
            Measured(model=model, images=done.queries, measure=b.measurement, draws=b.draws, execution=e.execution)
        ).values

    return np.array([[one(groups, seed) for groups in kept] for seed in (1, 2)]).mean(0).T


def mean(correlation: Any, first: np.ndarray, second: np.ndarray) -> float:
    """The mean correlation over queries, in per cent."""
    return 100 * float(np.mean([correlation(a, b)[0] for a, b in zip(first, second, strict=True)]))


@pytest.mark.slow
def test_one_group_is_left_out(done):
    """Claim: the correlation over groups of sums of scores with the rise of the measurement without each, for as many epochs."""
    values = measured(done, np.concatenate([~np.eye(G, dtype=bool), np.ones((1, G), bool)]), steps=6)
    rise = values[:, :-1] - values[:, -1:]
    for name, sums in done.sums.items():
        assert done.rows["leave_one_out_spearman_%", name].estimate.value == pytest.approx(mean(spearmanr, sums, rise))
        assert done.rows["leave_one_out_pearson_%", name].estimate.value == pytest.approx(mean(pearsonr, sums, rise))
    row = done.rows["leave_one_out_spearman_%", "raw_cos"]
    assert row.levels.random == 0
    assert row.levels.ceiling == done.rows["leave_one_out_spearman_%", "noise ceiling"].estimate.value
    assert row.estimate.kind == "confidence, over queries and groups"
    assert done.rows["leave_one_out_pearson_%", "raw_cos"].levels == Levels(random=0.0)
    assert ("leave_one_out_spearman_%", "exact retraining") in done.rows


def test_subsets_of_groups(done):
    """Claim: group LDS is that of summed scores; the surrogate is the regression of the same measurements on groups."""
    kept = done.benchmark.subsets.kept_groups(G)
    values = measured(done, kept, steps=4)
    design = (~kept) - (~kept).mean(0)
    coefficients = (np.linalg.pinv(design) @ (values - values.mean(1, keepdims=True)).T).T
    np.testing.assert_allclose(surrogate(values, 1.0 * ~kept, 0.0), coefficients, rtol=1e-4, atol=1e-6 * np.abs(coefficients).max())
    for name, sums in done.sums.items():
        assert done.rows["group_lds_%", name].estimate.value == pytest.approx(mean(spearmanr, sums @ (~kept).T, values))
        assert done.rows["surrogate_spearman_%", name].estimate.value == pytest.approx(mean(spearmanr, sums, coefficients))
    assert done.rows["group_lds_%", "raw_cos"].estimate.kind == "confidence, over queries and subsets"
    assert done.rows["group_lds_%", "raw_cos"].about["subsets"] == 5


def test_shapley_values_of_retraining(done):
    """Claim: from models of the arcs of a circle, each trained for as many epochs on average."""
    orders = done.benchmark._orders(G)
    members = coalitions(orders)
    values = shapley(measured(done, members, steps=round(8 * (members @ [4, 8, 8, 20]).mean() / 40)), members, orders)[0]
    for name, sums in done.sums.items():
        assert done.rows["shapley_spearman_%", name].estimate.value == pytest.approx(mean(spearmanr, sums, values))
    rise = done.rows["leave_one_out_spearman_%", "Shapley values"].estimate.value
    assert rise == pytest.approx(done.rows["shapley_spearman_%", "leaving out each group"].estimate.value)


def test_the_coefficients_of_the_surrogate_are_its_shapley_values():
    """Claim: permutation sampling of a fitted linear surrogate gives its coefficients, exact from one circle."""
    random, order = np.random.default_rng(0), np.array([[1, 4, 0, 3, 2]])
    kept = random.random((12, 5)) < 0.5
    fitted = surrogate(random.normal(size=(3, 12)), 1.0 * ~kept, damping=0.1)
    members = coalitions(order)
    (values,) = shapley(fitted @ (~members).T, members, order)
    np.testing.assert_allclose(values - values.mean(1, keepdims=True), fitted - fitted.mean(1, keepdims=True), atol=1e-12)


def test_what_the_run_leaves(done):
    """Claim: a line for each query, estimator and group beside what retraining found, correlations of queries, figures."""
    lines = (done.report.folder / "group_scores.csv").read_text().splitlines()
    assert lines[0] == "queries,query,query_name,estimator,group,images,score,leave_one_out,surrogate,shapley"
    assert len(lines) == 1 + 2 * 2 * G
    assert len((done.report.folder / "correlations_of_queries.csv").read_text().splitlines()) == 1 + 2 * 2
    assert [path.name for path in done.report.figures] == ["groups_validation.png", "groups.png"]
    (note,) = done.report.notes
    assert note.startswith("4 groups (")
    assert note.endswith("four.csv) of 4 to 20 images each, 40 of 40 training images together")


def variant(cross: np.ndarray | None, values: np.ndarray) -> Variant:
    Q, N = values.shape
    scores = Scores(
        values.astype(np.float32), np.arange(Q), np.arange(N), cross=None if cross is None else cross.astype(np.float32)
    )
    return Variant(Subject("e", scores="f", effort=Effort(4, 4)), scores)


def test_intervals_are_over_draws_and_circles_where_there_are_several():
    """Claim: groups of draws and further circles widen the interval, which says so."""
    random = np.random.default_rng(0)
    cross = random.normal(size=(3, 3, 2, 6))
    given, plain = variant(cross, cross.mean((0, 1))), variant(None, cross.mean((0, 1)))
    circles, members = random.normal(size=(3, 2, 6)), np.eye(6)
    widths = []
    for each, of_circles in ((plain, circles[:1]), (given, circles[:1]), (plain, circles), (given, circles)):
        found = found_for_each_group("shapley", of_circles.mean(0)[None], of_circles)
        row = rows_of(found, "validation", [each], members, {}, Bootstrap(200))[0][0]
        widths.append((row.estimate.kind, row.estimate.high - row.estimate.low))
    kinds = [
        "groups",
        "groups, query draws and training draws",
        "groups and circles",
        "groups, query draws, training draws and circles",
    ]
    assert [kind for kind, _ in widths] == [f"confidence, over queries{' and ' if k == 'groups' else ', '}{k}" for k in kinds]
    assert widths[1][1] > widths[0][1]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmark.parts=[lds,luck]"], r"parts\[1\]=luck: choose from leave_one_out, lds"),
        (["benchmark.circles=0"], "circles=0"),
        (["benchmark.damping=-1"], "damping=-1"),
        (
            ["benchmark.most_models=40"],
            "most_models=40: 4 groups take up to 46 models .10 for leave_one_out, 10 for subsets, 26",
        ),
        (["benchmark.subsets.groups=folder"], r"groups=folder: the names of all training images have the same folder"),
        (["benchmark.subsets.groups=duplicates"], "distance=0.02: no two training images are as near"),
    ],
)
def test_bad_settings_are_refused_before_training(overrides, said, four_groups):
    """Claim: the message names the setting and says what to do."""
    with pytest.raises((FieldError, InstantiationException)) as error:
        _nodes(four_groups, *overrides)
    found = error.value if isinstance(error.value, FieldError) else error.value.__cause__
    assert re.search(said, str(found))


def _nodes(*overrides: str) -> list[Any]:
    experiment, benchmark, estimators = built(*overrides)
    return benchmark.nodes(experiment, estimators)


def test_the_plan_counts_all_retrained_models(done, tmp_path):
    """Claim: those of equal groups and steps once, whatever the part; parts that are left out train nothing."""
    models = {node.model.fingerprint for node in done.nodes if isinstance(node, Measured)}
    assert models_on_disk(missing(done.nodes, Store(tmp_path))).number == len(models) < 2 * (5 + 5 + 13)
    some = built(f"benchmark.subsets.groups={done.benchmark.subsets.groups}", "benchmark.parts=[surrogate]")
    assert len([node for node in some[1].nodes(some[0], {}) if isinstance(node, Measured)]) == 2 * 5


@pytest.mark.slow
def test_a_run_prints_and_draws(tmp_path, four_groups):
    """Claim: from the command line, interrupted between; a second run computes nothing, and prints the same rows."""
    out = tmp_path / "out"
    settings = [*SMALL, four_groups, "estimator=raw_cos", "benchmark.compare=[random]", "workers=1", "benchmark.seeds=1",
                "benchmark.repeats=0"]  # fmt: skip
    run(tmp_path, *settings, "benchmark.parts=[lds]")
    run(tmp_path, *settings, f"hydra.run.dir={out}")
    first = rows(out)
    assert {row["metric"] for row in first} >= {"shapley_spearman_%", "group_lds_%", "leave_one_out_pearson_%"}
    assert (out / "groups_validation.png").stat().st_size > 5000
    assert "to compute" not in run(tmp_path, *settings, f"hydra.run.dir={out}")
    assert rows(out) == first
