"""The type of all rows of a report: a measured number with its uncertainty and what it was measured on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from attribution.images.bins import ALL
from experiments.metrics.estimate import LEVEL, Estimate

BINS = ("query_bin", "train_bin")
REQUIRED = ("benchmark", "estimator", "metric", "value", "low", "high", "data", "seed")
"""Fields of every row in ``rows.jsonl``. Unknown numbers are null."""


@dataclass(frozen=True)
class Effort:
    """What scores took: the draws of a query and of a training image, each at each checkpoint, and the passes of the network.

    A pass is forward and backward, of one image. Passes that estimators share count for each of them; those of the curvature and of
    training do not count. None: unknown, or no draws.
    """

    draws_query: int | None = None
    draws_train: int | None = None
    passes: float | None = None


@dataclass(frozen=True)
class Subject:
    """The subject of a number: an estimator at its settings, or a reference such as "exact retraining" or "random removal".

    ``settings`` are those in which subjects of this name differ, by their names in the configuration; ``scores`` is the fingerprint
    of the scores, and ``effort`` what they took.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: str | None = None
    effort: Effort | None = None

    @property
    def label(self) -> str:
        """The name with the settings, as "kfac damping=1e-07"."""
        shown = {name: value for name, value in self.settings.items() if name not in BINS or value != ALL}
        return " ".join([self.name, *(f"{name.removeprefix('estimator.')}={value}" for name, value in shown.items())])

    @property
    def all_timesteps(self) -> bool:
        """Whether its scores cover all timesteps rather than a bin."""
        return all(self.settings.get(name, ALL) == ALL for name in BINS)


@dataclass(frozen=True)
class Levels:
    """Reference levels of a metric: the value of ``random`` scores, the noise ``ceiling``, the ``maximum``. None: unknown."""

    random: float | None = None
    ceiling: float | None = None
    maximum: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number: of ``subject``, or of ``subject`` minus another one.

    ``swept`` are settings in which the rows of a benchmark, or the runs of a sweep, differ, other than the subject's own. ``about``
    has further facts as JSON values: k, n, subsets, seeds, ... A report adds the fields that identify the run, and what a paper
    has ``published`` in its place.
    """

    benchmark: str
    metric: str
    subject: Subject
    estimate: Estimate
    minus: Subject | None = None
    levels: Levels = Levels()
    queries: str | None = None
    swept: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    seed: int | None = None
    command: str | None = None
    experiment: str | None = None
    scale: str | None = None
    hardware: str | None = None
    published: float | None = None
    source: str | None = None
    """Where the number is published, such as "K-FAC influence, figure 2a"."""

    def __post_init__(self):
        if taken := RESERVED & self.about.keys():
            raise ValueError(f"`about` has {', '.join(sorted(taken))}, which are fields of a row: give these facts other names")

    @property
    def estimator(self) -> str:
        """The subject's name, or for a difference the text "a − b"."""
        return self.subject.name if self.minus is None else f"{self.subject.label} − {self.minus.label}"

    @property
    def settings(self) -> dict[str, Any]:
        """All settings in which this row may differ from others: ``swept``, and the subject's unless the row is a difference."""
        return {**self.swept, **(self.subject.settings if self.minus is None else {})}

    def with_swept(self, settings: Mapping[str, Any]) -> "Row":
        """This row with further swept ``settings``; those that it has already take precedence."""
        added = {name: value for name, value in settings.items() if name not in self.settings}
        return replace(self, swept={**added, **self.swept})

    def to_dict(self) -> dict[str, Any]:
        """The fields of the row in ``rows.jsonl`` as JSON values. Optional fields without a value are left out.

        Raises:
            TypeError: a value is not JSON-serializable.
        """
        interval = self.estimate.low, self.estimate.high
        known = any(map(math.isfinite, interval))
        optional: dict[str, Any] = {"queries": self.queries}
        optional |= {"level": self.estimate.level, "interval": self.estimate.kind} if known else {}
        optional |= asdict(self.levels) | dict(self.about)
        if self.minus is None:
            optional |= {"settings": self.subject.settings or None, "scores": self.subject.scores}
            optional |= asdict(self.subject.effort or Effort())
        else:
            optional["scores"] = self.subject.scores and [self.subject.scores, self.minus.scores]
            optional["difference"] = {"first": _side(self.subject), "minus": _side(self.minus)}
        optional |= {"swept": self.settings or None} | {name: getattr(self, name) for name in RUN}
        ends = dict(zip(("value", "low", "high"), (self.estimate.value, *interval), strict=True))
        row = {"benchmark": self.benchmark, "estimator": self.estimator, "metric": self.metric, **ends}
        return plain(row | {"data": self.data, "seed": self.seed} | {n: v for n, v in optional.items() if v is not None})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Row":
        """The row that ``to_dict`` describes.

        Raises:
            ValueError: a required field is missing, or a value is not a number.
        """
        if missing := [name for name in REQUIRED if name not in row]:
            raise ValueError(f"the row {dict(row)} lacks {', '.join(missing)}: every row needs {', '.join(REQUIRED)}")
        names = ("value", "low", "high", "level", "random", "ceiling", "maximum")
        number = {name: _number(row, name) for name in names}
        ends = (math.nan if end is None else end for end in (number["value"], number["low"], number["high"]))
        level = number["level"]
        estimate = Estimate(*ends, level=LEVEL if level is None else level, kind=row.get("interval"))
        settings, difference = row.get("settings") or {}, row.get("difference")
        if difference is None:
            scores = row.get("scores")
            effort = Effort(*(row.get(name) for name in EFFORT)) if any(name in row for name in EFFORT) else None
            subject, minus = Subject(row["estimator"], settings, scores if isinstance(scores, str) else None, effort), None
        else:
            subject, minus = _subject(difference["first"]), _subject(difference["minus"])
        return cls(
            benchmark=row["benchmark"],
            metric=row["metric"],
            subject=subject,
            minus=minus,
            estimate=estimate,
            levels=Levels(number["random"], number["ceiling"], number["maximum"]),
            queries=row.get("queries"),
            swept={name: value for name, value in (row.get("swept") or {}).items() if name not in settings},
            about={name: value for name, value in row.items() if name not in RESERVED},
            data=row["data"],
            seed=row["seed"],
            **{name: row.get(name) for name in RUN},
        )


EFFORT = tuple(field.name for field in fields(Effort))

RUN = ("published", "source", "experiment", "scale", "hardware", "command")
"""Optional fields that a report adds."""

RESERVED = {
    *REQUIRED, *EFFORT, *RUN,
    "queries", "random", "ceiling", "maximum", "level", "interval", "settings", "scores", "difference", "swept",
}  # fmt: skip
"""Fields in ``rows.jsonl`` that are not from ``about``."""


def _side(subject: Subject) -> dict[str, Any]:
    """A side of a difference as JSON values."""
    return {name: value for name, value in asdict(subject).items() if name != "effort" or value is not None}


def _subject(side: Mapping[str, Any]) -> Subject:
    """The side of a difference that ``_side`` describes."""
    effort = side.get("effort")
    return Subject(**{**side, "effort": None if effort is None else Effort(**effort)})


def plain(value: Any) -> Any:
    """Convert to JSON values: NumPy numbers to Python's, NaN and infinities to None.

    Raises:
        TypeError: a value is not JSON-serializable.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be part of a row: use numbers, text, lists and mappings")


def _number(row: Mapping[str, Any], name: str) -> float | None:
    number = row.get(name)
    if not isinstance(number, int | float | None):
        raise ValueError(f"{name}={number!r} of metric {row['metric']} must be a number, or null where it is not known")
    return number
