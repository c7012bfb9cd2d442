"""Published numbers beside measured ones."""

import io

import pytest
from rich.console import Console

from experiments.report.published import Published
from experiments.report.report import Report, read_rows
from experiments.report.row import Estimate, Row, Subject

NUMBERS = [
    Published(metric="lds_%", estimator="kfac", queries="generated", data="cifar2", value=21.5, source="figure 2a"),
    Published(metric="lds_%", estimator="trak", settings={"estimator.draws.n": 10}, value=5.78, source="the poster"),
]


def row(estimator: str, queries: str | None = None, minus: Subject | None = None, **settings) -> Row:
    subject = Subject(estimator, {name.replace("_", "."): value for name, value in settings.items()})
    return Row(benchmark="lds", metric="lds_%", subject=subject, minus=minus, queries=queries, estimate=Estimate(30.0, 20.0, 40.0))


@pytest.mark.parametrize(
    ("measured", "value"),
    [
        (row("kfac", "generated"), 21.5),
        (row("kfac", "validation"), None),  # other queries
        (row("trak", "validation", estimator_draws_n=10), 5.78),
        (row("trak", "validation", estimator_draws_n="10"), 5.78),
        (row("trak", "validation", estimator_draws_n=100), None),  # another setting
        (row("trak", "validation"), None),
        (row("kfac", "generated", minus=Subject("trak")), None),  # a difference
    ],
)
def test_a_row_has_the_number_that_is_published_in_its_place(tmp_path, measured, value):
    """Claim: metric, estimator, kind of queries, data and settings must agree, and the number survives the file."""
    report = Report(tmp_path, data="digits", seed=0, role="cifar2", published=NUMBERS, experiment="kfac/fig2a", scale="digits")
    added = report.add([measured])
    report.close(Console(file=io.StringIO()))
    read = read_rows(tmp_path)
    assert added[0].published == value
    assert (read[0].published, read[0].experiment, read[0].scale) == (value, "kfac/fig2a", "digits")


def test_a_number_of_one_benchmark_stays_with_it(tmp_path):
    """Claim: where two benchmarks of a run share a metric, a number with ``benchmark`` stands beside the rows of that one only."""
    number = Published(metric="image_l2", estimator="dtrak", benchmark="images", value=9.46, source="table 1")
    report = Report(tmp_path, data="digits", seed=0, published=[number])
    shared = {"metric": "image_l2", "subject": Subject("dtrak"), "estimate": Estimate(1.0, 0.9, 1.1)}
    added = report.add(Row(benchmark=benchmark, **shared) for benchmark in ("images", "images of the same seed"))
    assert [row.published for row in added] == [9.46, None]


def test_numbers_of_another_data_set_are_left_out(tmp_path):
    """Claim: with data=mnist on the command line, no number of CIFAR-2 stands beside ours."""
    report = Report(tmp_path, data="mnist", seed=0, published=NUMBERS)
    assert report.add([row("kfac", "generated")])[0].published is None


def test_the_table_shows_published_numbers_and_where_they_stand(tmp_path):
    """Claim: they have a column of their own; the caption says where they are published."""
    report = Report(tmp_path, data="digits", seed=0, role="cifar2", published=NUMBERS)
    report.add([row("kfac", "generated"), row("raw_cos", "generated")])
    console = Console(file=io.StringIO(), width=140)
    report.close(console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "lds % published" in text
    assert "published: figure 2a" in text
    line = next(line for line in text.splitlines() if "kfac" in line)
    assert "30 [20, 40]" in line
    assert "21.5" in line
