"""The report of a run: rows, tables in the terminal, figures.

A row (``row.py``) is one measured number with its uncertainty and what it was measured on. ``rows.jsonl`` has one row per line.
"""

import csv
import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from experiments.report.attributions import Attributions
from experiments.report.published import Published
from experiments.report.row import REQUIRED, Row
from experiments.report.tables import print_rows

FILE = "rows.jsonl"
PNG = "png"
_METADATA = {
    PNG: lambda command: {"Comment": command},
    "pdf": lambda command: {"Subject": command, "CreationDate": None},
    "svg": lambda command: {"Description": command, "Date": None},
}
"""The metadata of a figure in each format, with the command that made it and without a date."""
FORMATS = tuple(_METADATA)


class Report:
    """The rows and figures of one run in ``folder``; ``close`` writes and shows them.

    ``data``, ``seed``, the settings ``swept``, ``command``, ``hardware``, and for a paper's experiment its name and scale, identify
    the run and are added to every row. ``command`` is the command line of this process by default; give it if a launcher started
    the process. Figures are saved as PNG, and in the other ``formats``.
    ``published`` are numbers of the paper, which are added to the rows that they concern; ``role`` is the data set of the paper
    whose place ``data`` takes.
    """

    def __init__(
        self,
        folder: Path | str,
        data: str,
        seed: int,
        swept: Mapping[str, Any] | None = None,
        command: str | None = None,
        hardware: str | None = None,
        experiment: str | None = None,
        scale: str | None = None,
        published: Sequence[Published] = (),
        role: str | None = None,
        formats: Sequence[str] = (PNG,),
    ):
        self.folder = Path(folder)
        self.formats = list(dict.fromkeys([PNG, *formats]))
        self.rows: list[Row] = []
        self.attributions: list[Attributions] = []
        self.figures: list[Path] = []
        self.tables: list[Path] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._replaced: dict[str, Table] = {}
        self.data = data
        self.command = command or command_line()
        self._run = {"data": data, "seed": seed, "command": self.command, "hardware": hardware}
        self._run |= {"experiment": experiment, "scale": scale}
        self._swept, self._published, self._role = swept or {}, published, role or data

    def add(self, rows: Iterable[Row]) -> list[Row]:
        """Add rows, and return them with the fields of the run. Settings of a row take precedence over those of the run.

        Raises:
            TypeError: a value of a row is not JSON-serializable.
        """
        completed = [self._beside_published(replace(row.with_swept(self._swept), **self._run)) for row in rows]
        for row in completed:
            row.to_dict()  # raises TypeError here rather than at the end of the run
        self.rows += completed
        return completed

    def _beside_published(self, row: Row) -> Row:
        """Return the row with the number that is published in its place, if there is one."""
        for number in self._published:
            if number.concerns(row, self._role):
                return replace(row, published=number.value, source=number.source)
        return row

    def figure(self, name: str, figure: Figure) -> Path:
        """Save ``figure`` as ``name``.png and in the other formats, with the command that made it, and return the PNG's path."""
        figure.suppressComposite = True  # composing hundreds of thumbnails to one image would take seconds in vector formats
        for suffix in self.formats:
            metadata = _METADATA[suffix](self.command)
            write_file(
                self.folder / f"{name}.{suffix}",
                lambda part, suffix=suffix, metadata=metadata: figure.savefig(part, format=suffix, metadata=metadata),
            )
        path = self.folder / f"{name}.{PNG}"
        self.figures.append(path)
        return path

    def in_formats(self, path: Path) -> dict[str, Path]:
        """The files of the figure that is saved as the PNG ``path``, by format."""
        return {suffix: path.with_name(f"{path.name.removesuffix(PNG)}{suffix}") for suffix in self.formats}

    def attribute(self, attributions: Attributions) -> None:
        """Add scores to explore on the page of the run."""
        self.attributions.append(attributions)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
        """Save ``rows``, mappings with the same keys, as ``name``.csv, and return its path. Without rows, the file is empty."""
        text = io.StringIO()
        if rows:
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        path = self.folder / f"{name}.csv"
        write_file(path, lambda part: part.write_text(text.getvalue(), encoding="utf-8"))
        self.tables.append(path)
        return path

    def replace_table(self, benchmark: str, table: Table) -> None:
        """Show ``table`` in the terminal in place of the tables of the rows of ``benchmark``, which may be wide."""
        self._replaced[benchmark] = table

    def note(self, message: str) -> None:
        """Add a line on what the results are of."""
        self.notes.append(message)

    def warn(self, message: str) -> None:
        """Add a line that is shown beside the results."""
        self.warnings.append(message)

    def close(self, console: Console | None = None) -> None:
        """Write ``rows.jsonl``; print the tables, the notes, the warnings and the paths of all files."""
        path = write_rows(self.folder, self.rows)
        console = console or Console()
        print_rows(self.rows, console, self._replaced)
        figures = [file for figure in self.figures for file in self.in_formats(figure).values()]
        for line in (*self.notes, *(f"warning: {message}" for message in self.warnings), path, *self.tables, *figures):
            console.print(str(line), markup=False, highlight=False, soft_wrap=True)


