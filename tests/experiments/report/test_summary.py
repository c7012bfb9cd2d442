"""Names of a run's numbers."""

import math
from dataclasses import replace

from experiments.metrics.estimate import Estimate
from experiments.report.row import Levels, Row, Subject
from experiments.report.summary import Curve, curves, named, summary

LDS = Row(
    benchmark="lds", metric="lds_%", queries="validation", subject=Subject("kfac"),
    estimate=Estimate(50.0, 45.0, 55.0), levels=Levels(ceiling=75.0), swept={"benchmark.rows": 2},
)  # fmt: skip
TRAK = replace(LDS, subject=Subject("trak"), estimate=Estimate(30.0, 25.0, 35.0))


def test_the_chosen_estimator_has_names_without_its_own():
    """Claim: the same number has the same name for every chosen estimator, with interval, ceiling and published number."""
    expected = {"lds/validation": 50.0, "lds/validation/low": 45.0, "lds/validation/high": 55.0, "lds/validation/ceiling": 75.0}
    assert summary([LDS]) == expected
    assert summary([replace(LDS, subject=Subject("trak"))], "trak") == expected
    assert summary([replace(LDS, published=60.0)])["lds/validation/published"] == 60.0


def test_other_estimators_are_compared():
    """Claim: others, references and differences stand under compare/, whichever comes first."""
    retraining = replace(LDS, subject=Subject("exact retraining"), estimate=Estimate(60.0))
    difference = replace(LDS, minus=Subject("trak"), estimate=Estimate(20.0, 10.0, 30.0), levels=Levels())
    numbers = summary([TRAK, LDS, difference, retraining], "kfac")
    assert numbers["lds/validation"] == 50.0
    assert numbers["compare/trak/lds/validation"] == 30.0
    assert numbers["compare/trak/lds/validation/high"] == 35.0
    assert "compare/trak/lds/validation/ceiling" not in numbers
    assert numbers["compare/trak/lds_difference/validation"] == 20.0
    assert numbers["compare/exact_retraining/lds/validation"] == 60.0
    assert summary([TRAK], "kfac") == summary([TRAK])  # rows about no chosen estimator, such as those of task=train


def test_settings_of_the_run_are_no_part_of_names():
    """Claim: only settings in which the rows of one run differ are part of names, for each estimator on its own."""
    low = replace(LDS, subject=Subject("kfac", {"estimator.damping": 1e-9}))
    high = replace(LDS, subject=Subject("kfac", {"estimator.damping": 1e-7}))
    assert list(named([low])) == ["lds/validation"]
    assert list(named([low, high, TRAK])) == [
        "lds/validation/damping=1e-09",
        "lds/validation/damping=1e-07",
        "compare/trak/lds/validation",
    ]


def test_names_of_other_benchmarks_metrics_and_queries():
    """Claim: kinds of queries, metrics and benchmarks do not overwrite each other, and no name has a space or a stray slash."""
    rows = [LDS, replace(LDS, queries="generated"), replace(LDS, metric="a / b"), replace(LDS, benchmark="other", queries=None)]
    assert list(named(rows)) == ["lds/validation", "lds/generated", "a___b/validation", "other/lds"]


def test_bins_of_timesteps():
    """Claim: the scores over all timesteps keep the plain name beside those of bins."""
    whole = replace(LDS, subject=Subject("kfac", {"query_bin": "all", "train_bin": "all"}))
    part = replace(LDS, subject=Subject("kfac", {"query_bin": "1–500", "train_bin": "all"}))
    assert list(named([whole, part])) == ["lds/validation", "lds/validation/query_bin=1–500"]


def test_unknown_numbers_are_left_out():
    """Claim: a number that is not known has no name."""
    assert summary([replace(LDS, estimate=Estimate(math.nan), levels=Levels())]) == {}


def test_curves_over_two_settings():
    """Claim: a run with two swept settings has a curve over each at every value of the other; words have none."""
    rows = [
        replace(
            LDS, subject=Subject("kfac", {"estimator.damping": d, "estimator.draws.n": n, "kind": "x"}), estimate=Estimate(d + n)
        )
        for d in (2.0, 1.0)
        for n in (16, 64)
    ]
    found = {(curve.axis, curve.name): [(x, y) for x, y, *_ in curve.points] for curve in curves(rows)}
    assert found[("damping", "lds/validation/draws.n=16")] == [(1.0, 17.0), (2.0, 18.0)]
    assert found[("draws.n", "lds/validation/damping=2.0")] == [(16.0, 18.0), (64.0, 66.0)]
    assert len(found) == 4
    assert curves([LDS]) == []
    assert Curve("a", "b").points == []
