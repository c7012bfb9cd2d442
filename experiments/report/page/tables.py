"""Tables of rows for a page: numbers as text, and where they lie on the axis of their column."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.report.page.meanings import captions, meanings
from experiments.report.row import Row
from experiments.report.tables import REFERENCES, Layout, Line, layouts, number, published_text, words

Axis = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """A number, the ends of its interval and a published number as text; places on the axis in per cent, None without a number."""

    value: str
    interval: str | None
    published: str
    place: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Level:
    """A reference level of a column: which, and its place on the axis in per cent."""

    reference: str
    place: float


@dataclass(frozen=True)
class HTMLTable:
    """A table of a page. ``groups`` are the lines about estimators and those about differences; each has a label, a cell per
    metric, and its effort, in the last columns. ``published`` says which metrics have a second column, of the numbers of a paper.

    ``axes`` has, for both groups, the levels on the axis of each metric; None where a column has no axis.
    """

    title: str
    columns: Sequence[str]
    metrics: Sequence[str]
    published: Sequence[bool]
    effort: Sequence[str]
    groups: Sequence[Sequence[tuple[Sequence[str], Sequence[Cell | None], Sequence[str]]]]
    axes: Sequence[Sequence[Sequence[Level] | None]]
    levels: Mapping[str, Sequence[str]]


def tables(rows: Sequence[Row]) -> dict[str, Any]:
    """All ``tables`` of rows with their ``meanings`` and ``captions``, pairs of a term and a sentence."""
    found = layouts(rows)
    return {"tables": list(map(html_table, found)), "meanings": meanings(found), "captions": captions(found)}


def html_table(layout: Layout) -> HTMLTable:
    """The table of a page with the content of ``layout``."""
    parts = [[line for line in layout.lines if line.is_difference == difference] for difference in (False, True)]
    groups, axes = [], []
    for lines in filter(None, parts):
        axis_of = {metric: _axis(lines, metric) for metric in layout.metrics}
        groups.append(
            [(_label(line), [_cell(line.rows.get(m), axis_of[m]) for m in layout.metrics], line.effort) for line in lines]
        )
        axes.append([_levels(lines, metric, axis_of[metric]) for metric in layout.metrics])
    return HTMLTable(
        title=layout.title,
        columns=["estimator", *layout.settings],
        metrics=[words(metric) for metric in layout.metrics],
        published=[metric in layout.published for metric in layout.metrics],
        effort=layout.effort,
        groups=groups,
        axes=axes,
        levels={REFERENCES[reference]: texts for reference, texts in layout.levels.items()},
    )


def _label(line: Line) -> list[str]:
    return [line.estimator, *line.settings]


def _axis(lines: Sequence[Line], metric: str) -> Axis | None:
    """The least and the largest number of a column, with its levels, or 0 for differences; None if all are equal."""
    rows = [line.rows[metric] for line in lines if metric in line.rows]
    numbers = [end for row in rows for end in (row.estimate.value, row.estimate.low, row.estimate.high)]
    numbers += [value for row in rows for _, value in _levels_of(row)]
    numbers = [value for value in numbers if math.isfinite(value)]
    return (min(numbers), max(numbers)) if numbers and min(numbers) < max(numbers) else None


def _levels_of(row: Row) -> list[tuple[str, float]]:
    """The levels of a row by name; that of a difference is 0."""
    if row.minus is not None:
        return [("zero", 0.0)]
    values = ((reference, getattr(row.levels, reference)) for reference in REFERENCES)
    return [(reference, value) for reference, value in values if value is not None]


def _levels(lines: Sequence[Line], metric: str, axis: Axis | None) -> list[Level] | None:
    """The levels of a column on its axis."""
    if axis is None:
        return None
    levels = dict.fromkeys(level for line in lines if metric in line.rows for level in _levels_of(line.rows[metric]))
    return [Level(reference, place) for reference, value in levels if (place := _place(value, axis)) is not None]


def _cell(row: Row | None, axis: Axis | None) -> Cell | None:
    if row is None:
        return None
    estimate = row.estimate
    ends = f"{number(estimate.low)}, {number(estimate.high)}" if estimate.has_interval else None
    places = (_place(value, axis) for value in (estimate.value, estimate.low, estimate.high))
    return Cell(number(estimate.value), ends, published_text(row), *places)


def _place(value: float, axis: Axis | None) -> float | None:
    if axis is None or not math.isfinite(value):
        return None
    low, high = axis
    return round(100 * (value - low) / (high - low), 2)
