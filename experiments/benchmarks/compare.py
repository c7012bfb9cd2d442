"""The comparison that every benchmark makes: an estimate for each subject, and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from experiments.metrics.estimate import Estimate
from experiments.report.row import Levels, Row, Subject


class Comparable(Protocol):
    """A number with an interval, whose difference from another one is paired: a ``Statistic``, or ``OverSets``."""

    def __sub__(self, other: Any, /) -> Self: ...

    def estimate(self) -> Estimate: ...


def compare(
    subjects: Sequence[Subject],
    values: Sequence[Comparable],
    *,
    benchmark: str,
    metric: str,
    queries: str | None = None,
    levels: Levels | Sequence[Levels] | None = None,
    swept: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    about_each: Sequence[Mapping[str, Any]] | None = None,
    differences: Sequence[tuple[int, int]] | None = None,
) -> list[Row]:
    """Return a row for each subject's value, then one for the difference of each pair.

    Args:
        subjects: what is compared; the other estimators are compared with that of the first.
        values: a number for each subject, all in the same resamples.
        levels: the reference levels, common to all subjects or one for each.
        swept: settings in which these rows differ from other rows of the benchmark.
        about: facts for all rows.
        about_each: further facts for the row of each subject.
        differences: positions (a, b) of the subjects whose difference a − b is reported; by default ``pairs(subjects)``.
    """
    shared: dict[str, Any] = {"benchmark": benchmark, "metric": metric, "queries": queries, "swept": swept or {}}
    levels_each = levels if isinstance(levels, Sequence) else [levels or Levels()] * len(subjects)
    facts = about_each or [{}] * len(subjects)
    rows = [
        Row(subject=subject, estimate=value.estimate(), levels=level, about={**(about or {}), **fact}, **shared)
        for subject, value, level, fact in zip(subjects, values, levels_each, facts, strict=True)
    ]
    for a, b in pairs(subjects) if differences is None else differences:
        difference = (values[a] - values[b]).estimate()
        rows.append(Row(subject=subjects[a], minus=subjects[b], estimate=difference, about=about or {}, **shared))
    return rows


def pairs(subjects: Sequence[Subject]) -> list[tuple[int, int]]:
    """Pair every subject b of another estimator with a subject a of the first estimator; return their positions (a, b).

    a is the first subject that has the same value as b in every setting that both have, or the first of all if there is none.
    Scores of bins of timesteps are not compared.
    """
    if not subjects:
        return []
    name = subjects[0].name
    firsts = [a for a, subject in enumerate(subjects) if subject.name == name and subject.all_timesteps]
    others = [b for b, subject in enumerate(subjects) if subject.name != name and subject.all_timesteps]
    positions = []
    for b in others if firsts else ():
        alike = (a for a in firsts if _agree(subjects[a].settings, subjects[b].settings))
        positions.append((next(alike, firsts[0]), b))
    return positions


def _agree(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(first[name] == second[name] for name in first.keys() & second.keys())
