"""The page of published and measured numbers."""

from dataclasses import replace

import pytest

from experiments.report.reproduction import SHOWN, Reproduced, page
from experiments.report.row import Estimate, Row, Subject

COMMAND = "python run.py experiment=kfac/fig2a scale=digits store.root=/home/x/store data.root=/home/x workers=1 seed=1"


def row(estimator: str, value: float, published: float | None = None, **fields) -> Row:
    estimate = Estimate(value, value - 1, value + 1)
    return Row(benchmark="lds", metric="lds_%", subject=Subject(estimator), estimate=estimate, published=published, **fields)


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def test_published_numbers_stand_beside_those_of_every_scale():
    """Claim: one line per number: what is published and what was measured at each scale that was run; the rest is left blank."""
    rows = {
        "digits": [row("raw_cos", 12.0), row("kfac", 30.0, 21.5, command=COMMAND, hardware="2 cores")],
        "small": [row("kfac", 25.0, 21.5)],
    }
    text = page([Reproduced("kfac/fig2a", "LDS", rows, "K-FAC leads at both scales."), Reproduced("kfac/fig3", "removal", {})])
    assert lines_of(text, "| kfac ") == ["| kfac |  | lds % | 21.5 | 30 [29, 31] | 25 [24, 26] |"]
    assert lines_of(text, "| raw_cos ") == ["| raw_cos |  | lds % | not in the text | 12 [11, 13] |  |"]
    assert "K-FAC leads at both scales." in text
    assert "Not run yet: `python run.py experiment=kfac/fig3 scale=digits`" in text


def test_the_page_names_no_folder_of_the_machine():
    """Claim: the command is that of the run, without its store, its processes and where its data lie."""
    text = page([Reproduced("kfac/fig2a", "LDS", {"digits": [row("kfac", 30.0, command=COMMAND, hardware="2 cores")]})])
    assert "- digits: `python run.py experiment=kfac/fig2a scale=digits data.root=DIR seed=1`, on 2 cores" in text
    assert "/home" not in text


def test_a_sweep_has_one_command():
    """Claim: the job that made a row is not shown, but the sweep, and what makes no difference to an estimator has one line."""
    rows = [
        replace(
            row("kfac", 30.0 + n), command=f"python run.py estimator.draws.n={n} experiment=kfac/x scale=digits", swept={"n": n}
        )
        for n in (1, 2)
    ]
    rows += [replace(row("raw_cos", 12.0), swept={"n": n}) for n in (1, 2)]
    text = page(
        [Reproduced("kfac/x", "LDS", {"digits": rows}, swept=["estimator.draws.n"]), Reproduced("kfac/y", "", {}, swept=["n"])]
    )
    assert "- digits: `python run.py -m experiment=kfac/x scale=digits`" in text
    assert "Not run yet: `python run.py -m experiment=kfac/y scale=digits`" in text
    assert len(lines_of(text, "| kfac ")) == 2
    assert len(lines_of(text, "| raw_cos ")) == 1


def test_differences_and_the_long_tail_are_left_to_the_rows():
    """Claim: differences have no line; numbers beyond the first ones are counted; published ones always come first."""
    rows = [row(f"estimator{k}", k) for k in range(SHOWN + 3)]
    difference = Row(benchmark="lds", metric="lds_%", subject=Subject("a"), minus=Subject("b"), estimate=Estimate(1.0))
    text = page([Reproduced("kfac/fig2a", "LDS", {"paper": [*rows, difference, row("kfac", 20.0, 21.5)]})])
    shown = [*lines_of(text, "| estimator0"), *lines_of(text, "| kfac ")]
    assert len(shown) == 2
    assert text.index("| kfac ") < text.index("| estimator0")
    assert "4 more numbers are in the rows." in text
    assert "−" not in text


@pytest.mark.parametrize("published", [None, 21.5])
def test_the_overview_says_whether_the_text_has_numbers(published):
    """Claim: the first table has every experiment, whether its numbers are published, and the scales that were run."""
    text = page([Reproduced("kfac/fig2a", "LDS", {"small": [row("kfac", 1.0, published)]})])
    words = "beside ours" if published else "not in the text"
    assert f"| [`kfac/fig2a`](#kfacfig2a) | LDS | {words} | small |" in text
