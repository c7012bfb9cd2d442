"""The verdict: each part against its definition, what is shared, the warning, and the table of 80 columns."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from rich.console import Console
from scipy.stats import spearmanr

from attribution.checks import FieldError
from attribution.execution import Execution
from attribution.models.trained import Trained
from attribution.nodes import InMemory
from attribution.retraining.modes import Together
from attribution.retraining.selection import Selection
from experiments import figures
from experiments.benchmarks import verdict_parts
from experiments.benchmarks.disagreement import disagreements
from experiments.benchmarks.verdict_table import figure_titles, table_titles, verdict_table
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.estimate import Estimate
from experiments.metrics.ranking import top_k
from experiments.models.explained import Explained
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained
from experiments.models.trained import TrainedModel
from experiments.report.report import Report
from experiments.report.row import Effort, Levels, Row, Subject
from experiments.store.plan import missing
from experiments.store.store import Store
from experiments.tasks.composition import experiment_of
from experiments.tasks.plan import models_on_disk
from tests.experiments.tasks.test_cli import FINAL, rows, run
from tests.experiments.tasks.test_configs import composed

COMMON = [*FINAL, "trainer.steps=8", "benchmark.subsets.count=5", "benchmark.repeats=3", "benchmark.draws.n=4",
          "benchmark.queries.validation.n=2", "benchmark.resamples=60"]  # fmt: skip
SMALL = [*COMMON, "benchmark=verdict", "benchmark.varied.count=4", "benchmark.budget=100", "benchmark.k=[4]", "benchmark.kept=10",
         "benchmark.random=2"]  # fmt: skip
ESTIMATORS = ("raw_cos", "random")


def built(*overrides: str) -> tuple[Any, Any, dict[str, Any]]:
    """Experiment, benchmark and estimators of a small configuration."""
    config = composed(*overrides)
    estimators = {name: instantiate(composed(*overrides, f"estimator={name}").estimator, _convert_="all") for name in ESTIMATORS}
    return experiment_of(config), instantiate(config.benchmark, _convert_="all"), estimators


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All parts, evaluated once in memory."""
    experiment, benchmark, estimators = built(*SMALL)
    get, report = InMemory(), Report(tmp_path_factory.mktemp("verdict"), data="digits", seed=0)
    nodes = benchmark.nodes(experiment, estimators)
    get.many([*(node.model for node in nodes if isinstance(node, Measured))])  # together
    get.many([model for node in nodes[-2:] for model in node.truth(node.sets(get)).models()])
    benchmark.evaluate(experiment, estimators, get, report)
    queries = benchmark.queries["validation"].node(experiment)
    scores = {name: get(e.scores(experiment.trained, experiment.train, queries)).values for name, e in estimators.items()}
    return SimpleNamespace(
        experiment=experiment, benchmark=benchmark, estimators=estimators, get=get, report=report, nodes=nodes, queries=queries,
        scores=scores, rows={(row.metric, row.estimator): row for row in report.rows},
    )  # fmt: skip


def measured(done: Any, selection: Selection, seed: int, steps: int) -> np.ndarray:
    """The measurement of every query under a model trained on ``selection``, ``[Q]``."""
    b, e = done.benchmark, done.experiment
    mode = b.mode.choose(e.training.outline, e.shape, e.trainer)
    model = Retrained.of(e.training, selection, seed, steps, mode, e.execution)
    node = Measured(model=model, images=done.queries, measure=b.measurement, draws=b.draws, execution=e.execution)
    return done.get(node).values


@pytest.mark.slow
def test_the_lds_is_that_of_its_benchmark(done, tmp_path):
    """Claim: at the same settings, the same rows to the last bit from the same nodes, also for the ceiling."""
    experiment, lds, estimators = built(*COMMON, "queries@benchmark.queries.generated=none", "benchmark.rows=1")
    report = Report(tmp_path, data="digits", seed=0)
    lds.evaluate(experiment, estimators, done.get, report)
    of_lds = {(row.metric, row.estimator): row for row in report.rows if row.metric == "lds_%"}
    for key in [("lds_%", name) for name in (*ESTIMATORS, "noise ceiling", "raw_cos − random")]:
        assert (done.rows[key].estimate, done.rows[key].levels) == (of_lds[key].estimate, of_lds[key].levels)
    models = {model.fingerprint for model in lds.truth(experiment).models()}
    assert models == {model.fingerprint for model in done.benchmark.truth(done.experiment).models()}
    assert {node.fingerprint for node in lds.nodes(experiment, {})} <= {node.fingerprint for node in done.nodes}


