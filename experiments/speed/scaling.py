"""How time, memory and disk of attribution grow with N, Q, K and P (``task=speed task.suite=scaling``, docs/speed.md).

Each point is attribution from a trained model to stored scores, in a process of its own with an empty store. One size at a time
grows from its smallest value.
"""

import itertools
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from attribution.checks import FieldError
from attribution.device_memory import process_bytes
from attribution.nodes import Node
from experiments.metrics.estimate import Estimate
from experiments.metrics.scaling import Growth, exponent
from experiments.report.row import Row, Subject
from experiments.speed.rates import Rates
from experiments.speed.timing import synchronize
from experiments.store.inventory import file_size
from experiments.store.peak_memory import peak_memory
from experiments.store.plan import plan
from experiments.store.store import Store

BENCHMARK, LAWS = "scaling", "scaling_laws"
AXES = {"N": "training images N", "Q": "queries Q", "K": "draws K", "P": "parameters P"}
"""The sizes, and their names in figures."""
PAPER = {"N": 5000.0, "Q": 400.0, "K": 250.0, "P": 36e6}
"""The sizes of K-FAC influence's CIFAR-2 experiments (Mlodozeniec et al. 2025), to which fits are extended."""
_LOOK = 0.02
"""Seconds between two looks at the disk."""


@dataclass(frozen=True, kw_only=True)
class ScalingSuite:
    """The estimators and sizes of ``task.suite=scaling``.

    ``images``: N; ``queries``: Q; ``draws``: K, of every image on both sides and for the curvature; ``widths``: factors of the
    channels of the network, which decide P. Each list ascends. Its first value holds while other sizes grow.
    """

    estimators: Sequence[str]
    images: Sequence[int]
    queries: Sequence[int]
    draws: Sequence[int]
    widths: Sequence[int]

    def __post_init__(self):
        if isinstance(self.estimators, str) or not self.estimators:
            raise FieldError(self, "estimators", "must be a list of estimators, as [kfac,trak]")
        for field in fields(self)[1:]:
            values = getattr(self, field.name)
            if (
                not isinstance(values, Sequence)
                or not values
                or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values)
            ):
                raise FieldError(self, field.name, "must be a list of whole numbers of at least 1")
            if list(values) != sorted(set(values)):
                raise FieldError(self, field.name, "must ascend")

    def sizes(self) -> Iterator["Sizes"]:
        """The sizes of all points: the smallest of each, then each in turn larger."""
        smallest = {name: values[0] for name, values in self._lists().items()}
        yield Sizes(**smallest)
        for name, values in self._lists().items():
            for value in values[1:]:
                yield Sizes(**{**smallest, name: value})

    def _lists(self) -> dict[str, Sequence[int]]:
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of one point."""

    images: int
    queries: int
    draws: int
    widths: int

    def __str__(self) -> str:
        return ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self))


@dataclass(frozen=True)
class Work:
    """The attribution of one point: computing ``scores`` of a network with ``parameters``, once the ``parents`` exist.

    ``rates`` measures the constants of a plan, given a folder for files.
    """

    parameters: int
    rates: Callable[[Path], Rates]
    parents: Sequence[Node]
    scores: Node


@dataclass(frozen=True)
class Measured:
    """What one point took, and the memory and disk of the plan. ``seconds`` are of the CPU, or of the clock on a GPU."""

    estimator: str
    sizes: Mapping[str, int]
    passes: float
    seconds: float
    memory: float
    disk: float
    planned_memory: float
    planned_disk: float

    def values(self) -> dict[str, float]:
        """The numbers of a row each."""
        return {
            "passes": self.passes,
            "seconds": self.seconds,
            "memory, MB": self.memory / 1e6,
            "planned memory, MB": self.planned_memory / 1e6,
            "disk, MB": self.disk / 1e6,
            "planned disk, MB": self.planned_disk / 1e6,
        }


MEASURED = ("seconds", "memory, MB", "disk, MB")
"""The metrics to which laws are fitted."""


def measure(estimator: str, sizes: Sizes, work: Work, threads: int) -> Measured:
    """Measure one point."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for parent in work.parents:
            store(parent)
        rates = work.rates(store.root)
        *_, total = plan([work.scores], store, rates)
        before = _bytes_on_disk(store.root)
        pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with pool:
            running, disk = pool.submit(_attribute, store.root, work.parents, work.scores, threads), before
            while not running.done():
                disk = max(disk, _bytes_on_disk(store.root))
                time.sleep(_LOOK)
            seconds, memory = running.result()
        known = {"N": sizes.images, "Q": sizes.queries, "K": sizes.draws, "P": work.parameters}
        return Measured(
            estimator=estimator,
            sizes=known,
            passes=total["passes"],
            seconds=seconds,
            memory=memory,
            disk=max(disk, _bytes_on_disk(store.root)) - before,
            planned_memory=total["memory"] - rates.process,
            planned_disk=total["disk"],
        )


