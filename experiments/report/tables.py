"""Tables of rows: estimators by metrics, each number with its interval, reference levels below; and how a terminal shows them.

There is one table for each benchmark, data set and kind of queries. The first columns are the estimator and whatever else differs
among the rows: the seed, swept settings.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.report.interval_kinds import kinds_of_rows
from experiments.report.row import RESERVED, Row

_WIDTH = 140
"""The width in characters of a table that is written to a file, where no terminal sets it."""
EFFORT = ("draws", "passes")
EFFORT_CAPTION = (
    "draws: of a query / of a training image, at each checkpoint\n"
    "passes: forward and backward passes of one image for these scores, without those of the curvature"
)
REFERENCES = {"random": "random level", "maximum": "maximum", "ceiling": "noise ceiling"}


@dataclass(frozen=True)
class Line:
    """A line of a table: the estimator, its values of the settings, its draws and passes, and a row for each metric."""

    estimator: str
    settings: Sequence[str]
    effort: Sequence[str]
    rows: Mapping[str, Row]

    @property
    def is_difference(self) -> bool:
        """Whether the rows are about a difference between two estimators."""
        return any(row.minus is not None for row in self.rows.values())


@dataclass(frozen=True)
class Layout:
    """The content of a table, in the order in which it is shown.

    ``settings`` and ``effort`` name columns after the estimator. ``levels`` has, for each reference in REFERENCES that the rows
    have, the text of every metric. Metrics in ``published`` have a second column, of the numbers of a paper.
    """

    title: str
    settings: Sequence[str]
    effort: Sequence[str]
    metrics: Sequence[str]
    published: Collection[str]
    lines: Sequence[Line]
    levels: Mapping[str, Sequence[str]]
    captions: Sequence[str]


def print_rows(rows: Sequence[Row], console: Console, replaced: Mapping[str, Table] | None = None) -> None:
    """Print every number of ``rows``, grouped, and the commands that made them.

    ``replaced`` has tables by benchmark that are printed in place of those of its rows.
    """
    replaced = replaced or {}
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    for shown in (*replaced.values(), *map(table, layouts([row for row in rows if row.benchmark not in replaced]))):
        console.print(shown)
        console.print()
    for line in dict.fromkeys(row.command for row in rows):
        if line:
            console.print(Text(f"made by: {line}", style="dim"), soft_wrap=True)


def layouts(rows: Sequence[Row]) -> list[Layout]:
    """One table for each benchmark, data set and kind of queries."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.benchmark, row.data, row.queries), []).append(row)
    return [
        _layout(f"{benchmark} on {data}" + (f", {queries} queries" if queries else ""), group)
        for (benchmark, data, queries), group in groups.items()
    ]


def _layout(title: str, rows: Sequence[Row]) -> Layout:
    """The table of one group of rows. Different numbers that would share a cell get separate lines."""
    settings = differing_settings(rows)
    names = list(dict.fromkeys(name for setting in settings for name in setting))
    metrics = list(dict.fromkeys(row.metric for row in rows))
    efforts = any(row.subject.effort for row in rows if row.minus is None)
    labels: dict[tuple[tuple[str, ...], ...], list[dict[str, Row]]] = {}
    for row, setting in zip(rows, settings, strict=True):
        values, effort = tuple(str(setting.get(name, "")) for name in names), effort_cells(row) if efforts else ()
        _place(labels.setdefault(((row.estimator,), values, effort), []), row)
    lines = [
        Line(estimator, values, effort, by_metric)
        for ((estimator,), values, effort), parts in labels.items()
        for by_metric in parts
    ]
    present = [name for name in REFERENCES if any(getattr(row.levels, name) is not None for row in rows)]
    levels = {name: [_levels(rows, metric, name) for metric in metrics] for name in present}
    kinds = kinds_of_rows(rows)
    captions = [f"in brackets: {kinds}"] if kinds else []
    captions += [EFFORT_CAPTION] if efforts else []
    if sources := dict.fromkeys(row.source for row in rows if row.published is not None):
        captions.append(f"published: {', '.join(map(str, sources))}; blank: not in the text")
    published = {row.metric for row in rows if row.published is not None}
    return Layout(title, names, EFFORT if efforts else (), metrics, published, lines, levels, captions)


def table(layout: Layout) -> Table:
    """The table for a terminal."""
    result = Table(title=Text(layout.title, style="bold"), title_justify="left", caption_justify="left")
    for name in ("estimator", *layout.settings):
        result.add_column(Text(name), overflow="fold")
    for name in layout.effort:
        result.add_column(Text(name), justify="right", overflow="fold")
    for metric in layout.metrics:
        result.add_column(Text(words(metric)), justify="right", overflow="fold")
        if metric in layout.published:
            result.add_column(Text(f"{words(metric)} published"), justify="right", overflow="fold")
    for line in layout.lines:
        cells = (cell for metric in layout.metrics for cell in _cells(line.rows.get(metric), metric in layout.published))
        result.add_row(*map(Text, (line.estimator, *line.settings, *line.effort)), *cells)
    result.add_section()
    for reference, levels in layout.levels.items():
        blank = [""] * (len(layout.settings) + len(layout.effort))
        cells = [t for m, level in zip(layout.metrics, levels, strict=True) for t in (level, *[""] * (m in layout.published))]
        result.add_row(Text(REFERENCES[reference], style="dim"), *blank, *(Text(text, style="dim") for text in cells))
    result.caption = "\n".join(layout.captions) or None
    return result


def words(metric: str) -> str:
    """The name of a metric as a table shows it."""
    return str(metric).replace("_", " ")


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


def _place(lines: list[dict[str, Row]], row: Row) -> None:
    """Put a row into the first line that has no other number in its place."""
    for line in lines:
        other = line.get(row.metric, row)
        if _measured(other) == _measured(row) and (None in (other.published, row.published) or other.published == row.published):
            line[row.metric] = other if row.published is None else row
            return
    lines.append({row.metric: row})


def _measured(row: Row) -> str:
    return cell(row).plain


def _cells(row: Row | None, published: bool) -> Iterator[Text]:
    """The cell of a row, and that of the number which a paper has in its place if its column has any."""
    yield Text("") if row is None else cell(row)
    if published:
        yield Text(published_text(row))


def published_text(row: Row | None) -> str:
    """The number that is published in place of a row, or the empty string."""
    return "" if row is None or row.published is None else number(row.published)


def _levels(rows: Sequence[Row], metric: str, reference: str) -> str:
    levels = [getattr(row.levels, reference) for row in rows if row.metric == metric]
    return " / ".join(dict.fromkeys(number(level) for level in levels if level is not None))
