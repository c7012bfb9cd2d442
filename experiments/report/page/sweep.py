"""The page of a sweep: its jobs with links to their pages, one table of all rows, and the figures of the sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from experiments.report.page.page import NAME, figures, save_page, title_of
from experiments.report.page.render import render
from experiments.report.page.tables import tables
from experiments.report.report import FILE, swept_settings
from experiments.report.row import Row


def write_sweep_page(
    folder: Path, jobs: Sequence[Path], rows: Sequence[Row], drawn: Sequence[Path], failures: Mapping[Path, str], command: str
) -> Path | None:
    """Write ``index.html`` of a sweep to ``folder`` and return its path; None if no job has a page.

    ``jobs`` are the folders of all jobs, ``rows`` those of all jobs together, ``drawn`` the PNG files of the sweep's
    figures, and ``failures`` the errors of jobs that failed.
    """
    if not any((job / NAME).exists() for job in jobs):
        return None
    settings = swept_settings(jobs)
    names = list(dict.fromkeys(name for of_job in settings for name in of_job))
    data = dict.fromkeys(str(row.data) for row in rows)
    text = render(
        "sweep.html.j2",
        title=f"Sweep: {title_of(rows, ', '.join(data))}",
        command=command,
        settings=names,
        jobs=[_job(folder, job, [of_job.get(n, "") for n in names], failures) for job, of_job in zip(jobs, settings, strict=True)],
        **tables(rows),
        drawn=figures(drawn, folder),
        files=[(FILE, FILE)] if rows else [],
    )
    return save_page(folder, text)


def _job(folder: Path, job: Path, values: Sequence[Any], failures: Mapping[Path, str]) -> dict[str, Any]:
    name = job.relative_to(folder).as_posix()
    href = f"{quote(name)}/{NAME}" if (job / NAME).exists() else None
    return {"name": name, "cells": list(map(str, values)), "failure": failures.get(job), "href": href}