def command_line() -> str:
    """The command line of this process as a user would type it: the program's name without its folder, then the arguments."""
    program = Path(sys.argv[0]).name
    return shlex.join([*(["python"] if program.endswith(".py") else []), program, *sys.argv[1:]])


def write_rows(folder: Path, rows: Sequence[Row]) -> Path:
    """Write ``folder/rows.jsonl`` atomically and return its path."""
    text = "".join(json.dumps(row.to_dict(), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    path = folder / FILE
    write_file(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def read_rows(*paths: Path | str) -> list[Row]:
    """Read the rows of files, or of the ``rows.jsonl`` of folders, in order.

    Raises:
        ValueError: a line is not a row; the message has the file and the line number.
        FileNotFoundError: a file does not exist.
    """
    rows = []
    for path in map(Path, paths):
        path = path / FILE if path.is_dir() else path
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                rows.append(Row.from_dict(json.loads(line)))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number} is not a row of a report ({error}): remove it, or run again") from error
    return rows


def merge(folder: Path | str) -> list[Row]:
    """Return the rows of all jobs of a Hydra multirun below ``folder``, in the order of the jobs.

    The settings in which the jobs differ (their ``.hydra/overrides.yaml``) are added to the ``swept`` of each row. Rows that are
    equal except for the command, such as those of an estimator that was compared with several others, are kept once.
    """
    jobs = jobs_of(folder, FILE)
    rows = []
    for job, settings in zip(jobs, swept_settings(jobs), strict=True):
        swept = {name: value for name, value in settings.items() if name not in REQUIRED}
        rows += [row.with_swept(swept) for row in read_rows(job)]
    return list({json.dumps({**row.to_dict(), "command": None}, sort_keys=True): row for row in reversed(rows)}.values())[::-1]


def jobs_of(folder: Path | str, *files: str) -> list[Path]:
    """Return the folders below ``folder`` that have one of ``files``, in the order of the jobs of a Hydra multirun."""
    folder = Path(folder)
    return sorted({path.parent for name in files for path in folder.rglob(name)} - {folder}, key=natural)


def swept_settings(jobs: Sequence[Path]) -> list[dict[str, Any]]:
    """Return for each job its settings (from ``.hydra/overrides.yaml``) among those in which the jobs differ."""
    overrides = [_overrides(job) for job in jobs]
    names = dict.fromkeys(name for settings in overrides for name in settings)
    differing = [name for name in names if len({json.dumps(settings.get(name)) for settings in overrides}) > 1]
    return [{name: settings[name] for name in differing if name in settings} for settings in overrides]


def _overrides(job: Path) -> dict[str, Any]:
    path = job / ".hydra" / "overrides.yaml"
    if not path.exists():
        return {}
    pairs = (str(override).lstrip("+").partition("=") for override in OmegaConf.load(path))
    return {name: _parsed(value) for name, _, value in pairs if not name.startswith("~")}


def _parsed(value: str) -> Any:
    plain = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    return plain["value"] if isinstance(plain, dict) else value


def natural(path: Path) -> list[Any]:
    """A key that sorts job 10 after job 9."""
    return [[int(part) if part.isdigit() else part for part in re.split(r"(\d+)", piece)] for piece in path.parts]


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Write to a temporary file and rename it, so that no incomplete file appears even if the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    write(part)
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
