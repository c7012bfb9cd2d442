"""Figures of the rows of all jobs of a sweep."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from experiments import figures
from experiments.benchmarks.lds import BENCHMARK as LDS
from experiments.benchmarks.lds import BEST, METRIC
from experiments.benchmarks.subset_benchmark import CEILING
from experiments.benchmarks.sweeps import sweep_figures
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


def without_idle_settings(rows: Sequence[Row]) -> list[Row]:
    """The rows without the swept settings that make no difference to any number of their estimator, and each number once.

    An estimator without draws, for example, has the same rows in every job of a sweep over draws.
    """
    kept: list[Row] = []
    for name in dict.fromkeys(row.estimator for row in rows):
        own = [row for row in rows if row.estimator == name]
        for setting in dict.fromkeys(setting for row in own for setting in row.swept):
            own = _without(own, setting)
        kept += own
    return kept


def _without(rows: list[Row], setting: str) -> list[Row]:
    """The rows of an estimator without a swept setting if its value makes no difference, otherwise all."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        others = {name: value for name, value in row.settings.items() if name != setting}
        alike.setdefault(repr((row.metric, row.queries, row.data, row.seed, sorted(others.items(), key=str))), []).append(row)
    if any(len({repr(row.estimate) for row in same}) > 1 for same in alike.values()) or len(alike) == len(rows):
        return rows
    first = [same[0] for same in alike.values()]
    return [replace(row, swept={name: value for name, value in row.swept.items() if name != setting}) for row in first]