def test_deletion_trains_without_the_top_images_of_each_query(done):
    """Claim: Δ is the measurement without the top k minus that with all images, of the same seed, in per cent of its mean."""
    N, everything = 40, Selection(np.arange(40))
    full = np.stack([measured(done, everything, seed, 8) for seed in (1, 2)])  # [K, Q]
    for name, scores in done.scores.items():
        top = top_k(scores, 4)
        changes = [[measured(done, Selection.without(top[q], N), 1 + s, 8)[q] - full[s, q] for q in range(2)] for s in range(2)]
        assert done.rows["deletion_%@4", name].estimate.value == pytest.approx(100 * np.mean(changes) / full.mean())
    random = done.rows["deletion_%@4", "random removal"]
    assert done.rows["deletion_%@4", "raw_cos"].levels.random == pytest.approx(random.estimate.value)
    assert ("deletion_%@4", "raw_cos − random removal") in done.rows


def test_insertion_trains_on_the_top_images_only(done):
    """Claim: the gain is the mean measurement of random sets of that size minus that of a query's own, with as many epochs."""
    (removals,) = [node for node in done.nodes if getattr(node, "only", False)]
    assert removals.steps == 2  # a quarter of the images, and of the steps
    sets = removals.sets(done.get)
    assert all(len(rows) == 10 for rows in sets.rows)
    top = top_k(done.scores["raw_cos"], 10)
    own = [[measured(done, Selection(np.sort(top[q])), seed, 2)[q] for q in range(2)] for seed in (1, 2)]
    random = [[measured(done, Selection(sets.rows[r]), seed, 2) for r in sets.random[0]] for seed in (1, 2)]
    expected = 100 * (np.mean(random) - np.mean(own)) / np.mean(random)
    assert done.rows["insertion_%@10", "raw_cos"].estimate.value == pytest.approx(expected)
    removed = done.get(removals).removed
    assert [sorted(np.flatnonzero(~lacking)) for lacking in removed] == [rows.tolist() for rows in sets.rows]


def test_equal_removals_are_trained_once(done):
    """Claim: a set that two estimators name is one set; what is regenerated is no part of the identity."""
    removals = done.nodes[-2]
    twice = replace(removals, rankings=[*removals.rankings, *removals.rankings])
    assert len(twice.sets(done.get).rows) == len(removals.sets(done.get).rows)
    assert not removals.regenerate
    assert removals.fingerprint == replace(removals, regenerate=True).fingerprint
    assert removals.fingerprint != replace(removals, only=True).fingerprint


def test_counting_images_is_an_estimator_on_subsets_of_varied_size(done):
    """Claim: the row τ = 1 is the correlation of the number of removed images with the measurement; what is left is beside it."""
    varied = replace(done.benchmark, subsets=done.benchmark.varied, seeds=1, repeats=0)
    truth = varied.truth(done.experiment)
    target = truth.measured(truth.nodes(varied.measurement, done.queries), done.get)[0]  # [Q, M]
    removed = varied.subsets.removed(done.get(done.experiment.train)).sum(1)
    assert len(set(removed)) == 4
    expected = 100 * np.mean([spearmanr(removed, of_query)[0] for of_query in target])  # pyright: ignore
    assert done.rows["lds_%_of_varied_sizes", "τ = 1"].estimate.value == pytest.approx(expected)
    assert ("lds_%_without_size", "raw_cos") in done.rows
    assert ("lds_%_of_varied_sizes", "raw_cos − τ = 1") in done.rows


def test_copies_of_queries_are_found_by_their_pixels(done):
    """Claim: pixels find all near-copies of each query; random scores do not depend on a training."""
    assert done.rows["planted_average_precision", "raw_cos"].estimate.value == 1
    assert done.rows["planted_recall@4", "raw_cos"].estimate.value == 1
    assert done.rows["planted_recall@4", "random"].levels == Levels(random=0.1, maximum=1.0)
    assert done.rows["spearman_between_trainings", "random"].estimate.value == pytest.approx(1)
    second = done.benchmark._further(done.experiment)["consistency"]
    assert second.fingerprint == done.experiment.training.member(10_000).fingerprint


