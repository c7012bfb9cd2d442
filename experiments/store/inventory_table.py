"""Print the rows of an inventory or a plan as tables, and the explanation of one node. Sizes and times have readable units."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def size(count: float) -> str:
    """Bytes as text, e.g. 1536 → 1.5 kB. A kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds as text, e.g. 0.25 → 0.2 s, 4000 → 1 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


_WIDTH = 140
"""The width in characters of a table that is written to a file."""
_FORMATS: dict[str, Callable[[Any], str]] = {
    "bytes": size,
    "memory": size,
    "disk": size,
    "seconds": duration,
    "time": duration,
    "age": duration,
    "passes": lambda count: f"{count:,.0f}",
}


def show(rows: Sequence[Mapping[str, Any]], title: str = "", console: Console | None = None) -> None:
    """Print the rows as a table. None is shown as "?". Fingerprints stay on one line; other long texts wrap."""
    console = console or _console()
    if not rows:
        console.print(f"{title}: nothing")
        return
    table = Table(title=title or None, title_justify="left")
    for key in rows[0]:
        numeric = all(isinstance(row[key], int | float | None) and not isinstance(row[key], bool) for row in rows)
        table.add_column(key, justify="right" if numeric else "left", no_wrap=numeric or key == "fingerprint", overflow="fold")
    for row in rows:
        table.add_row(*("?" if row[key] is None else _FORMATS.get(key, str)(row[key]) for key in rows[0]))
    console.print(table)


def show_explanation(explanation: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the result of ``inventory.explain``: plain values one per line, nodes as tables, everything else as JSON."""
    console = console or _console()
    for key, value in explanation.items():
        if key in ("depends_on", "needed_by"):
            show(value, key.replace("_", " "), console)
        else:
            text = _FORMATS.get(key, _plain)(value)
            console.print(f"{key}: {text}", markup=False, highlight=False, soft_wrap=True)


def _console() -> Console:
    """The standard output, wide enough for a table where no terminal sets its width."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    return console


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, indent=1)
