"""Figures of the rows of a sweep."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import figures
from experiments.metrics.estimate import Estimate
from experiments.report.idle_settings import without_idle_settings
from experiments.report.row import Levels, Row, Subject
from experiments.tasks.sweep_figures import draw_sweep


def row(estimator: str, value: float, benchmark: str = "lds", metric: str = "lds_%", **swept) -> Row:
    settings = {name.replace("_", "."): setting for name, setting in swept.items()}
    estimate = Estimate(value, value - 1, value + 1)
    return Row(
        benchmark=benchmark, metric=metric, subject=Subject(estimator), estimate=estimate, queries="generated", swept=settings
    )


ROWS = [
    row(name, {"trak": 10.0 * m + n, "raw_cos": 5.0, "exact retraining": 30.0 + m}[name], draws_n=n, m=m)
    for name in ("trak", "raw_cos", "exact retraining")
    for n in (1, 2, 3)
    for m in (0, 1)
]


def test_settings_that_make_no_difference_are_left_out():
    """Claim: what depends on no setting stands once, what depends on one of two once per value of it, and the rest stays."""
    found = [(r.estimator, dict(r.swept), r.estimate.value) for r in without_idle_settings(ROWS)]
    trak = [("trak", {"draws.n": n, "m": m}, 10.0 * m + n) for n in (1, 2, 3) for m in (0, 1)]
    expected = [*trak, ("raw_cos", {}, 5.0), ("exact retraining", {"m": 0}, 30.0), ("exact retraining", {"m": 1}, 31.0)]
    assert found == expected


def test_numbers_that_nobody_could_measure_are_alike():
    """Claim: NaN in every job is one row, beside which a number in one of them is a difference."""
    nan = [row("trak", float("nan"), draws_n=n) for n in (1, 2)]
    assert [r.swept for r in without_idle_settings(nan)] == [{}]
    assert len(without_idle_settings([*nan, row("trak", 1.0, draws_n=3)])) == 3


def test_one_job_keeps_its_settings():
    """Claim: a setting with a single value is kept: without other values nothing says that it makes no difference."""
    assert [r.swept for r in without_idle_settings([row("trak", 1.0, draws_n=1)])] == [{"draws.n": 1}]


def test_curves_have_the_metrics_that_were_swept(tmp_path, monkeypatch):
    """Claim: a metric that no row has at several values of the setting has no panel."""
    drawn = []
    monkeypatch.setattr(figures, "curve", lambda rows, name: drawn.append(({r.metric for r in rows}, name)) or Figure())
    draw_sweep(tmp_path, [*ROWS, row("trak", 12.0, metric="lds_%_best_damping", m=0)], "")
    assert drawn == [({"lds_%"}, "draws.n")]


@pytest.mark.parametrize(("of_dampings", "lines"), [([60, 60, 60], 1), ([50, 60, 70], 1), ([60, 60, 60, 50, 50, 50], 2)])
def test_levels_that_differ_between_targets_are_lines_across(of_dampings, lines):
    """Claim: two ceilings at every damping, one for each target, are two lines; one that depends on the damping is a curve."""
    rows = [
        replace(row("trak", 20.0, damping=10.0 ** (k % 3), target=k // 3), levels=Levels(ceiling=ceiling))
        for k, ceiling in enumerate(of_dampings)
    ]
    axes = figures.curve(rows, "damping").axes[0]
    found = [line for line in axes.lines if line.get_linestyle() == "-."]
    assert len(found) == lines
    across = [len(set(np.asarray(line.get_ydata()))) == 1 for line in found]
    assert all(across) == (of_dampings != [50, 60, 70])


def test_a_sweep_has_bars_and_curves(tmp_path):
    """Claim: the LDS has bars, a numeric setting with three values a curve; two benchmarks have a folder each."""
    names = sorted(path.relative_to(tmp_path).name for path in draw_sweep(tmp_path, ROWS, ""))
    assert names == ["lds.png", "over_n.png"]
    two = [*ROWS, *(row("model", 1.0 * n, benchmark="timestep_losses", metric="loss", t=n) for n in (1, 2, 3))]
    paths = [str(path.relative_to(tmp_path)) for path in draw_sweep(tmp_path, two, "")]
    assert paths == ["lds/lds.png", "lds/over_n.png", "timestep_losses/over_t.png"]
    assert all((tmp_path / path).stat().st_size > 3000 for path in paths)
