"""Hydra multiruns (``python run.py -m ...``): a job that fails does not end the others, and all rows make one table."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from experiments.tasks.errors import EXPECTED, sentence

FAILURE = "error.txt"
"""The file in the folder of a job that failed, with its error."""

_started: list[Path] = []
"""The folder of the multirun that this process started."""


class MultirunReport(Callback):
    """Note the folder of a multirun for ``joint_report``, and remove what an earlier one with the same folder reported."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir).absolute()
        _started[:] = [folder]
        for path in (folder / "rows.jsonl", *folder.rglob(FAILURE)):
            path.unlink(missing_ok=True)


def record_failure(error: Exception) -> None:
    """Print the error of the job that this process is running, and leave it in the job's folder for ``joint_report``.

    An error that is not ``EXPECTED`` has its traceback, as every error with HYDRA_FULL_ERROR=1.
    """
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    message = sentence(error)
    if not isinstance(error, EXPECTED) or os.environ.get("HYDRA_FULL_ERROR") == "1":
        message += "\n" + "".join(traceback.format_exception(error)).rstrip()
    print(f"error in job {hydra.job.num}: {message}", file=sys.stderr, flush=True)
    (folder / FAILURE).write_text(message + "\n", encoding="utf-8")
    (folder / "rows.jsonl").unlink(missing_ok=True)  # of an earlier multirun with the same folder


@contextmanager
def joint_report() -> Iterator[None]:
    """After the jobs of a multirun in the body, write their rows to one ``rows.jsonl`` in its folder and print them as one table.

    If jobs failed, exit with their errors. If the launcher itself failed, for example because a job was killed, the rows of the
    finished jobs are reported before its error is raised.
    """
    _started.clear()
    try:
        yield
    except Exception:
        for folder in _started:
            _report(folder)
        raise
    for folder in _started:
        _report(folder)
        if failures := _failures(folder):
            sys.exit(failures)


def _report(folder: Path) -> None:
    from rich.console import Console

    from experiments.report.report import merge, write_rows
    from experiments.report.tables import print_rows

    if rows := merge(folder):
        path = write_rows(folder, rows)
        console = Console()
        console.rule("all jobs")
        print_rows(rows, console)
        console.print(str(path), markup=False, highlight=False, soft_wrap=True)


def _failures(folder: Path) -> str:
    """Return one line for each job that failed, with the settings in which it differs from others; "" if none failed."""
    from experiments.report.report import jobs_of, swept_settings

    jobs = jobs_of(folder, "rows.jsonl", FAILURE)
    swept = dict(zip(jobs, swept_settings(jobs), strict=True))
    failed = [job for job in jobs if (job / FAILURE).exists()]
    lines = []
    for job in failed:
        settings = " ".join(f"{name}={value}" for name, value in swept[job].items())
        first = (job / FAILURE).read_text(encoding="utf-8").partition("\n")[0]
        lines.append(f"job {job.relative_to(folder)}{f' ({settings})' if settings else ''}: {first}")
    failed_jobs = "1 job" if len(failed) == 1 else f"{len(failed)} jobs"
    return "\n".join([f"error: {failed_jobs} of the sweep failed; all others are in the table", *lines] if failed else [])
