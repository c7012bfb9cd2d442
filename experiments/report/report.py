"""What a run leaves for its user: rows, a table in the terminal, figures.

A row is a plain dict, one measured number with its uncertainty and what it was measured on. It has at least the fields of
``REQUIRED``; a number that is not known is None. Fields that the report understands besides: ``queries`` ("validation",
"generated", ...), ``random`` and ``maximum`` (the levels that scores at random and perfect scores reach), ``swept`` (settings by
their names in the configuration) and ``command``. ``rows.jsonl`` holds one row a line.
"""

import csv
import io
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console

from experiments.report.tables import print_rows

Row = dict[str, Any]
REQUIRED = ("benchmark", "estimator", "metric", "value", "low", "high", "data", "seed")
FILE = "rows.jsonl"


class Report:
    """Collects the rows and figures of one run in ``folder``; ``close`` writes and shows them.

    ``common`` are fields that every row gets unless it has its own: what identifies the run (data, seed, swept settings). The
    field ``command`` is this process's command line unless given: give it where a launcher started the process.
    """

    def __init__(self, folder: Path | str, common: Mapping[str, Any] | None = None):
        self.folder = Path(folder)
        self.rows: list[Row] = []
        self.figures: list[Path] = []
        self.tables: list[Path] = []
        self._common = {"command": command(), **(common or {})}

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows as plain JSON values: NumPy numbers become Python's, NaN and infinities None.

        Settings that a row sweeps by itself join those of the run.

        Raises:
            ValueError: a required field is missing, or a value is no number.
            TypeError: a field that JSON cannot hold.
        """
        for row in rows:
            swept = {**(self._common.get("swept") or {}), **(row.get("swept") or {})}
            self.rows.append(_checked({**self._common, **row, **({"swept": swept} if swept else {})}))

    def figure(self, name: str, figure: Figure) -> Path:
        """Saves ``figure`` as ``name``.png, with the command that made it in its metadata, and returns where."""
        path = self.folder / f"{name}.png"
        _write(path, lambda part: figure.savefig(part, format="png", metadata={"Comment": str(self._common["command"])}))
        self.figures.append(path)
        return path

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Saves ``rows``, which have the same fields, as ``name``.csv: what is too much for the table in the terminal."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = self.folder / f"{name}.csv"
        _write(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))
        self.tables.append(path)
        return path

    def close(self, console: Console | None = None) -> None:
        """Writes ``rows.jsonl``, prints the tables and where everything is."""
        path = write_rows(self.folder, self.rows)
        console = console or Console()
        print_rows(self.rows, console)
        for line in (path, *self.tables, *self.figures):
            console.print(str(line), markup=False, highlight=False, soft_wrap=True)


def command() -> str:
    """This process's command line as a user would type it: the program's name without its folder, then the arguments."""
    program = Path(sys.argv[0]).name
    return shlex.join([*(["python"] if program.endswith(".py") else []), program, *sys.argv[1:]])


def write_rows(folder: Path, rows: Sequence[Row]) -> Path:
    """Writes ``folder/rows.jsonl``, whole or not at all, and returns its path."""
    text = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    path = folder / FILE
    _write(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def read_rows(*paths: Path | str) -> list[Row]:
    """The rows of files, or of the ``rows.jsonl`` of folders, in order.

    Raises:
        ValueError: a line that is no row, with file and line number.
        FileNotFoundError: no such file.
    """
    rows = []
    for path in map(Path, paths):
        path = path / FILE if path.is_dir() else path
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append(_checked(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number} is no row of a report ({error}): remove it, or run again") from error
    return rows


def merge(folder: Path | str) -> list[Row]:
    """The rows of all jobs of a Hydra multirun below ``folder``, in the order of the jobs.

    The settings in which the jobs differ (their ``.hydra/overrides.yaml``) are added to the ``swept`` of each row. Equal rows
    are kept once.
    """
    folder = Path(folder)
    jobs = sorted((path.parent for path in folder.rglob(FILE) if path.parent != folder), key=_natural)
    settings = [_overrides(job) for job in jobs]
    names = dict.fromkeys(name for chosen in settings for name in chosen)
    differing = [name for name in names if len({json.dumps(chosen.get(name)) for chosen in settings}) > 1]
    rows = []
    for job, chosen in zip(jobs, settings, strict=True):
        swept = {name: chosen[name] for name in differing if name in chosen and name not in REQUIRED}
        rows += [{**row, "swept": {**swept, **(row.get("swept") or {})}} for row in read_rows(job)]
    # An estimator that ran beside several others said the same each time; the command is all that differs.
    return list({json.dumps({**row, "command": None}, sort_keys=True): row for row in reversed(rows)}.values())[::-1]


def _overrides(job: Path) -> dict[str, Any]:
    path = job / ".hydra" / "overrides.yaml"
    if not path.exists():
        return {}
    pairs = (str(override).lstrip("+").partition("=") for override in OmegaConf.load(path))
    return {name: _parsed(value) for name, _, value in pairs if not name.startswith("~")}


def _parsed(value: str) -> Any:
    plain = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    return plain["value"] if isinstance(plain, dict) else value


def _natural(path: Path) -> list[Any]:
    """Job 10 comes after job 9."""
    return [[int(part) if part.isdigit() else part for part in re.split(r"(\d+)", piece)] for piece in path.parts]


def _checked(row: Mapping[str, Any]) -> Row:
    if missing := [name for name in REQUIRED if name not in row]:
        raise ValueError(f"the row {dict(row)} lacks {', '.join(missing)}: every row needs {', '.join(REQUIRED)}")
    plain = _plain(row)
    for name in ("value", "low", "high", "random", "maximum"):
        if not isinstance(plain.get(name), int | float | None):
            raise ValueError(f"{name}={plain[name]!r} of metric {row['metric']} must be a number, or None where it is not known")
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot stand in a row: use numbers, text, lists and mappings")


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """The file appears whole or not at all, also when the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
