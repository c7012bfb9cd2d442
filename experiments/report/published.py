"""Published numbers, which stand beside measured ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.report.row import Row


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number that a paper reports: the ``value`` of a ``metric`` of an ``estimator``, found in ``source`` ("table 1").

    ``value`` has the unit of the metric's rows. ``settings`` are the estimator's own, by their names in the configuration.
    ``queries`` and ``data`` limit it to one kind of queries and one data set of the paper, and ``benchmark`` to the rows of one
    benchmark where several share a metric; None: whatever the row has.

    Raises:
        TypeError: ``value`` is not a number, or ``settings`` is not a mapping.
    """

    metric: str
    estimator: str
    value: float
    source: str
    queries: str | None = None
    data: str | None = None
    benchmark: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise TypeError(f"value={self.value!r} must be a number")
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings={self.settings!r} must be a mapping")

    def concerns(self, row: Row, data: str | None) -> bool:
        """Whether this is the number of the ``row``, whose data take the place of the data set ``data``. Differences have none."""
        return (
            row.minus is None
            and (self.metric, self.estimator) == (row.metric, row.estimator)
            and self.queries in (None, row.queries)
            and self.data in (None, data)
            and self.benchmark in (None, row.benchmark)
            and all(str(row.settings.get(name)) == str(value) for name, value in self.settings.items())
        )
