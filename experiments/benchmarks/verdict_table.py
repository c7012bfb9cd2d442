"""The table of the verdict in a terminal of 80 columns: a line for each estimator, every number in per cent with its interval."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from experiments.benchmarks.verdict_parts import (
    AVERAGE_PRECISION,
    CONSISTENCY,
    LDS,
    OF_CEILING,
    RECALL,
    VARIED,
    WITHOUT_SIZE,
)
from experiments.metrics.estimate import PERCENT, Estimate
from experiments.report.row import Row

_COLUMNS = {
    OF_CEILING: ("LDS, % of ceiling", "LDS, % of the ceiling"),
    LDS: ("LDS", "LDS, %"),
    "deletion_%": ("without top {k}", "Δ without its top {k}, %"),
    "insertion_%": ("only top {k}", "gain by only its top {k}, %"),
    VARIED: ("LDS, sizes vary", "LDS on varied sizes, %"),
    WITHOUT_SIZE: ("without size", "the same without the effect of size, %"),
    RECALL: ("copies in top {k}", "recall of copies in top {k}"),
    AVERAGE_PRECISION: ("copies, AP", "average precision of copies"),
    CONSISTENCY: ("of two runs", "rank correlation of two trainings"),
}
"""The metrics in order, without their k, and their titles in the table and in the figure."""
_CAPTION = (
    "In %, with 95 % intervals. Without the top k: rise of the query's measurement. Only the top k: gain over random sets. Sizes "
    "vary: LDS on subsets of varied size, and what is left without the effect of size. Copies: near-copies of queries that were "
    "planted and found. Of two runs: rank correlation of scores. Passes of the network are those of the scores, without curvature."
)


def table_titles(rows: Sequence[Row]) -> dict[str, str]:
    """The titles of the metrics of ``rows`` that the table has, in its order."""
    return _titles(rows, 0)


def figure_titles(rows: Sequence[Row]) -> dict[str, str]:
    """The titles of the same metrics in the figure."""
    return _titles(rows, 1)


def _titles(rows: Sequence[Row], which: int) -> dict[str, str]:
    present = dict.fromkeys(row.metric for row in rows)
    left_out = LDS if OF_CEILING in present else OF_CEILING
    return {
        metric: both[which].format(k=metric.partition("@")[2])
        for name, both in _COLUMNS.items()
        for metric in present
        if metric.partition("@")[0] == name != left_out
    }


def verdict_table(rows: Sequence[Row], warnings: Sequence[str]) -> Table:
    """The table of ``rows``; estimators that a warning names are marked."""
    rows = [row for row in rows if row.minus is None]
    columns, kinds = table_titles(rows), list(dict.fromkeys(row.queries for row in rows))
    # The box divides columns by a space.
    result = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, caption_justify="left", title_justify="left")
    result.title = Text("verdict" + (f" on {rows[0].data}, {' and '.join(map(str, kinds))} queries" if rows else ""), style="bold")
    result.add_column(Text("estimator"), overflow="fold")
    lines: list[list[Text]] = []
    for kind in kinds:
        for subject, cells in _lines([row for row in rows if row.queries == kind and row.metric in columns]).items():
            marked = any(f" {subject} " in warning and f"({kind} queries)" in warning for warning in warnings)
            name = Text(f"{subject}{' !' * marked}" + (f" ({kind})" if len(kinds) > 1 else ""))
            if passes := next((row.subject.effort.passes for row in cells.values() if row.subject.effort), None):
                name.append(f"\n{_short(passes)} passes", style="dim")
            estimates = ((metric, cells.get(metric)) for metric in columns)
            lines.append([name, *(Text("") if row is None else _cell(metric, row.estimate) for metric, row in estimates)])
    for place, title in enumerate(columns.values(), 1):
        words = [*title.split(), *(word for line in lines for word in line[place].plain.split())]
        result.add_column(Text(title), justify="right", width=max(map(len, words)))
    for line in lines:
        result.add_row(*line)
    result.caption = _CAPTION + ("\n! LDS and deletion disagree about this estimator: see the warnings." if warnings else "")
    return result


def _lines(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """The rows of each subject, by metric."""
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        lines.setdefault(row.subject.label, {})[row.metric] = row
    return lines


def _cell(metric: str, estimate: Estimate) -> Text:
    if "%" not in metric:
        estimate = estimate.scaled(PERCENT)
    text = Text(_digits(estimate.value))
    if estimate.has_interval:
        text.append(f"\n{_digits(estimate.low)}…{_digits(estimate.high)}", style="dim")
    return text


def _digits(value: float) -> str:
    """Two digits, and whole numbers from 10 on."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}"
    return text.removeprefix("-") if float(text) == 0 else text


def _short(passes: float) -> str:
    """A number of passes in thousands or millions."""
    scales: Mapping[str, float] = {"M": 1e6, "k": 1e3}
    unit = next((unit for unit, size in scales.items() if passes >= size), "")
    return f"{passes / scales.get(unit, 1):.3g}{unit}"