def _attribute(root: Path, parents: Sequence[Node], scores: Node, threads: int) -> tuple[float, float]:
    """Compute the scores in this process; return the seconds, and the bytes that it took more than before."""
    torch.set_num_threads(threads)
    store = Store(root)
    for parent in parents:
        store(parent)
    cuda = torch.cuda.is_available()
    clock = time.perf_counter if cuda else time.process_time
    before, start = process_bytes() or 0.0, clock()
    with peak_memory() as peak:
        store(scores)
    synchronize()
    return clock() - start, (peak.device or 0.0) if cuda else (peak.host or before) - before


def _bytes_on_disk(folder: Path) -> int:
    """The bytes of all files in a folder, some of which may be deleted meanwhile."""
    # os.walk leaves out folders that are deleted
    return sum(file_size(Path(path, name)) for path, _, names in os.walk(folder) for name in names)


def rows(points: Sequence[Measured]) -> list[Row]:
    """The measured numbers of all points, then the fitted laws of each estimator."""
    found = [
        _row(BENCHMARK, metric, Subject(point.estimator, dict(point.sizes)), Estimate(value))
        for point in points
        for metric, value in point.values().items()
    ]
    return found + [row for law in laws(points) for row in law.rows()]


@dataclass(frozen=True)
class Law:
    """How a ``metric`` of an estimator grows with one size: the points, sizes ascending, at which the other sizes are smallest."""

    estimator: str
    metric: str
    axis: str
    sizes: Sequence[float]
    values: Sequence[float]

    @cached_property
    def growth(self) -> Growth:
        """The fitted law."""
        return Growth.of(self.sizes, self.values)

    @property
    def extrapolates(self) -> bool:
        """Whether the fit is good enough to go beyond the measured sizes."""
        return self.growth.good

    def at(self, size: float) -> float:
        """The value of the fit at a size."""
        return self.growth.at(size)

    def rows(self) -> list[Row]:
        """The exponent of a power law, and the fit ``a + b · size^p`` with its error and its value at the paper's size."""
        subject = Subject(self.estimator, {"quantity": self.metric, "growing": self.axis})
        beyond = self.at(PAPER[self.axis]) if self.extrapolates else math.nan
        shown = {
            "exponent": exponent(self.sizes, self.values),
            "p of a + b·size^p": Estimate(self.growth.power),
            "its largest error": Estimate(self.growth.error),
            "extrapolated to the paper's size": Estimate(beyond),
        }
        about = {"size": PAPER[self.axis], "largest_measured": max(self.sizes)}
        return [_row(LAWS, metric, subject, estimate, about) for metric, estimate in shown.items()]


def laws(points: Sequence[Measured]) -> list[Law]:
    """The laws of all estimators, metrics and sizes of which there are three values or more."""
    found = []
    for name in dict.fromkeys(point.estimator for point in points):
        of_one = [point for point in points if point.estimator == name]
        smallest = {axis: min(point.sizes[axis] for point in of_one) for axis in AXES}
        for metric, axis in itertools.product(MEASURED, AXES):
            alone = [p for p in of_one if all(p.sizes[other] == smallest[other] for other in AXES if other != axis)]
            measured = sorted((p.sizes[axis], p.values()[metric]) for p in alone)
            if len(measured) > 2 and min(value for _, value in measured) > 0:
                found.append(Law(name, metric, axis, *map(list, zip(*measured, strict=True))))
    return found


def _row(benchmark: str, metric: str, subject: Subject, estimate: Estimate, about: Mapping[str, Any] | None = None) -> Row:
    return Row(benchmark=benchmark, metric=metric, subject=subject, estimate=estimate, about=about or {})
