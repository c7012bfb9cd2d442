"""Nodes: computations whose identity is the content of their fields. This module does no I/O.

A node is a frozen dataclass. Its fields define its result, except those declared with ``execution()`` (device, workers, batch size
of attribution), which say how to compute it. ``fingerprint`` hashes the description. A ``Get`` (the store, or ``InMemory``) turns a
node into its artifact and computes it if necessary.
"""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import add
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from attribution.nodes.artifact import Artifact
from attribution.nodes.identity import class_identity, describe_fields, fingerprint_of, short_name

A = TypeVar("A")
_A = TypeVar("_A", covariant=True)


class Get(Protocol):
    """Turns nodes into artifacts."""

    def __call__(self, node: "Node[A]") -> A: ...

    def many(self, nodes: Sequence["Node[A]"], title: str = "") -> list[A]:
        """The artifacts of all ``nodes``, in order. Missing ones may be computed together, or by other workers on the same list."""
        ...

    def workspace(self, node: "Node") -> Path:
        """A folder for the progress of a long computation. What ``attribution.nodes.saves`` saved there survives a crash."""
        ...


@dataclass(frozen=True)
class Cost:
    """What computing a node takes.

    - ``passes``: forward and backward passes of one network input, each of which takes ``pass_weight`` times as long as that of
      the training loss
    - ``products``: multiply-adds in products of matrices, beside the passes
    - ``cubes``: Σ n³ over eigendecompositions of n × n matrices in float64
    - ``memory``: the most bytes held at a time, beside the parameters and the activations of a pass
    - ``inputs``: the network inputs of a pass whose activations are kept; None: as many as the memory of a pass holds, and at most
      ``at_once``
    - ``at_once``: the network inputs that are differentiated at a time, in one pass or several; None: all
    - ``disk``: bytes of the artifact
    - ``scratch``: the most bytes that its parts take on disk at a time, for a node whose parts are not known yet

    Passes include those of the parts; everything else is of the node alone.
    """

    passes: float = 0.0
    pass_weight: float = 1.0
    products: float = 0.0
    cubes: float = 0.0
    memory: float = 0.0
    inputs: float | None = None
    at_once: float | None = None
    disk: float = 0.0
    scratch: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both, one after the other. Passes are converted to weight 1."""
        with_passes = [cost for cost in (self, other) if cost.passes]
        return Cost(
            passes=self.passes * self.pass_weight + other.passes * other.pass_weight,
            products=self.products + other.products,
            cubes=self.cubes + other.cubes,
            memory=max(self.memory, other.memory),
            inputs=_most(cost.inputs for cost in with_passes),
            at_once=_most(cost.at_once for cost in with_passes),
            disk=self.disk + other.disk,
            scratch=max(self.scratch, other.scratch),
        )


def _most(numbers: Iterable[float | None]) -> float | None:
    """The largest number; None if there is none, or if one of them is None."""
    known = list(numbers)
    return None if None in known else max(known, default=None)  # pyright: ignore[reportArgumentType, reportCallIssue]


@dataclass(frozen=True)
class Node(ABC, Generic[_A]):
    """A computation whose result is an artifact.

    A class of this project sets NAME and VERSION itself. NAME identifies it, and stays when the class is renamed or moved; VERSION
    is incremented when the same fields would give a different result. TITLE names the work in progress bars and plans.
    """

    NAME: ClassVar[str]
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = ""
    ARTIFACT: ClassVar[type[Artifact]]
    STORED: ClassVar[bool] = True
    """False if computing the artifact is faster than reading it; it then lives in memory only."""
    TRANSIENT: ClassVar[bool] = False
    """True for shards, which are deleted once the node that they are parts of is stored."""

    @abstractmethod
    def compute(self, get: Get) -> _A:
        """Compute the artifact. Parents come from ``get``."""

    def parts(self, get: Get) -> "Sequence[Node]":
        """Shards of this node. Any number of workers compute them before the node itself.

        A transient node with transient parts merges them. It is computed as soon as they are stored, so that few lie on disk.

        ``get`` gives parents that decide how many parts there are.
        """
        return ()

    @property
    def temporary(self) -> bool:
        """Whether the store deletes this node once no requested node needs it: by TRANSIENT, or by a setting of the run."""
        return self.TRANSIENT

    def together(self) -> Hashable | None:
        """Return the key under which missing nodes are computed in one call, or None to compute this one alone."""
        return None

    @classmethod
    def compute_together(cls, nodes: "Sequence[Self]", get: Get) -> Sequence[_A]:
        """Compute the artifacts of nodes that share a key, in order."""
        return [node.compute(get) for node in nodes]

    def cost(self) -> Cost:
        """An estimate for the dry run. It leaves out parents, and includes the cost of parts while they are unknown."""
        return Cost()

    @classmethod
    def cost_together(cls, nodes: "Sequence[Self]") -> Cost:
        """An estimate for nodes that share a key, computed in one call: what they share counts once.

        By default they share nothing, and are computed one after the other.
        """
        return reduce(add, [node.cost() for node in nodes])

    def passes(self, get: Get) -> float:
        """The passes (forward + backward of one image) that this node alone takes, with its parts and without its parents.

        Passes that several nodes share count for each of them. ``get`` gives parents that decide how many parts there are.
        """
        parts = {part.fingerprint: part for part in self.parts(get)}
        return sum(part.passes(get) for part in parts.values()) if parts else self.cost().passes

    def parents(self) -> "list[Node]":
        """The nodes among the fields, including those inside dataclasses and sequences."""
        return list(_nodes_in(getattr(self, f.name) for f in dataclasses.fields(self)))

    def description(self) -> dict[str, Any]:
        """What defines the result, as plain JSON."""
        return {**class_identity(type(self)), **describe_fields(self)}

    @cached_property
    def described(self) -> Any:
        """The description, computed once: the descriptions of all nodes that depend on this one contain it."""
        return self.description()

    @cached_property
    def fingerprint(self) -> str:
        """20 hexadecimal digits of the SHA-256 of the description."""
        return fingerprint_of(self.described)

    @classmethod
    def title(cls) -> str:
        """The kind of work in words: TITLE, or else the words of the class's name (QueryBlock → query block)."""
        return cls.TITLE or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", short_name(cls)).lower()