def test_what_the_run_leaves(done):
    """Claim: a value of each query and variant in the CSV, one figure, the steps of training, a table in 80 columns."""
    lines = (done.report.folder / "verdict_of_queries.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 2
    assert {"delta_measurement@4", "lds_%", "planted_rank_1", "insertion_gain@10"} <= set(lines[0].split(","))
    assert [path.name for path in done.report.figures] == ["verdict.png"]
    (note,) = [note for note in done.report.notes if note.startswith("training: ")]
    models = {(selection.description()["rows"], seed, steps) for selection, seed, steps in trainings(done)}
    steps = sum(steps for *_, steps in models) + 2 * 8
    assert note.startswith(f"training: {steps:,} steps, {steps / (8 * 4):.1f} times the 32 of the LDS")
    text = io.StringIO()
    done.report.close(Console(file=text, width=80, force_terminal=True, color_system=None))
    table = text.getvalue().partition("made by")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "raw_cos" in table
    assert "τ = 1" in table


def trainings(done: Any) -> list[tuple[Selection, int, int]]:
    """Selection, seed and steps of every retrained model, by hand."""
    b, e, train = done.benchmark, done.experiment, done.get(done.experiment.train)
    halves, varied = b.subsets.selections(train), b.varied.selections(train)
    found = [*((s, 1, 4) for s in (*halves, *varied)), *((s, 2, 4) for s in halves[:3])]
    for node, steps in ((done.nodes[-2], 8), (done.nodes[-1], 2)):
        sets = node.sets(done.get).rows
        found += [(Selection(r) if node.only else Selection.without(r, 40), seed, steps) for r in sets for seed in (1, 2)]
    return [(s, seed, steps) for s, seed, steps in found if e.train.count == 40]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["benchmark.parts=[lds,luck]"], r"parts\[1\]=luck: choose from lds, deletion"),
        (["benchmark.parts=[]"], "at least one value"),
        (["benchmark.k=[40]"], r"k\[0\]=40: must be a whole number, within 1..39"),
        (["benchmark.kept=40"], "kept=40: must be a whole number, within 1..39"),
        (["benchmark.copies=11"], "22 copies would replace more than half of 40"),
        (["queries@benchmark.queries.validation=train"], "copies of training images are no test"),
        (["benchmark.budget=3"], r"training takes up to .* times the 32 of the LDS: compare fewer"),
    ],
)
def test_bad_settings_are_refused_before_training(overrides, said):
    """Claim: the message names the setting and says what to do."""

    def nodes() -> None:
        experiment, benchmark, estimators = built(*SMALL, *overrides)
        benchmark.nodes(experiment, estimators)

    with pytest.raises((FieldError, InstantiationException)) as error:
        nodes()
    found = error.value if isinstance(error.value, FieldError) else error.value.__cause__
    assert re.search(said, str(found))


def test_default_sizes_stay_within_ten_times_the_steps_of_the_lds():
    """Claim: with the default estimators, at digits' size."""
    experiment, benchmark, estimators = built("benchmark=verdict", "hardware.accelerator=cpu", "execution.device=cpu")
    four = {f"{name} {i}": estimators[name] for name in ESTIMATORS for i in range(2)}
    assert benchmark.budget == 10
    assert benchmark.nodes(experiment, four)
    assert len(composed("benchmark=verdict").benchmark.compare) == 3


def test_parts_can_be_left_out():
    """Claim: nothing of the others is trained."""
    experiment, benchmark, estimators = built(*SMALL, "benchmark.parts=[consistency]")
    nodes = benchmark.nodes(experiment, estimators)
    assert len(nodes) == 2 * 2  # the scores under two training runs
    assert len({node.fingerprint for node in nodes}) == 2  # here they do not depend on the model


class Elsewhere(Explained):
    """A model without a training that could be repeated."""

    def of(self, training: TrainedModel) -> Trained:
        return Retrained.of(training, Selection(np.arange(40)), 1, 2, Together(group=1), Execution(device="cpu"))


def test_a_given_model_has_no_second_training():
    """Claim: consistency is refused for it; planted copies train a model by the settings of the run, as the LDS does."""
    experiment, benchmark, estimators = built(*SMALL)
    given = replace(experiment, explained=Elsewhere())
    with pytest.raises(FieldError, match="it is given: leave this part out"):
        benchmark.nodes(given, estimators)
    assert replace(benchmark, parts=["lds", "planted"]).nodes(given, estimators)


def difference(metric: str, value: float, error: float, first: str = "a", second: str = "b") -> Row:
    """A row about a − b."""
    estimate = Estimate(value, value - error, value + error, kind="confidence, over queries")
    return Row(
        benchmark="verdict", metric=metric, queries="validation", subject=Subject(first), minus=Subject(second), estimate=estimate
    )


def test_warnings_name_pairs_with_opposite_orders():
    """Claim: only opposite signs count; clear cases come first; where both intervals hold 0 there is a note instead."""
    found = [
        *(difference("lds_%", 3.0, 4.0), difference("deletion_%@5", -2.0, 1.0)),
        *(difference("lds_%", 3.0, 1.0, "a", "c"), difference("deletion_%@5", -2.0, 1.0, "a", "c")),
        *(difference("lds_%", 3.0, 4.0, "b", "c"), difference("deletion_%@5", -2.0, 3.0, "b", "c")),
        *(difference("lds_%", 3.0, 1.0, "c", "d"), difference("deletion_%@5", 2.0, 1.0, "c", "d")),
    ]
    warnings, notes = disagreements(found, [5])
    assert warnings == [
        "LDS and deletion disagree about a − c (validation queries), both beyond noise: "
        "LDS +3.000 [2.000, 4.000] points, Δ without the top 5 -2.000 [-3.000, -1.000] %",
        "LDS and deletion disagree about a − b (validation queries), one of them within noise: "
        "LDS +3.000 [-1.000, 7.000] points, Δ without the top 5 -2.000 [-3.000, -1.000] %",
    ]
    assert notes == ["LDS and deletion of the top 5 (validation queries) order these pairs differently, both within noise: b − c"]
    assert disagreements(found, [6]) == ([], [])


