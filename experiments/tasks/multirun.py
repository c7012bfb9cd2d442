"""The joint table of a Hydra multirun (``python run.py -m ...``)."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from experiments.report.report import merge, write_rows
from experiments.report.tables import print_rows


class MultirunReport(Callback):
    """After all jobs, write their rows to one ``rows.jsonl`` in the folder of the sweep, and print them as one table."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        if rows := merge(folder):
            path = write_rows(folder, rows)
            console = Console()
            console.rule("all jobs")
            print_rows(rows, console)
            console.print(str(path), markup=False, highlight=False, soft_wrap=True)
