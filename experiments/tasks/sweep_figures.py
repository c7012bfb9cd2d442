"""Figures of the rows of all jobs of a sweep."""

from collections.abc import Sequence
from pathlib import Path

from experiments import figures
from experiments.benchmarks.lds_report import BENCHMARK as LDS
from experiments.benchmarks.lds_report import BEST, METRIC
from experiments.benchmarks.subset_benchmark import CEILING
from experiments.benchmarks.sweeps import sweep_figures
from experiments.report.idle_settings import without_idle_settings
from experiments.report.report import Report
from experiments.report.row import Row


def draw_sweep(folder: Path, rows: Sequence[Row], command: str) -> list[Path]:
    """Draw the rows of all jobs: curves over numeric settings, and for the LDS bars. Return the files.

    Rows of several benchmarks have figures in a folder each.
    """
    shown = [row for row in rows if row.minus is None and row.estimator != CEILING]
    benchmarks = list(dict.fromkeys(row.benchmark for row in shown))
    paths: list[Path] = []
    for benchmark in benchmarks:
        of_benchmark = without_idle_settings([row for row in shown if row.benchmark == benchmark])
        place = folder if len(benchmarks) == 1 else folder / benchmark.replace(" ", "_")
        report = Report(place, data="", seed=0, command=command)
        if benchmark == LDS:
            bars = [row for row in of_benchmark if row.metric in (METRIC, BEST) and row.subject.all_timesteps]
            report.figure("lds", figures.bars(bars, "LDS, %"))
        sweep_figures(report, of_benchmark)
        paths += report.figures
    return paths