METRICS = (
    "lds_%", "lds_%_of_ceiling", "deletion_%@13", "insertion_%@64", "lds_%_of_varied_sizes", "lds_%_without_size",
    "planted_recall@13", "planted_average_precision", "spearman_between_trainings",
)  # fmt: skip


def level(metric: str, name: str, value: float) -> Row:
    """A row about one estimator."""
    scale = 1 if "%" in metric else 0.01
    estimate = Estimate(scale * value, -99 * scale, scale * 99, kind="confidence, over queries")
    return Row(
        benchmark="verdict", metric=metric, queries="validation", subject=Subject(name, effort=Effort(250, 32, 2.5e6)),
        estimate=estimate, data="digits", levels=Levels(random=0.0),
    )  # fmt: skip


def test_the_table_fits_80_columns():
    """Claim: with all columns and wide intervals, none of which is broken; estimators of a warning are marked."""
    found = [level(metric, name, -12.3) for name in ("kfac", "window_trak", "random removal") for metric in METRICS]
    warning = "LDS and deletion disagree about kfac − raw (validation queries), both beyond noise"
    text = io.StringIO()
    Console(file=text, width=80).print(verdict_table(found, [warning]))
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    assert max(map(len, lines)) <= 80
    assert sum(line.count("-99…99") for line in lines) == 3 * 8
    assert any(re.match(r"kfac !\s", line) for line in lines)
    assert not any("!" in line for line in lines if "trak" in line)
    assert "2.5M" in text.getvalue()
    assert list(table_titles(found)) == list(METRICS[1:])


def test_the_figure_has_a_panel_for_each_metric():
    """Claim: estimators from top to bottom, their values at the place that the axis says, intervals and levels as lines."""
    found = [level(metric, name, 30.0 + i) for metric in METRICS for i, name in enumerate(("kfac", "trak"))]
    figure = figures.panels([*found, difference("lds_%", 1.0, 1.0)], figure_titles(found))
    assert len(figure.axes) == 8
    first = figure.axes[0]
    assert [tick.get_text() for tick in first.get_yticklabels()] == ["trak", "kfac"]
    dots = [line for line in first.lines if line.get_marker() == "o"]
    assert [(dot.get_xdata(), dot.get_ydata()) for dot in dots] == [([30.0], [1]), ([31.0], [0])]
    assert not figures.panels([], {}).axes


def test_single_queries_have_their_values():
    """Claim: a part without random variation between queries has a value for each."""
    scores = np.array([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]], np.float32)
    variant: Any = SimpleNamespace(subject=Subject("a"), scores=SimpleNamespace(values=scores))
    found = verdict_parts.planted("x", [variant], [variant], np.array([[0, 3], [0, 3]]), 2, Bootstrap(10))
    assert [column[0].tolist() for column in found.of_queries.values()] == [[1, 1], [4, 4], [0.75, 0.75]]
    assert found.rows[0].estimate.value == 0.5  # recall of two copies in the top two


def test_the_plan_counts_all_retrained_models(done, tmp_path):
    """Claim: those of subsets, which are known, and at most those without or on top images, which the scores decide."""
    lacking = missing(done.nodes, Store(tmp_path))
    assert models_on_disk(lacking).number == (5 + 3) + 4 + 2 * (1 + 2 + 2 * 2) + 2 * (2 + 2 * 2)


@pytest.mark.slow
def test_a_run_prints_and_draws(tmp_path):
    """Claim: from the command line, with the plan beforehand; a second run computes nothing, and prints the same rows."""
    out = tmp_path / "out"
    settings = [*SMALL, "estimator=raw_cos", "benchmark.compare=[random]", "workers=1", "benchmark.parts=[lds,insertion,planted]"]
    planned = run(tmp_path, *settings, "task=plan")
    assert "retraining without removed images" in planned
    assert "planted images" in planned
    run(tmp_path, *settings, f"hydra.run.dir={out}")
    first = rows(out)
    assert (out / "verdict.png").stat().st_size > 5000
    page = (out / "index.html").read_text()
    assert "planted average precision" in page
    assert "to compute" not in run(tmp_path, *settings, f"hydra.run.dir={out}")
    assert rows(out) == first
