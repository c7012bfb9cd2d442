"""What one call to a store has to make: the missing nodes and, below them, all that they are made from and is missing."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attribution.nodes import Get, Node
from experiments.store.storage import StoreError

A = TypeVar("A")


class Lookup(Get, Protocol):
    """A ``Get`` that can tell whether it would have to compute."""

    def has(self, node: Node) -> bool: ...


class Absent(Exception):
    """``nodes`` would have to be computed first."""

    def __init__(self, nodes: Sequence[Node]):
        super().__init__(", ".join(f"{type(node).__name__} {node.fingerprint}" for node in nodes))
        self.nodes = nodes


class Present:
    """A ``Get`` of what ``lookup`` has: it computes what lives in memory only, and nothing that belongs on disk.

    Raises (from every way of asking for an artifact):
        Absent: stored nodes are missing.
    """

    def __init__(self, lookup: Lookup):
        self._lookup = lookup
        self._made: dict[str, Any] = {}

    def __call__(self, node: Node[A]) -> A:
        return self.many([node])[0]

    def many(self, nodes: Sequence[Node[A]], title: str = "") -> list[A]:
        if absent := [node for node in nodes if node.STORED and not self._lookup.has(node)]:
            raise Absent(absent)
        return [self._one(node) for node in nodes]

    def workspace(self, node: Node) -> Path:
        return self._lookup.workspace(node)

    def _one(self, node: Node[A]) -> A:
        if node.STORED or self._lookup.has(node):
            return self._lookup(node)
        if node.fingerprint not in self._made:
            self._made[node.fingerprint] = node.compute(self)
        return self._made[node.fingerprint]


class Work:
    """The nodes of ``asked``, their missing parts and missing parents, to any depth, in levels: each after what it is made from.

    So processes with the same list divide all of it, down to the trainings that it starts from.
    ``open`` are the fingerprints of nodes whose parts cannot be told before others are there, which then count as what they are
    made from; once the lowest level is there, one can tell more.
    ``parts`` are those of each node, by fingerprint.
    What others are made from is needed as long as one of these is missing and needed itself.

    Raises:
        StoreError: a node is made from itself.
    """

    def __init__(self, asked: Sequence[Node], lookup: Lookup):
        self.asked = {node.fingerprint: node for node in asked}
        self.open: set[str] = set()
        self._lookup = lookup
        self._present = Present(lookup)
        self._level: dict[str, int] = {}
        self._nodes: dict[str, Node] = {}
        self.parts: dict[str, Sequence[Node]] = {}
        self._sources: dict[str, Sequence[Node]] = {}
        self._users: dict[str, list[Node]] = {}
        for node in asked:
            self._visit(node, ())

    def levels(self) -> list[list[Node]]:
        """Those that are stored and not open, lowest parts first; each level needs nothing but the ones before."""
        levels: list[list[Node]] = [[] for _ in range(1 + max(self._level.values(), default=-1))]
        for name, node in self._nodes.items():
            if node.STORED and name not in self.open:
                levels[self._level[name]].append(node)
        return [level for level in levels if level]

    def needs(self, node: Node) -> bool:
        """Whether somebody asked for it, or a missing node that is needed is made from it."""
        if node.fingerprint in self.asked:
            return True
        return any(not self._lookup.has(user) and self.needs(user) for user in self._users.get(node.fingerprint, ()))

    def ready(self, node: Node) -> bool:
        """Whether all that it is made from is there."""
        return all(self._lookup.has(source) for source in self._sources[node.fingerprint])

    def spare_parts(self, node: Node) -> list[Node]:
        """Transient parts of ``node`` that nothing here needs any more."""
        parts = self.parts[node.fingerprint]
        return [part for part in parts if part.TRANSIENT and part.STORED and not self.needs(part)]

    def _visit(self, node: Node, above: tuple[str, ...]) -> None:
        name = node.fingerprint
        if name in above:
            raise StoreError(f"{type(node).__name__} {name} is made from itself: parts() and parents() must not lead back to it")
        if name in self._level:
            return
        parts, before = self._parts_of(node)
        self.parts[name] = parts
        sources = self._sources[name] = [*parts, *before, *self._stored(node.parents())]
        missing = [source for source in sources if not self._lookup.has(source)]
        for source in sources:
            self._users.setdefault(source.fingerprint, []).append(node)
        for source in missing:
            self._visit(source, (*above, name))
        self._level[name] = 1 + max((self._level[source.fingerprint] for source in missing), default=-1)
        self._nodes[name] = node

    def _parts_of(self, node: Node) -> tuple[Sequence[Node], Sequence[Node]]:
        """Its parts, or what has to be there before they can be told."""
        try:
            return node.parts(self._present), ()
        except Absent as absent:
            if any(other.fingerprint == node.fingerprint for other in absent.nodes):
                raise StoreError(f"parts() of {type(node).__name__} {node.fingerprint} asks for the node itself") from absent
            self.open.add(node.fingerprint)
            return (), absent.nodes

    def _stored(self, parents: Iterable[Node]) -> Iterator[Node]:
        """Those that belong on disk; instead of others, unless they are in memory, what these are made from."""
        for parent in parents:
            if parent.STORED:
                yield parent
            elif not self._lookup.has(parent):
                yield from self._stored(parent.parents())
