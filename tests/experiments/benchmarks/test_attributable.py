"""Can a query be attributed? Training sets, groups, effects by their definition, verdicts, and what a run leaves."""

import csv
import io
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hydra.errors import InstantiationException
from rich.console import Console

from attribution.checks import FieldError
from attribution.nodes import InMemory
from attribution.retraining.selection import Selection
from experiments import figures
from experiments.benchmarks import attributable_parts as parts
from experiments.benchmarks.attributable_table import attributable_table
from experiments.benchmarks.removals import Removals
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.ranking import top_k
from experiments.models.measured import Measured
from experiments.models.retrained import Retrained
from experiments.report.report import Report
from experiments.report.row import Subject
from experiments.store.plan import missing
from experiments.store.store import Store
from experiments.tasks.plan import models_on_disk
from tests.experiments.benchmarks.test_verdict import Elsewhere, built
from tests.experiments.tasks.test_cli import FINAL, rows, run

SMALL = [*FINAL, "trainer.steps=8", "benchmark=attributable", "benchmark.draws.n=4", "benchmark.queries.validation.n=2",
         "benchmark.resamples=60", "benchmark.training_sizes=[1,0.5]", "benchmark.sizes=[8,0.1]", "benchmark.seeds=2",
         "benchmark.random=3"]  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A small run in memory: 20 and 40 images, groups of 2 (or 4) and 8 images."""
    experiment, benchmark, estimators = built(*SMALL)
    get, report = InMemory(), Report(tmp_path_factory.mktemp("attributable"), data="digits", seed=0)
    nodes = benchmark.nodes(experiment, estimators)
    removals = [node for node in nodes if isinstance(node, Removals)]
    get.many([model for node in removals for model in node.truth(node.sets(get)).models()])  # together
    benchmark.evaluate(experiment, estimators, get, report)
    with (report.folder / "attributable_queries.csv").open() as file:
        lines = {
            (line["estimator"], int(line["training_images"]), int(line["removed"]), place): line
            for line in csv.DictReader(file)
            for place in [int(line["query"])]
        }
    queries = benchmark.queries["validation"].node(experiment)
    return SimpleNamespace(
        experiment=experiment, benchmark=benchmark, estimators=estimators, get=get, report=report, nodes=nodes, removals=removals,
        queries=queries, lines=lines,
    )  # fmt: skip


@pytest.mark.slow
def test_training_sets_contain_each_other_and_end_at_the_run_s_own(done):
    """Claim: a random half, then all images, with the explained model of the run; as many epochs, or the steps that are set."""
    half, everything = done.removals
    assert everything.trained.fingerprint == done.experiment.trained.fingerprint
    assert everything.trained.recipe.steps == 8
    assert (half.trained.data.count, half.trained.recipe.steps) == (20, 4)
    assert half.steps == 4
    assert len(set(half.trained.data.rows)) == 20
    quarter = done.benchmark._training(done.experiment, 10).data.rows
    assert set(quarter) < set(half.trained.data.rows)
    assert replace(done.benchmark, steps=6)._training(done.experiment, 20).recipe.steps == 6


def test_effects_are_those_of_retraining_without_the_top_images(done):
    """Claim: the measurement without a query's top group, as the model of this training set ranks it, minus that without the random
    groups of its size; each a mean over the same seeds.
    """
    for removals, sizes in zip(done.removals, ((2, 8), (4, 8)), strict=True):
        N, sets = removals.trained.data.count, removals.sets(done.get)
        scores = done.get(done.estimators["raw_cos"].scores(removals.trained, removals.trained.data, done.queries)).values
        for f, k in enumerate(sizes):
            random = np.mean([measured(done, removals, sets.rows[index]) for index in sets.random[f]], 0)  # [Q]
            for q, query in enumerate(done.get(done.queries).index):
                line = done.lines["raw_cos", N, k, query]
                own = measured(done, removals, top_k(scores, k)[q])[q]
                before = measured(done, removals, np.zeros(0, np.int64))[q]
                assert float(line["effect"]) == pytest.approx(own - random[q])
                assert float(line["rise"]) == pytest.approx(own - before)
                assert float(line["measurement"]) == pytest.approx(before)


def measured(done: Any, removals: Removals, removed: np.ndarray) -> np.ndarray:
    """The measurement of every query without ``removed``, the mean over two seeds, ``[Q]``."""
    b, e, N = done.benchmark, done.experiment, removals.trained.data.count
    found = []
    for seed in (1, 2):
        selection = Selection.without(np.sort(removed), N)
        model = Retrained.of(removals.trained, selection, seed, removals.trained.recipe.steps, removals.mode, e.execution)
        node = Measured(model=model, images=done.queries, measure=b.measurement, draws=b.draws, execution=e.execution)
        found.append(done.get(node).values)
    return np.mean(found, 0)


def test_what_the_run_leaves(done):
    """Claim: a line for each query, estimator, training size and group size; rows with intervals; figures; a sentence each."""
    assert len(done.lines) == 2 * 2 * 2 * 2
    assert {line["verdict"] for line in done.lines.values()} <= {
        f"attributable to its top {k} images" for k in (2, 4, 8)
    } | {"not attributable to its top 8 images or fewer"}  # fmt: skip
    found = {(row.metric, row.estimator, row.swept["images"]): row for row in done.report.rows}
    for name in ("raw_cos", "random", "random group"):
        for N in (20, 40):
            assert found["attributable_%@10%", name, N].levels.random is None  # below 5 %, as there are two sizes
    assert len(found) == len(done.report.rows)
    assert found["effect_%@8", "raw_cos", 40].estimate.has_interval
    assert found["effect_%@8", "raw_cos", 40].about["k"] == 8
    names = {path.name for path in done.report.figures}
    assert names == {"effects_validation_raw_cos.png", "effects_validation_random.png", "attributable.png"}
    assert len(done.report.notes) == 2 * 2 + 1
    assert re.match(r"raw_cos, 20 training images: \d of 2 validation queries are attributable", done.report.notes[0])
    text = io.StringIO()
    done.report.close(Console(file=text, width=80, force_terminal=True, color_system=None))
    table = text.getvalue().partition("made by")[0]
    assert max(map(len, table.splitlines())) <= 80
    assert "k = 2, 8" in table


def finding(effects: list[float], sizes: tuple[int, ...] = (1, 8)) -> parts.Finding:
    """Two queries whose groups have the given effects at every size, beside random groups around 0; 16 images, two seeds."""
    random = np.tile(np.array([[-1.0, 0.0, 1.0]] * 2)[None, :, :, None], (len(sizes), 1, 1, 2))
    own = np.tile(np.array(effects)[None, :, None], (len(sizes), 1, 2))
    groups = [parts.Group(size, size, 16, 4) for size in sizes]
    variant: Any = SimpleNamespace(subject=Subject("a"), label="a")
    return parts.Finding("validation", variant, groups, own, random, np.full((2, 2), 0.5), 0.05)


def test_verdicts_are_in_words(done):
    """Claim: the smallest group that is found, or none of these sizes; with how many queries, and what random groups do."""
    found = finding([9.0, 0.0])
    assert [found.verdict(q) for q in range(2)] == [
        "attributable to its top 1 image",
        "not attributable to its top 8 images or fewer",
    ]
    first, last = parts.verdicts([found])
    assert first == (
        "a, 16 training images: 1 of 2 validation queries are attributable (1 to the top 1 image), "
        "1 not to the top 8 images or fewer"
    )
    assert last.startswith("random groups in place of a query's own pass in 0.0 % of cases (at most 5 % expected)")
    shares = [row for row in parts.rows(found, Bootstrap(50), random_groups=True) if row.metric.startswith("attributable")]
    assert [row.estimate.value for row in shares if row.subject.name == "a"] == [50, 50]
    images = done.get(done.queries)
    text = io.StringIO()
    Console(file=text, width=80).print(attributable_table([found], {"validation": images}, "digits"))
    assert re.search(rf"{images.name(0)}\s+top 1", text.getvalue())
    assert re.search(rf"{images.name(1)}\s+no", text.getvalue())


def test_the_figure_marks_what_is_attributable():
    """Claim: a panel for each training size, a line for each query, filled markers where attributable, the threshold at 1."""
    (panel,) = parts.curves([finding([9.0, 0.0])])
    figure = figures.effects("a", [panel, panel], ["one", "two"])
    axes = figure.axes[0]
    assert len(figure.axes) == 2
    filled = [
        line.get_markerfacecolor() != "white" for line in axes.lines if str(line.get_marker()) in "os" and np.size(line.get_xdata())
    ]
    assert filled == [True, True, False, False]
    assert any(np.all(np.asarray(line.get_ydata()) == 1) for line in axes.lines)


def test_the_plan_counts_the_models(done, tmp_path):
    """Claim: at most these are retrained; the budget counts them and the explained ones."""
    lacking = missing(done.nodes, Store(tmp_path))
    number = 2 * 2 * (1 + 2 * (3 + 2 * 2))
    assert models_on_disk(lacking).number == number
    replace(done.benchmark, budget=number + 2).nodes(done.experiment, done.estimators)
    with pytest.raises(FieldError, match=f"up to {number + 2} models would be trained: compare fewer"):
        replace(done.benchmark, budget=number + 1).nodes(done.experiment, done.estimators)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("benchmark.seeds=1", "seeds=1: give at least 2 training runs"),
        ("benchmark.random=2", "random=2: give at least 3 random groups"),
        ("benchmark.significance=0", "significance=0.*: must be above 0"),
        ("benchmark.significance=0.5", "significance=0.5: must be a number"),
        ("benchmark.sizes=[0.1,20]", r"sizes\[1\]=20: is 20 of 20 training images"),
        ("benchmark.sizes=[0.01]", r"sizes\[0\]=0.01: is 0 of 20 training images: give shares below 1"),
        ("benchmark.sizes=[1.5]", r"sizes\[0\]=1.5: is 1.5 of 20"),
        ("benchmark.training_sizes=[1,41]", r"training_sizes\[1\]=41: is 41 of 40 training images"),
        ("benchmark.training_sizes=[0.01]", r"training_sizes\[0\]=0.01: is 0 of 40"),
        ("benchmark.training_sizes=[]", "at least one value"),
    ],
)
def test_bad_settings_are_refused_before_training(override, said):
    """Claim: the message names the setting and says what to do."""

    def nodes() -> None:
        experiment, benchmark, estimators = built(*SMALL, override)
        benchmark.nodes(experiment, estimators)

    with pytest.raises((FieldError, InstantiationException)) as error:
        nodes()
    found = error.value if isinstance(error.value, FieldError) else error.value.__cause__
    assert re.search(said, str(found))


def test_a_given_model_is_not_trained_on_fewer_images():
    """Claim: it can be attributed at the number of images that it was trained on only."""
    experiment, benchmark, estimators = built(*SMALL)
    given = replace(experiment, explained=Elsewhere())
    with pytest.raises(FieldError, match="is not trained on fewer images"):
        benchmark.nodes(given, estimators)
    assert replace(benchmark, training_sizes=[1]).nodes(given, estimators)


def test_default_sizes_stay_within_ten_times_the_steps_of_the_lds():
    """Claim: with one estimator, at digits' size; the budget is not exceeded."""
    experiment, benchmark, estimators = built("benchmark=attributable", "hardware.accelerator=cpu", "execution.device=cpu")
    nodes = benchmark.nodes(experiment, {"random": estimators["random"]})
    steps = 0
    for node in nodes:
        if isinstance(node, Removals):
            steps += node.most_retrained()[1] * node.steps + node.trained.recipe.steps
    assert steps <= 10 * (36 + 12) * 250


@pytest.mark.slow
def test_a_run_prints_and_draws(tmp_path):
    """Claim: from the command line; a second run computes nothing, and prints the same rows."""
    out = tmp_path / "out"
    settings = [*SMALL, "estimator=raw_cos", "benchmark.compare=[]", "workers=1", "benchmark.training_sizes=[0.5]"]
    run(tmp_path, *settings, f"hydra.run.dir={out}")
    first = rows(out)
    page = (out / "index.html").read_text()
    assert "random group" in page
    assert "to compute" not in run(tmp_path, *settings, f"hydra.run.dir={out}")
    assert rows(out) == first
