"""What intervals of several rows are called."""

from experiments.metrics.estimate import Estimate
from experiments.report.interval_kinds import common_kind, kinds_of_rows
from experiments.report.row import Row, Subject


def estimate(*axes: str) -> Estimate:
    *first, last = axes
    return Estimate(1.0, 0.5, 1.5, kind=f"confidence, over {', '.join(first)}{' and ' if first else ''}{last}")


def row(name: str, *axes: str, metric: str = "lds_%", minus: str | None = None) -> Row:
    other = None if minus is None else Subject(minus)
    return Row(benchmark="lds", metric=metric, subject=Subject(name), minus=other, estimate=estimate(*axes))


def test_a_figure_says_what_all_and_what_some_intervals_are_over():
    """Claim: what all have in common, then what only some have; one kind keeps its name."""
    both, query, plain = ("a", "b", "c", "d"), ("a", "b", "c"), ("a", "b")
    assert common_kind([estimate(*plain), estimate(*plain)]) == "95 % confidence, over a and b"
    assert (
        common_kind([estimate(*axes) for axes in (both, query, plain)]) == "95 % confidence, over a and b, some also over c and d"
    )
    assert common_kind([estimate("a"), estimate("b")]) == "95 % confidence, over a or b"
    assert common_kind([estimate("a"), Estimate(1, 0, 2, kind="range of sets")]) == "95 % confidence, over a; 95 % range of sets"
    assert common_kind([Estimate(1.0)]) is None


def test_a_table_says_which_rows_have_which_intervals():
    """Claim: kinds with more axes name their rows by metric; the one with the fewest is that of all others."""
    rows = [
        row("kfac", "a", "b", "c"),
        row("trak", "a", "b", "c"),
        row("kfac", "a", "b", "c", minus="trak"),
        row("kfac", "a", "b", metric="lds_%_best"),
        row("raw", "a", "b"),
    ]
    assert kinds_of_rows(rows) == (
        "95 % confidence, over a, b and c (lds %: kfac, trak, differences); 95 % confidence, over a and b (all others)"
    )
    assert kinds_of_rows(rows[:2]) == "95 % confidence, over a, b and c"
    assert kinds_of_rows([]) is None
