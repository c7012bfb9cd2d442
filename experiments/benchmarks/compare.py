"""The comparison that every benchmark makes: an estimate for each subject, and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.metrics.bootstrap import Statistic
from experiments.report.row import Levels, Row, Subject


def compare(
    subjects: Sequence[Subject],
    values: Sequence[Statistic],
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
        subjects: what is compared; the first one's estimator is the one that others are compared with.
        values: a number for each subject, all in the same resamples.
        levels: the reference levels of all subjects, or of each.
        swept: settings that the rows share but other rows of the benchmark do not.
        about: facts for all rows.
        about_each: facts for each subject's own row.
        differences: positions (a, b) of the subjects whose difference a − b is reported; by default ``pairs(subjects)``.
    """
    shared: dict[str, Any] = {"benchmark": benchmark, "metric": metric, "queries": queries, "swept": swept or {}}
    of_each = levels if isinstance(levels, Sequence) else [levels or Levels()] * len(subjects)
    facts = about_each or [{}] * len(subjects)
    rows = [
        Row(subject=subject, estimate=value.estimate(), levels=level, about={**(about or {}), **fact}, **shared)
        for subject, value, level, fact in zip(subjects, values, of_each, facts, strict=True)
    ]
    for a, b in pairs(subjects) if differences is None else differences:
        difference = (values[a] - values[b]).estimate()
        rows.append(Row(subject=subjects[a], minus=subjects[b], estimate=difference, about=about or {}, **shared))
    return rows


def pairs(subjects: Sequence[Subject]) -> list[tuple[int, int]]:
    """Positions (a, b) of the subjects to compare: each of another estimator than the first with one of the first estimator.

    Compared are subjects with the same value in every setting that both have; of several the first. Where there is none, the first
    estimator's first is taken. Scores of bins of timesteps are not compared.
    """
    name = subjects[0].name
    firsts = [a for a, subject in enumerate(subjects) if subject.name == name and subject.all_timesteps]
    others = [b for b, subject in enumerate(subjects) if subject.name != name and subject.all_timesteps]
    found = []
    for b in others if firsts else ():
        alike = (a for a in firsts if _agree(subjects[a].settings, subjects[b].settings))
        found.append((next(alike, firsts[0]), b))
    return found


def _agree(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    return all(first[name] == second[name] for name in first.keys() & second.keys())
