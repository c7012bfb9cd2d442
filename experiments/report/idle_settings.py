"""Rows of sweeps without the settings that do not concern them."""

from collections.abc import Sequence
from dataclasses import replace

from experiments.report.row import Row


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
