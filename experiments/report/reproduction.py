"""A page in Markdown that compares published with measured numbers: for each experiment the command, the numbers and a note."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.report.idle_settings import without_idle_settings
from experiments.report.row import Row
from experiments.report.tables import cell, differing_settings, number

SCALES = ("digits", "small", "paper")
NOT_PUBLISHED = "not in the text"
SHOWN = 16
"""The largest number of lines in the table of one experiment; those with a published number come first."""


@dataclass(frozen=True)
class Reproduced:
    """An experiment with its rows at each scale. ``title`` says what the paper shows; ``note`` how ours compares.

    ``smallest`` is the smallest scale that the experiment has, and ``swept`` the settings that it sweeps.
    """

    name: str
    title: str
    rows: Mapping[str, Sequence[Row]]
    note: str | None = None
    smallest: str = SCALES[0]
    swept: Sequence[str] = ()

    @property
    def published(self) -> bool:
        """Whether any row has a published number."""
        return any(row.published is not None for rows in self.rows.values() for row in rows)


def page(experiments: Sequence[Reproduced]) -> str:
    """The whole page: a table of all experiments, then a section for each, grouped by paper."""
    papers: dict[str, list[Reproduced]] = {}
    for experiment in experiments:
        papers.setdefault(experiment.name.partition("/")[0], []).append(experiment)
    parts = ["# Reproduction of the papers", "", _INTRODUCTION, ""]
    for paper, members in papers.items():
        parts += [f"## {paper}", "", *_overview(members), ""]
        for experiment in members:
            parts += [*_section(experiment), ""]
    return "\n".join(parts)


_INTRODUCTION = """\
`python run.py task=report` writes this page from the rows of finished runs. *Published* is what a paper reports for its own data
and models: only `scale=paper` is comparable with it. `scale=digits` and `scale=small` show whether a finding holds for smaller
models, not whether the number does. Brackets hold 95 % intervals; `rows.jsonl` says of which kind."""


def _overview(experiments: Sequence[Reproduced]) -> list[str]:
    lines = ["| experiment | what the paper shows | published numbers | run at |", "|---|---|---|---|"]
    for experiment in experiments:
        run_at = ", ".join(scale for scale in SCALES if experiment.rows.get(scale))
        published = "beside ours" if experiment.published else NOT_PUBLISHED if run_at else ""
        link = f"[`{experiment.name}`](#{_anchor(experiment.name)})"
        lines.append(_line([link, experiment.title, published, run_at or "no scale yet"]))
    return lines


def _section(experiment: Reproduced) -> list[str]:
    """Heading, title, commands, table and note of an experiment."""
    parts = [f"### {experiment.name}", "", experiment.title, ""]
    for scale in SCALES:
        if rows := experiment.rows.get(scale):
            command = next((_shown(row.command, experiment.swept) for row in rows if row.command), _command(experiment, scale))
            hardware = ", ".join(dict.fromkeys(row.hardware for row in rows if row.hardware))
            parts.append(f"- {scale}: `{command}`" + (f", on {hardware}" if hardware else ""))
    if not any(experiment.rows.values()):
        return [*parts, f"Not run yet: `{_command(experiment, experiment.smallest)}`", *_note(experiment)]
    return [*parts, "", *_table(experiment), *_note(experiment)]


def _command(experiment: Reproduced, scale: str) -> str:
    return f"python run.py{' -m' if experiment.swept else ''} experiment={experiment.name} scale={scale}"


def _shown(command: str, swept: Sequence[str]) -> str:
    """The command without the folders and the processes of the machine that ran it, and that of the sweep for one of its jobs."""
    places = ("store.root", "hydra.", "workers", "threads", "tracker", "-m")
    words = [word for word in shlex.split(command) if not word.startswith(places) and word.partition("=")[0] not in swept]
    if swept:
        words.insert(2, "-m")
    return shlex.join("data.root=DIR" if word.startswith("data.root=") else word for word in words)


def _note(experiment: Reproduced) -> list[str]:
    return ["", experiment.note] if experiment.note else []


def _table(experiment: Reproduced) -> list[str]:
    """One line for each number: the published value, and ours at every scale that was run."""
    scales = [scale for scale in SCALES if experiment.rows.get(scale)]
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for scale in scales:
        rows = without_idle_settings([row for row in experiment.rows[scale] if row.minus is None])
        for row, settings in zip(rows, differing_settings(rows), strict=True):
            named = [] if row.estimator == "none" else [row.estimator]
            label = " ".join([*named, *(f"{name.rpartition('.')[2]}={value}" for name, value in settings.items())])
            lines.setdefault((label, row.queries or "", row.metric), {}).setdefault(scale, row)
    ordered = sorted(lines.items(), key=lambda line: all(row.published is None for row in line[1].values()))
    columns = ["estimator", "queries", "metric", *(["published"] if experiment.published else []), *scales]
    table = [_line(columns), _line(["---"] * len(columns))]
    for (label, queries, metric), cells in ordered[:SHOWN]:
        published = next((number(row.published) for row in cells.values() if row.published is not None), NOT_PUBLISHED)
        ours = [cell(cells[scale]).plain if scale in cells else "" for scale in scales]
        table.append(_line([label, queries, metric.replace("_", " "), *([published] if experiment.published else []), *ours]))
    if len(ordered) > SHOWN:
        table += ["", f"{len(ordered) - SHOWN} more numbers are in the rows."]
    return table


def _line(cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(text.replace('|', '&#124;') for text in cells)} |"


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_ ").replace(" ", "-")
