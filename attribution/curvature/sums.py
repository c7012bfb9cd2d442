"""Sums over training examples in shards, which are merged in pairs as soon as two are stored, so that few lie on disk."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Protocol, Self, TypeVar

from attribution.execution import halves
from attribution.nodes import Get, Node


class Summable(Protocol):
    """An artifact that can be added to another of its kind."""

    def __add__(self, other: Self, /) -> Self: ...


S = TypeVar("S", bound=Summable)


class SumShard(Node[S]):
    """The sum over the training examples ``rows[0]..rows[1]-1``: of one unit of work, or of two halves.

    A subclass has ``rows`` as a field.
    """

    TRANSIENT = True

    rows: tuple[int, int]

    @property
    @abstractmethod
    def unit(self) -> int:
        """The largest number of examples that one node goes through."""

    @abstractmethod
    def compute_unit(self, get: Get) -> S:
        """The sum over at most ``unit`` examples."""

    def parts(self, get: Get) -> Sequence[Self]:
        return [replace(self, rows=rows) for rows in halves(*self.rows, self.unit)]

    def compute(self, get: Get) -> S:
        parts = self.parts(get)
        return merged(parts, get) if parts else self.compute_unit(get)


def merging_bytes(size: float) -> float:
    """The memory of ``merged``: the sum so far, the next part, and their sum, of ``size`` bytes each."""
    return 3 * size


def merged(parts: Sequence[Node[S]], get: Get) -> S:
    """The sum of the artifacts of ``parts``, which are loaded one after the other."""
    return reduce(add, map(get, parts))
