"""The one comparison: estimates, levels, and which subjects are paired."""

import numpy as np
import pytest

from experiments.benchmarks.compare import compare, pairs
from experiments.metrics.bootstrap import Bootstrap
from experiments.report.row import Levels, Subject

DAMPING, DRAWS = "estimator.damping", "estimator.draws.n"


def subject(name, **settings):
    return Subject(name, {f"estimator.{setting}" if setting == "damping" else setting: v for setting, v in settings.items()})


def paired(*subjects):
    return [(subjects[a].label, subjects[b].label) for a, b in pairs(subjects)]


def test_subjects_are_paired_at_equal_settings():
    """Claim: another estimator is compared with the first one's at the same damping; without a damping, with its first."""
    kfac = [subject("kfac", damping=damping) for damping in (1e-7, 1e-5, 1e-3)]
    assert paired(*kfac, subject("trak", damping=1e-3), subject("trak", damping=1e-7), subject("raw_cos")) == [
        ("kfac damping=0.001", "trak damping=0.001"),
        ("kfac damping=1e-07", "trak damping=1e-07"),
        ("kfac damping=1e-07", "raw_cos"),
    ]


def test_settings_that_only_one_side_has_do_not_count():
    """Claim: kfac at several draws and dampings is paired with trak at several dampings by the damping, at the first draws."""
    kfac = [Subject("kfac", {DRAWS: n, DAMPING: damping}) for n in (4, 8) for damping in (1e-7, 1e-5)]
    trak = [Subject("trak", {DAMPING: damping}) for damping in (1e-5, 1e-7, 1.0)]
    assert pairs([*kfac, *trak]) == [(1, 4), (0, 5), (0, 6)]


def test_bins_of_timesteps_are_not_compared():
    """Claim: neither side of a difference is the scores of some timesteps only."""
    bins = [{"query_bin": bin, "train_bin": "all"} for bin in ("1-500", "all")]
    assert pairs([Subject(name, settings) for name in ("kfac", "tracin") for settings in bins]) == [(1, 3)]
    assert pairs([Subject("kfac", {"query_bin": "1-500"}), Subject("tracin")]) == []
    assert pairs([]) == []


def test_rows_have_estimates_levels_and_paired_differences():
    """Claim: a row for each subject with its levels and facts; a difference has the facts of all, no levels, and both sides."""
    values = np.random.default_rng(0).random((3, 20))
    statistics = [Bootstrap(200).mean(row) for row in values]
    subjects = [Subject("a", scores="x"), Subject("b", {"s": 1}), Subject("c")]
    rows = compare(
        subjects,
        statistics,
        benchmark="bench",
        metric="m",
        queries="validation",
        levels=[Levels(ceiling=0.1), Levels(ceiling=0.2), Levels()],
        swept={"t": 3},
        about={"k": 5},
        about_each=[{"own": 1}, {}, {}],
    )
    assert [(row.subject, row.minus) for row in rows] == [
        *((subject, None) for subject in subjects),
        (subjects[0], subjects[1]),
        (subjects[0], subjects[2]),
    ]
    assert [row.levels.ceiling for row in rows] == [0.1, 0.2, None, None, None]
    assert [row.about for row in rows] == [{"k": 5, "own": 1}, *[{"k": 5}] * 4]
    assert {(row.benchmark, row.metric, row.queries, row.settings["t"]) for row in rows} == {("bench", "m", "validation", 3)}
    assert [row.estimate.value for row in rows] == pytest.approx([*values.mean(1), *(values.mean(1)[0] - values.mean(1)[1:])])
    difference = Bootstrap(200).mean(values[0] - values[1]).estimate()
    assert (rows[3].estimate.low, rows[3].estimate.high) == pytest.approx((difference.low, difference.high))


def test_explicit_differences_replace_the_rule():
    """Claim: benchmarks with further references say which pairs they report."""
    statistics = [Bootstrap(50).mean(np.arange(4.0) + shift) for shift in (0, 1, 3)]
    subjects = [Subject("kfac"), Subject("trak"), Subject("random removal")]
    rows = compare(subjects, statistics, benchmark="b", metric="m", differences=[(1, 2)])
    assert [row.estimator for row in rows if row.minus is not None] == ["trak − random removal"]
    assert rows[-1].estimate.value == -2
