"""What the intervals of several rows are, where they differ in what was resampled."""

from collections.abc import Iterable, Sequence

from experiments.metrics.estimate import Estimate
from experiments.report.row import Row

_OVER = ", over "


def common_kind(estimates: Iterable[Estimate]) -> str | None:
    """One name for the intervals of a figure, such as "95 % confidence, over queries and subsets, some also over query draws".

    None if there are none.
    """
    kinds = _kinds(estimates)
    if len(kinds) < 2:
        return next(iter(kinds), None)
    begins, axes = {kind.partition(_OVER)[0] for kind in kinds}, [_axes(kind) for kind in kinds]
    if len(begins) > 1 or not all(axes):
        return "; ".join(kinds)
    shared = [axis for axis in axes[0] if all(axis in others for others in axes)]
    further = list(dict.fromkeys(axis for others in axes for axis in others if axis not in shared))
    if not shared:
        return f"{begins.pop()}{_OVER}{_listed(further, 'or')}"
    return f"{begins.pop()}{_OVER}{_listed(shared)}, some also over {_listed(further)}"


def kinds_of_rows(rows: Sequence[Row]) -> str | None:
    """The kinds of intervals in a table, with the rows that have them if there are several. None if there are none."""
    rows = [row for row in rows if row.estimate.has_interval]
    kinds = _kinds(row.estimate for row in rows)
    if len(kinds) < 2:
        return next(iter(kinds), None)
    *named, last = sorted(kinds, key=lambda kind: -len(_axes(kind)))
    parts = []
    for kind in named:
        by_metric: dict[str, dict[str, None]] = {}
        for row in (row for row in rows if row.estimate.interval == kind):
            names = by_metric.setdefault(row.metric.replace("_", " "), {})
            names[row.estimator if row.minus is None else "differences"] = None
        where = "; ".join(f"{metric}: {', '.join(names)}" for metric, names in by_metric.items())
        parts.append(f"{kind} ({where})")
    return "; ".join([*parts, f"{last} (all others)"])


def _kinds(estimates: Iterable[Estimate]) -> list[str]:
    return list(dict.fromkeys(estimate.interval for estimate in estimates if estimate.has_interval))


def _axes(kind: str) -> list[str]:
    """What was resampled."""
    over = kind.partition(_OVER)[2]
    return over.replace(" and ", ", ").split(", ") if over else []


def _listed(words: Sequence[str], conjunction: str = "and") -> str:
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last
