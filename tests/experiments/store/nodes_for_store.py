"""Small nodes for the tests of the store, in a module of their own so that other processes can import them.

Each computation appends a line to ``log``, by which tests count who computed what; how long it takes is a setting of execution.
"""

import os
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from attribution.nodes import Artifact, Cost, Get, Node, execution
from attribution.nodes.saves import Saves
from experiments.store.store import Store

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True, eq=False)
class Numbers(Artifact):
    values: np.ndarray

    def save(self, folder: Path) -> None:
        np.save(folder / "values.npy", self.values)

    @classmethod
    def load(cls, folder: Path) -> "Numbers":
        return cls(np.load(folder / "values.npy"))


@dataclass(frozen=True, eq=False)
class SlowNumbers(Numbers):
    """Dies half-way through saving if one lets it: the second file comes late."""

    def save(self, folder: Path) -> None:
        np.save(folder / "values.npy", self.values)
        time.sleep(60)
        np.save(folder / "more.npy", self.values)


def computed(log: Path) -> Counter:
    """How often each thing was computed."""
    return Counter(line.rpartition(" ")[0] for line in log.read_text().splitlines())


def workers_of(log: Path) -> set[str]:
    return {line.rpartition(" ")[2] for line in log.read_text().splitlines()}


def note(log: str, line: str) -> None:
    with open(log, "a") as file:  # short appends are atomic
        file.write(f"{line} {os.getpid()}\n")


@dataclass(frozen=True, kw_only=True)
class Draw(Node[Numbers]):
    """Five random numbers."""

    ARTIFACT: ClassVar[type[Artifact]] = Numbers

    number: int
    scale: float = 1.0
    log: str = execution(default=os.devnull)
    seconds: float = execution(default=0.0)

    def compute(self, get: Get) -> Any:
        note(self.log, f"{type(self).__name__} {self.number}")
        time.sleep(self.seconds)
        return Numbers(self.scale * np.random.default_rng(self.number).standard_normal(5))

    def cost(self) -> Cost:
        return Cost(passes=10.0, memory=100.0 * (1 + self.number), disk=1000.0)


class Newer(Draw):
    """As Draw, after its meaning changed."""


@dataclass(frozen=True, kw_only=True)
class Shard(Draw):
    TRANSIENT = True


@dataclass(frozen=True, kw_only=True)
class Table(Node[Numbers]):
    """Shards, put together; ``seconds`` each."""

    ARTIFACT = Numbers

    shards: int
    log: str = execution(default=os.devnull)
    seconds: float = execution(default=0.0)

    def parts(self, get: Get) -> Sequence[Node]:
        return [Shard(number=i, log=self.log, seconds=self.seconds) for i in range(self.shards)]

    def compute(self, get: Get) -> Numbers:
        note(self.log, "Table")
        return Numbers(np.stack([shard.values for shard in get.many(self.parts(get))]))


@dataclass(frozen=True, kw_only=True)
class Half(Node[Numbers]):
    """The mean of the first or the last numbers of the same shards: two nodes that share parts."""

    ARTIFACT = Numbers

    last: bool
    log: str = execution(default=os.devnull)

    def parts(self, get: Get) -> Sequence[Node]:
        return [Shard(number=i, log=self.log) for i in range(3)]

    def compute(self, get: Get) -> Numbers:
        return Numbers(np.stack([shard.values[-1 if self.last else 0] for shard in get.many(self.parts(get))]))


@dataclass(frozen=True, kw_only=True)
class Sized(Node[Numbers]):
    """Its parts depend on what a parent holds."""

    ARTIFACT = Numbers

    parent: Draw
    log: str = execution(default=os.devnull)

    def parts(self, get: Get) -> Sequence[Node]:
        return [Shard(number=i, log=self.log) for i in range(len(get(self.parent).values))]

    def compute(self, get: Get) -> Numbers:
        return Numbers(np.stack([shard.values for shard in get.many(self.parts(get))]))


@dataclass(frozen=True, kw_only=True)
class Child(Node[Numbers]):
    ARTIFACT = Numbers

    parent: Node[Numbers]
    number: int = 0

    def compute(self, get: Get) -> Numbers:
        return Numbers(get(self.parent).values + self.number)


@dataclass(frozen=True, kw_only=True)
class Fleeting(Draw):
    """Not worth a folder."""

    STORED = False


@dataclass(frozen=True, kw_only=True)
class Crowd(Draw):
    """Computed together with those of the same parity."""

    def together(self) -> Hashable:
        return self.number % 2

    @classmethod
    def compute_together(cls, nodes: Sequence[Any], get: Get) -> list[Numbers]:
        note(nodes[0].log, "Crowd " + ",".join(str(node.number) for node in nodes))
        time.sleep(nodes[0].seconds)
        return [Numbers(np.full(2, float(node.number))) for node in nodes]


@dataclass(frozen=True, kw_only=True)
class Steps(Draw):
    """Ten steps, each saved in the workspace; one started anew goes on from the last."""

    def compute(self, get: Get) -> Numbers:
        saves = Saves(get.workspace(self), self.fingerprint)
        start = saves.intact().last
        saves.resume(start)
        values = np.load(saves.path(f"steps-{start}.npy")) if start else np.zeros(0)
        for step in range(start, 10):
            time.sleep(self.seconds)
            values = np.append(values, np.random.default_rng((self.number, step)).standard_normal())
            np.save(saves.path(f"steps-{step + 1}.npy"), values)
            saves.save(step + 1, [saves.path(f"steps-{step + 1}.npy")])
            note(self.log, f"step {step}")
        return Numbers(values)


@dataclass(frozen=True, kw_only=True)
class SlowSave(Draw):
    ARTIFACT = SlowNumbers

    def compute(self, get: Get) -> Numbers:
        note(self.log, "computed")
        return SlowNumbers(np.arange(5.0))


@dataclass(frozen=True, kw_only=True)
class Selfish(Draw):
    """Needs itself, by way of a child."""

    def compute(self, get: Get) -> Any:
        return get(Child(parent=self))


@dataclass(frozen=True, kw_only=True)
class Failing(Draw):
    error: type[BaseException] = execution(default=ValueError)

    def compute(self, get: Get) -> Any:
        saves = Saves(get.workspace(self), self.fingerprint)
        saves.path("progress.txt").write_text("so far")
        saves.save(1, [saves.path("progress.txt")])
        raise self.error("no")


def work(root: str, nodes: Sequence[Node], barrier: Any = None) -> None:
    """What a worker process does, when all are there."""
    if barrier is not None:
        barrier.wait()
    Store(root).many(nodes)


def sweep_while_read(root: str, log: str, rounds: int, barrier: Any) -> None:
    """Asks for one table after another: processes that do so together compute, finish, sweep and look for the same shards."""
    barrier.wait()
    for i in range(rounds):
        Store(root).many([Table(shards=1 + i % 5, log=log), Half(last=bool(i % 2), log=log), Sized(parent=Draw(number=i), log=log)])
