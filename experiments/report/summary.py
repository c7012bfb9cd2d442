"""Names of a run's numbers that are the same in every run, so that runs with different estimators or settings share an axis.

The number of the chosen estimator is ``lds/validation``: its metric without "%", and the kind of queries. Its interval and ceiling
are ``lds/validation/low``, ``/high`` and ``/ceiling``; ``/published`` is what a paper has in its place. The numbers of other
estimators, and of references such as exact retraining, are ``compare/trak/lds/validation``; the difference of the chosen estimator
from one is ``compare/trak/lds_difference/validation``. Numbers that differ in a setting inside one run have it at the end:
``lds/validation/damping=1e-07``.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from attribution.images.bins import ALL
from experiments.report.row import BINS, Row

_WORDS = (" ", "_"), ("_%", ""), ("/", "_")
"""What is replaced in a name, because slashes separate its parts."""


@dataclass(frozen=True)
class Curve:
    """A metric of one run over a swept setting: ``points`` (setting, value, low, high), sorted by the setting."""

    name: str
    axis: str
    points: Sequence[tuple[float, float, float, float]] = field(default_factory=list)


def summary(rows: Sequence[Row], chosen: str | None = None) -> dict[str, float]:
    """The numbers of all rows by name, with intervals and published numbers, and the ceiling beside those of the chosen estimator.

    Args:
        chosen: the name of the chosen estimator; by default, or if no row is about it, the subject of the first row.
    """
    numbers: dict[str, float] = {}
    for name, row in named(rows, chosen).items():
        ends = {"": row.estimate.value, "/low": row.estimate.low, "/high": row.estimate.high, "/published": row.published}
        if not name.startswith("compare/"):
            ends["/ceiling"] = row.levels.ceiling
        numbers |= {name + end: value for end, value in ends.items() if value is not None and math.isfinite(value)}
    return numbers


def named(rows: Sequence[Row], chosen: str | None = None) -> dict[str, Row]:
    """The rows by name; of rows with the same name, the last."""
    return {"/".join([*base, *_suffix(settings)]): row for base, settings, row in _parts(rows, chosen)}


def curves(rows: Sequence[Row], chosen: str | None = None) -> list[Curve]:
    """For each number that a run has at several values of a numeric setting, its curve over this setting."""
    series: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for base, settings, row in _parts(rows, chosen):
        for axis, value in settings.items():
            if isinstance(value, int | float) and math.isfinite(row.estimate.value):
                others = {name: other for name, other in settings.items() if name != axis}
                point = float(value), row.estimate.value, row.estimate.low, row.estimate.high
                series.setdefault((_short(axis), "/".join([*base, *_suffix(others)])), []).append(point)
    return [Curve(name, axis, sorted(points)) for (axis, name), points in series.items() if len({x for x, *_ in points}) > 1]


def _parts(rows: Sequence[Row], chosen: str | None) -> Iterator[tuple[tuple[str, ...], dict[str, Any], Row]]:
    """For each row the parts of its name, and the settings that distinguish it from other rows with the same parts."""
    if not rows:
        return
    subjects = {row.subject.name for row in rows}
    chosen = chosen if chosen in subjects else rows[0].subject.name
    bases = [_base(row, chosen, rows[0].benchmark) for row in rows]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for base, row in zip(bases, rows, strict=True):
        groups.setdefault(base, []).append(row)
    differing = {base: _differing([_settings(row) for row in group]) for base, group in groups.items()}
    for base, row in zip(bases, rows, strict=True):
        settings = {name: value for name, value in _settings(row).items() if name in differing[base]}
        yield base, {name: value for name, value in settings.items() if not (name in BINS and value == ALL)}, row


def _base(row: Row, chosen: str, main: str) -> tuple[str, ...]:
    """The parts of a row's name without its settings. ``main`` is the benchmark whose name is left out."""
    benchmark = () if row.benchmark == main else (_word(row.benchmark),)
    queries = () if row.queries is None else (_word(row.queries),)
    if row.minus is None:
        compared = () if row.subject.name == chosen else ("compare", _word(row.subject.name))
        return (*compared, *benchmark, _word(row.metric), *queries)
    others = [side.name for side in (row.subject, row.minus) if side.name != chosen] or [chosen]
    return ("compare", _word("_minus_".join(others)), *benchmark, f"{_word(row.metric)}_difference", *queries)


def _settings(row: Row) -> Mapping[str, Any]:
    return {**row.swept, **row.subject.settings, **(row.minus.settings if row.minus else {})}


def _differing(settings: Sequence[Mapping[str, Any]]) -> set[str]:
    names = {name for setting in settings for name in setting}
    return {name for name in names if len({str(setting.get(name)) for setting in settings}) > 1}


def _suffix(settings: Mapping[str, Any]) -> list[str]:
    return [f"{_short(name)}={_word(str(value))}" for name, value in settings.items()]


def _short(setting: str) -> str:
    return setting.removeprefix("estimator.")


def _word(text: str) -> str:
    for old, new in _WORDS:
        text = text.replace(old, new)
    return text
