"""Published numbers, which stand beside measured ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number that a paper reports: the ``value`` of a ``metric`` of an ``estimator``, found in ``source`` ("table 1").

    ``value`` has the unit of the metric's rows. ``settings`` are the estimator's own, by their names in the configuration.
    ``queries`` and ``data`` limit it to one kind of queries and one data set of the paper; None: whatever the row has.

    Raises:
        TypeError: ``value`` is not a number, or ``settings`` is not a mapping.
    """

    metric: str
    estimator: str
    value: float
    source: str
    queries: str | None = None
    data: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise TypeError(f"value={self.value!r} must be a number")
        if not isinstance(self.settings, Mapping):
            raise TypeError(f"settings={self.settings!r} must be a mapping")

    def concerns(self, metric: str, estimator: str, queries: str | None, data: str | None, settings: Mapping[str, Any]) -> bool:
        """Whether this is the number of a row with these values. ``data``: the data set whose place the row's data take."""
        return (
            (self.metric, self.estimator) == (metric, estimator)
            and self.queries in (None, queries)
            and self.data in (None, data)
            and all(str(settings.get(name)) == str(value) for name, value in self.settings.items())
        )
