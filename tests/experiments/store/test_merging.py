"""Sums over many shards: shards are merged in pairs as soon as two are stored, so that few lie on disk or in memory."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from attribution.curvature import sums
from attribution.execution import halves
from attribution.nodes import Cost, Get, InMemory, Node
from experiments.store.plan import plan
from experiments.store.store import Store
from tests.experiments.store.nodes_for_store import Numbers

LARGEST = 41
present: list[int] = []
"""How many sums are there whenever a unit is computed."""
computed: Counter[tuple[int, int]] = Counter()


class Total(Numbers):
    def __add__(self, other: "Total") -> "Total":
        return Total(self.values + other.values)

    @classmethod
    def load(cls, folder):
        return cls(np.load(folder / "values.npy"))


@dataclass(frozen=True)
class SumShard(sums.SumShard[Total]):
    NAME = "SumShard"
    ARTIFACT = Total

    rows: tuple[int, int]

    @property
    def unit(self) -> int:
        return 3

    def compute(self, get: Get) -> Total:
        computed[self.rows] += 1
        return super().compute(get)

    def compute_unit(self, get: Get) -> Total:
        if isinstance(get, Store):
            present.append(len([path for path in get.folder(self).parent.iterdir() if not path.suffix]))
        else:
            present.append(sum(isinstance(artifact, Total) for artifact in get._artifacts.values()))
        return Total(np.arange(*self.rows, dtype=float).sum(keepdims=True))


@dataclass(frozen=True)
class Sum(Node[Total]):
    NAME = "Sum"
    ARTIFACT = Total

    count: int

    def parts(self, get: Get):
        return [SumShard(rows) for rows in halves(0, self.count, 3) or [(0, self.count)]]

    def compute(self, get: Get) -> Total:
        return sums.merged(self.parts(get), get)


@pytest.fixture(autouse=True)
def _fresh():
    present.clear()
    computed.clear()


def units(rows):
    parts = halves(*rows, 3)
    return [unit for part in parts for unit in units(part)] if parts else [rows]


@pytest.mark.parametrize("count", range(1, LARGEST))
def test_halves_end_in_the_units_of_work(count):
    """Claim: divided again and again, a range ends in consecutive ranges of the size of a unit, and a shorter last one."""
    assert units((0, count)) == [(start, min(start + 3, count)) for start in range(0, count, 3)]


@pytest.mark.parametrize("count", [1, 3, 4, 12, 13, 23, LARGEST])
@pytest.mark.parametrize("get", [lambda folder: InMemory(), Store], ids=["memory", "store"])
def test_few_sums_exist_at_a_time(get, count, tmp_path):
    """Claim: each unit is computed once, at most log2(units) sums exist beside the one being computed, and none remains."""
    get = get(tmp_path)
    assert get(Sum(count)).values == sum(range(count))
    number = len(units((0, count)))
    assert max(present) <= np.log2(number)
    assert len(present) == number
    assert set(computed.values()) == {1}
    assert not any((tmp_path / "SumShard").glob("*"))


def test_a_sum_that_was_interrupted_keeps_what_was_merged(tmp_path, monkeypatch):
    """Claim: after an interruption at any computation, nothing that was stored is computed again."""
    compute, failed = SumShard.compute, set()

    def fails_once(self, get):
        if self.rows not in failed:
            failed.add(self.rows)
            raise KeyboardInterrupt
        return compute(self, get)

    monkeypatch.setattr(SumShard, "compute", fails_once)
    while True:
        try:
            total = Store(tmp_path)(Sum(LARGEST))
            break
        except KeyboardInterrupt:
            pass
    assert total.values == sum(range(LARGEST))
    assert len(failed) == len(computed)
    assert set(computed.values()) == {1}


@dataclass(frozen=True)
class Sized(SumShard):
    NAME = "SizedShard"

    def cost(self) -> Cost:
        return Cost(disk=10.0, passes=1.0)


@dataclass(frozen=True)
class SizedSum(Sum):
    NAME = "SizedSum"

    def parts(self, get: Get):
        return [Sized(rows) for rows in halves(0, self.count, 3) or [(0, self.count)]]

    def cost(self) -> Cost:
        return Cost(disk=10.0)


@pytest.mark.parametrize("count", [1, 4, 23, LARGEST])
def test_a_plan_counts_the_sums_that_exist_at_a_time(count, tmp_path, monkeypatch):
    """Claim: the plan's disk is the largest that a run takes, which is what is there while the last of the largest sums merge."""
    rows = {row["class"]: row for row in plan([SizedSum(count)], Store(tmp_path))}
    largest, sweep = [], Store._sweep_sources

    def measure(self, *of):
        largest.append(10.0 * len([path for path in (tmp_path / "SizedShard").iterdir() if not path.suffix]))
        return sweep(self, *of)

    monkeypatch.setattr(Store, "_sweep_sources", measure)
    Store(tmp_path)(SizedSum(count))
    assert rows["SizedShard"]["disk"] == max(largest)
    assert rows["total"]["disk"] == max(largest) + 10.0
