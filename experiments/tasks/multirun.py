"""Hydra multiruns (``python run.py -m ...``): a job that fails does not end the others, and all rows make one table."""

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from experiments.tasks.description import write_swept
from experiments.tasks.errors import EXPECTED, exit_with, sentence

FAILURE = "error.txt"
"""The file in the folder of a job that failed, with its error."""

_started: list[Path] = []
"""The folder of the multirun that this process has started and not ended."""
_arguments: list[str] = []
"""The arguments of the command line."""


class MultirunReport(Callback):
    """After all jobs, write their rows to one ``rows.jsonl`` in the folder of the sweep, print them, and write figures and a page.

    If jobs failed, the process then exits with their errors.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from experiments.tasks.search import check_search

        try:
            check_search(config)
        except ValueError as error:
            exit_with(error)
        folder = Path(config.hydra.sweep.dir).absolute()
        _started[:] = [folder]
        for path in (folder / "rows.jsonl", folder / "index.html", *folder.rglob(FAILURE)):
            path.unlink(missing_ok=True)  # of an earlier multirun with the same folder
        swept = OmegaConf.select(config, "hydra.sweeper.params") or {}
        write_swept(
            folder,
            [*(OmegaConf.select(config, "hydra.overrides.task") or ()), *(f"{name}={values}" for name, values in swept.items())],
        )

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folders, _started[:] = list(_started), []
        for folder in folders:
            try:
                _report(folder)
                tracker = OmegaConf.select(config, "tracker._target_")
                if tracker and (message := get_class(tracker).of_sweep(folder)):
                    print(message)
                failures = _failures(folder)
            except EXPECTED as error:  # Hydra would print it as a warning and exit with 0
                exit_with(error)
            if failures:
                jobs = "1 job" if len(failures) == 1 else f"{len(failures)} jobs"
                sys.exit("\n".join([f"error: {jobs} of the sweep failed; all others are in the table", *failures]))


def record_failure(error: Exception) -> None:
    """Print the error of the job that this process is running, and leave it in the job's folder for the end of the multirun.

    An error that is not ``EXPECTED`` has its traceback, as every error with HYDRA_FULL_ERROR=1.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    message = sentence(error)
    if not isinstance(error, EXPECTED) or os.environ.get("HYDRA_FULL_ERROR") == "1":
        message += "\n" + "".join(traceback.format_exception(error)).rstrip()
    print(f"error in job {hydra.job.num}: {message}", file=sys.stderr, flush=True)
    (folder / FAILURE).write_text(message + "\n", encoding="utf-8")
    for name in ("rows.jsonl", "index.html"):
        (folder / name).unlink(missing_ok=True)  # of an earlier multirun with the same folder


@contextmanager
def finished_jobs_reported(arguments: Sequence[str] = ()) -> Iterator[None]:
    """Report the rows of the finished jobs also if the launcher fails in the body, for example because a job was killed, or if a
    search ends without a job that succeeded.

    ``arguments`` are those of the command line, before they were rewritten for Hydra; they are shown on the page of the sweep.
    The error of the launcher is then an OSError with the errors of the jobs that failed before.
    """
    _started.clear()
    _arguments[:] = arguments
    try:
        yield
    except Exception as error:
        if not _started or (isinstance(error, EXPECTED) and not _failures(_started[-1])):
            raise
        folder = _started.pop()
        _report(folder)
        if isinstance(error, EXPECTED):
            sys.exit("\n".join([f"error: the sweep stopped after jobs that failed ({sentence(error)})", *_failures(folder)]))
        stopped = (
            f"the launcher stopped, and jobs are missing in the table ({sentence(error)}): run the same command again to continue"
        )
        raise ChildProcessError("\n".join([stopped, *_failures(folder)])) from error


def _report(folder: Path) -> None:
    from rich.console import Console

    from experiments.report.page.sweep import write_sweep_page
    from experiments.report.report import jobs_of, merge, write_rows
    from experiments.report.tables import print_rows
    from experiments.tasks.sweep_figures import draw_sweep

    rows = merge(folder)
    drawn: list[Path] = []
    command = shlex.join(["python", "run.py", *_arguments])
    console = Console()
    if rows:
        path = write_rows(folder, rows)
        console.rule("all jobs")
        print_rows(rows, console)
        drawn = draw_sweep(folder, rows, command)
        for file in (path, *drawn):
            console.print(str(file), markup=False, highlight=False, soft_wrap=True)
    page = write_sweep_page(folder, jobs_of(folder, "rows.jsonl", FAILURE), rows, drawn, _errors(folder), command)
    if page is not None:
        console.print(str(page), markup=False, highlight=False, soft_wrap=True)


def _failures(folder: Path) -> list[str]:
    """Return one line for each job that failed, with the settings in which it differs from others."""
    from experiments.report.report import jobs_of, swept_settings

    jobs = jobs_of(folder, "rows.jsonl", FAILURE)
    swept = dict(zip(jobs, swept_settings(jobs), strict=True))
    lines = []
    for job, error in _errors(folder).items():
        settings = " ".join(f"{name}={value}" for name, value in swept[job].items())
        lines.append(f"job {job.relative_to(folder)}{f' ({settings})' if settings else ''}: {error}")
    return lines


def _errors(folder: Path) -> dict[Path, str]:
    """Return the first line of the error of each job that failed, by the folder of the job."""
    from experiments.report.report import jobs_of

    return {job: (job / FAILURE).read_text(encoding="utf-8").partition("\n")[0] for job in jobs_of(folder, FAILURE)}
