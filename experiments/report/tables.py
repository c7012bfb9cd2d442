"""Rows as tables in the terminal: estimators by metrics, each number with its interval, chance and ceiling below.

One table for each benchmark, data set and kind of queries. Lines are told apart by what differs among their rows: the estimator,
the seed, swept settings.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDTH = 140
"""Of a table that goes to a file, where no terminal says how wide it may be."""
REFERENCES = {"random": "random level", "maximum": "maximum", "ceiling": "noise ceiling"}


def print_rows(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints every number of ``rows``, grouped, and the commands that made them."""
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["benchmark"], row["data"], row.get("queries")), []).append(row)
    for (benchmark, data, queries), group in groups.items():
        title = f"{benchmark} on {data}" + (f", {queries} queries" if queries else "")
        console.print(table(title, group))
        console.print()
    for line in dict.fromkeys(row.get("command") for row in rows):
        if line:
            console.print(Text(f"made by: {line}", style="dim"), soft_wrap=True)


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """One group of rows. A number never replaces another: what has the same place gets a line of its own."""
    settings = differing_settings(rows)
    names = list(dict.fromkeys(name for setting in settings for name in setting))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    lines: dict[tuple[str, ...], list[dict[str, Text]]] = {}
    for row, setting in zip(rows, settings, strict=True):
        label = (str(row["estimator"]), *(str(setting.get(name, "")) for name in names))
        _place(lines.setdefault(label, []), row["metric"], cell(row))

    result = Table(title=Text(title, style="bold"), title_justify="left", caption_justify="left")
    for name in ("estimator", *names):
        result.add_column(Text(name), overflow="fold")
    for metric in metrics:
        result.add_column(Text(str(metric).replace("_", " ")), justify="right", overflow="fold")
    for label, numbers in lines.items():
        for line in numbers:
            result.add_row(*map(Text, label), *(line.get(metric, Text("")) for metric in metrics))
    result.add_section()
    for reference, label in REFERENCES.items():
        if any(row.get(reference) is not None for row in rows):
            levels = (_levels(rows, metric, reference) for metric in metrics)
            result.add_row(Text(label, style="dim"), *[""] * len(names), *(Text(level, style="dim") for level in levels))
    if any(row["low"] is not None for row in rows):
        result.caption = "in brackets: the interval of the number beside it"
    return result


def cell(row: Mapping[str, Any]) -> Text:
    """A value with its interval, as ``0.812 [0.790, 0.832]``."""
    text = Text(number(row["value"]))
    if row["low"] is not None and row["high"] is not None:
        text.append(f" [{number(row['low'])}, {number(row['high'])}]", style="dim")
    return text


def number(value: float | None) -> str:
    """Three decimals near one, four digits above ten, and powers of ten where these would hide the number."""
    if value is None:
        return "–"
    size = abs(value)
    if size == 0 or 1e-2 <= size < 10:
        return f"{value:.3f}"
    return f"{value:.4g}" if 10 <= size < 1e6 else f"{value:.2e}"


def differing_settings(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each row its seed and swept settings, as far as the rows differ in them and they are no fields of the row as well."""
    known = {"benchmark.compare"}.union(*rows) - {"seed"}
    settings = [{"seed": row["seed"]} | {n: v for n, v in (row.get("swept") or {}).items() if n not in known} for row in rows]
    names = dict.fromkeys(name for setting in settings for name in setting)
    differing = [name for name in names if len({str(setting.get(name)) for setting in settings}) > 1]
    return [{name: setting[name] for name in differing if name in setting} for setting in settings]


def _place(lines: list[dict[str, Text]], metric: str, text: Text) -> None:
    for line in lines:
        if line.get(metric, text).plain == text.plain:
            line[metric] = text
            return
    lines.append({metric: text})


def _levels(rows: Sequence[Mapping[str, Any]], metric: str, reference: str) -> str:
    levels = [row[reference] for row in rows if row["metric"] == metric and row.get(reference) is not None]
    return " / ".join(dict.fromkeys(map(number, levels)))