@dataclass(frozen=True)
class JointNode(Node[_A]):
    """A node that is always computed by ``compute_together``."""

    def compute(self, get: Get) -> _A:
        return self.compute_together([self], get)[0]

    @classmethod
    @abstractmethod
    def compute_together(cls, nodes: "Sequence[Self]", get: Get) -> Sequence[_A]: ...  # pyright: ignore[reportIncompatibleMethodOverride]


@dataclass(frozen=True)
class SharingNode(JointNode[_A]):
    """A node that shares work with those that are computed with it, mostly passes of the network."""

    def cost(self) -> Cost:
        return self.cost_together([self])

    @classmethod
    @abstractmethod
    def cost_together(cls, nodes: "Sequence[Self]") -> Cost: ...  # pyright: ignore[reportIncompatibleMethodOverride]


def groups(nodes: Sequence[Node[A]]) -> list[list[Node[A]]]:
    """Nodes that are computed together, in order of last appearance: after what comes before any of them."""
    by_key: dict[Hashable, list[Node[A]]] = {}
    for node in nodes:
        key = (type(node), node.fingerprint if (shared := node.together()) is None else shared)
        by_key[key] = group = by_key.pop(key, [])
        group.append(node)
    return list(by_key.values())


def _nodes_in(values: Iterable[Any]) -> Iterator[Node]:
    for value in values:
        if isinstance(value, Node):
            yield value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _nodes_in(getattr(value, f.name) for f in dataclasses.fields(value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from _nodes_in(value)
