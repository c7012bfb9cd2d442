"""Tables of rows in the terminal: estimators by metrics, each number with its interval, reference levels below.

There is one table for each benchmark, data set and kind of queries. The first columns are the estimator and whatever else differs
among the rows: the seed, swept settings.
"""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.report.row import RESERVED, Row

_WIDTH = 140
"""The width in characters of a table that is written to a file, where no terminal sets it."""
EFFORT = ("draws", "passes")
EFFORT_CAPTION = (
    "draws: of a query / of a training image, at each checkpoint\n"
    "passes: forward and backward passes of one image for these scores, without those of the curvature"
)
_OURS, _PUBLISHED = "", " published"
_Line = dict[tuple[str, str], Text]
"""Cells by metric, and whether they are measured or published."""
REFERENCES = {"random": "random level", "maximum": "maximum", "ceiling": "noise ceiling"}


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """Print every number of ``rows``, grouped, and the commands that made them."""
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.benchmark, row.data, row.queries), []).append(row)
    for (benchmark, data, queries), group in groups.items():
        title = f"{benchmark} on {data}" + (f", {queries} queries" if queries else "")
        console.print(table(title, group))
        console.print()
    for line in dict.fromkeys(row.command for row in rows):
        if line:
            console.print(Text(f"made by: {line}", style="dim"), soft_wrap=True)


def table(title: str, rows: Sequence[Row]) -> Table:
    """The table of one group of rows. Different numbers that would share a cell get separate lines."""
    settings = differing_settings(rows)
    names = list(dict.fromkeys(name for setting in settings for name in setting))
    metrics = list(dict.fromkeys(row.metric for row in rows))
    efforts = any(row.subject.effort for row in rows if row.minus is None)
    lines: dict[tuple[str, ...], list[_Line]] = {}
    for row, setting in zip(rows, settings, strict=True):
        label = (row.estimator, *(str(setting.get(name, "")) for name in names), *(effort_cells(row) if efforts else ()))
        found = {(row.metric, _OURS): cell(row)}
        if row.published is not None:
            found[row.metric, _PUBLISHED] = Text(number(row.published))
        _place(lines.setdefault(label, []), found)

    result = Table(title=Text(title, style="bold"), title_justify="left", caption_justify="left")
    for name in ("estimator", *names):
        result.add_column(Text(name), overflow="fold")
    for name in EFFORT if efforts else ():
        result.add_column(Text(name), justify="right", overflow="fold")
    published = {metric for metric in metrics if any(row.metric == metric and row.published is not None for row in rows)}
    columns = [(metric, part) for metric in metrics for part in (_OURS, _PUBLISHED) if part == _OURS or metric in published]
    for metric, part in columns:
        result.add_column(Text(f"{metric.replace('_', ' ')}{part}"), justify="right", overflow="fold")
    for label, numbers in lines.items():
        for line in numbers:
            result.add_row(*map(Text, label), *(line.get(column, Text("")) for column in columns))
    result.add_section()
    for reference, label in REFERENCES.items():
        if any(getattr(row.levels, reference) is not None for row in rows):
            levels = (_levels(rows, metric, reference) if part == _OURS else "" for metric, part in columns)
            blank = [""] * (len(names) + len(EFFORT if efforts else ()))
            result.add_row(Text(label, style="dim"), *blank, *(Text(level, style="dim") for level in levels))
    kinds = dict.fromkeys(row.estimate.interval for row in rows if row.estimate.has_interval)
    captions = [f"in brackets: {'; '.join(kinds)}"] if kinds else []
    captions += [EFFORT_CAPTION] if efforts else []
    if sources := dict.fromkeys(row.source for row in rows if row.published is not None):
        captions.append(f"published: {', '.join(map(str, sources))}; blank: not in the text")
    result.caption = "\n".join(captions) or None
    return result


def effort_cells(row: Row) -> tuple[str, str]:
    """The draws, as ``250 / 32``, and the passes of a row about one estimator."""
    effort = row.subject.effort
    if effort is None or row.minus is not None:
        return "", ""
    draws = "" if effort.draws_query is None else f"{effort.draws_query} / {effort.draws_train}"
    return draws, "" if effort.passes is None else f"{effort.passes:,.0f}"


def cell(row: Row) -> Text:
    """The value with its interval, as ``0.812 [0.790, 0.832]``."""
    text = Text(number(row.estimate.value))
    if row.estimate.has_interval:
        text.append(f" [{number(row.estimate.low)}, {number(row.estimate.high)}]", style="dim")
    return text


def number(value: float) -> str:
    """Format with three decimals near one, four digits above ten, and a power of ten otherwise."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    if size == 0 or 1e-2 <= size < 10:
        return f"{value:.3f}"
    return f"{value:.4g}" if 10 <= size < 1e6 else f"{value:.2e}"


def differing_settings(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each row the seed and settings in which the rows differ; settings that are fields of the rows are left out."""
    known = {"benchmark.compare", *RESERVED}.union(*(row.about for row in rows)) - {"seed"}
    settings = [{"seed": row.seed} | {n: v for n, v in row.settings.items() if n not in known} for row in rows]
    names = dict.fromkeys(name for setting in settings for name in setting)
    differing = [name for name in names if len({str(setting.get(name)) for setting in settings}) > 1]
    return [{name: setting[name] for name in differing if name in setting} for setting in settings]


def _place(lines: list[_Line], found: _Line) -> None:
    """Add the cells ``found`` to the first line that has none, or the same, in their places."""
    for line in lines:
        if all(line.get(column, text).plain == text.plain for column, text in found.items()):
            line.update(found)
            return
    lines.append(found)


def _levels(rows: Sequence[Row], metric: str, reference: str) -> str:
    levels = [getattr(row.levels, reference) for row in rows if row.metric == metric]
    return " / ".join(dict.fromkeys(number(level) for level in levels if level is not None))
