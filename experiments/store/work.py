"""The work of one call to a store: the missing nodes, and all missing nodes that they depend on."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from attribution.nodes import Get, Node, groups
from experiments.store.errors import StoreError

A = TypeVar("A")


class Lookup(Get, Protocol):
    """A ``Get`` that knows whether a node would have to be computed."""

    def has(self, node: Node) -> bool: ...


class Absent(Exception):
    """Raised by ``Present``: ``nodes`` are missing and would have to be computed first."""

    def __init__(self, nodes: Sequence[Node]):
        super().__init__(", ".join(f"{type(node).__name__} {node.fingerprint}" for node in nodes))
        self.nodes = nodes


class Present:
    """A ``Get`` of the nodes that ``lookup`` has. It computes nodes that are kept in memory only, and none that are stored.

    Every method that returns artifacts raises
        Absent: stored nodes are missing.
    """

    def __init__(self, lookup: Lookup):
        self._lookup = lookup
        self._in_memory: dict[str, Any] = {}

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
        if node.fingerprint not in self._in_memory:
            self._in_memory[node.fingerprint] = node.compute(self)
        return self._in_memory[node.fingerprint]


class Work:
    """The ``requested`` nodes with their missing parts and missing parents, to any depth, in levels.

    Each level depends only on the levels before it. Processes with the same list divide all its levels, including training runs.
    ``open`` has the fingerprints of nodes with parts that are not known until other nodes are computed; until then, their known
    parents stand in. ``parts`` has the parts of each node by fingerprint. A node is needed if it is requested, or as long as a
    needed node that depends on it is missing.

    Raises:
        StoreError: a node depends on itself.
    """

    def __init__(self, requested: Sequence[Node], lookup: Lookup):
        self.requested = {node.fingerprint: node for node in requested}
        self.open: set[str] = set()
        self._lookup = lookup
        self._present = Present(lookup)
        self._level: dict[str, int] = {}
        self._nodes: dict[str, Node] = {}
        self.parts: dict[str, Sequence[Node]] = {}
        self._sources: dict[str, Sequence[Node]] = {}
        self._users: dict[str, list[Node]] = {}
        for node in requested:
            self._visit(node, ())
        self._delay_temporary()

    def levels(self) -> list[list[Node]]:
        """The nodes that are stored and not open. Each level depends only on the levels before it."""
        levels: list[list[Node]] = [[] for _ in range(1 + max(self._level.values(), default=-1))]
        for name, node in self._nodes.items():
            if node.STORED and name not in self.open:
                levels[self._level[name]].append(node)
        return [level for level in levels if level]

    def needs(self, node: Node) -> bool:
        """Return whether a node is requested, or a missing node that is needed depends on it."""
        if node.fingerprint in self.requested:
            return True
        return any(not self._lookup.has(user) and self.needs(user) for user in self._users.get(node.fingerprint, ()))

    def ready(self, node: Node) -> bool:
        """Return whether all nodes that this one depends on are available."""
        return all(self._lookup.has(source) for source in self._sources[node.fingerprint])

    def next(self, node: Node) -> Iterator[list[Node]]:
        """Groups of nodes that are computed as soon as the temporary ``node`` is stored, so that it can be deleted.

        For a shard these are the transient nodes that merge it, for another temporary node all nodes that use it. Whether the
        sources of a group are all stored is known when its turn comes: it may use what the groups before it made.
        """
        users = list({user.fingerprint: user for user in self._users.get(node.fingerprint, ())}.values()) if node.temporary else []
        if node.TRANSIENT:
            users = [user for user in users if user.TRANSIENT and self._has_part(user, node)]
        users = [user for user in users if user.STORED and user.fingerprint not in self.open]
        for group in groups(sorted(users, key=lambda user: self._level[user.fingerprint])):
            if ready := [user for user in group if self.ready(user)]:
                yield ready

    def _has_part(self, whole: Node, node: Node) -> bool:
        return any(part.fingerprint == node.fingerprint for part in self.parts[whole.fingerprint])

    def spare_sources(self, node: Node) -> list[Node]:
        """The temporary parts and parents of ``node`` that are no longer needed."""
        sources = self._sources[node.fingerprint]
        return [source for source in sources if source.temporary and source.STORED and not self.needs(source)]

    def temporary_sources(self, node: Node) -> list[Node]:
        """The temporary nodes that ``node`` is made from, without shards."""
        return [source for source in self._sources[node.fingerprint] if source.temporary and not source.TRANSIENT]

    def _visit(self, node: Node, above: tuple[str, ...]) -> None:
        name = node.fingerprint
        if name in above:
            raise StoreError(f"{type(node).__name__} {name} depends on itself: its parts() and parents() must not contain it")
        if name in self._level:
            return
        parts, absent = self._parts_of(node)
        self.parts[name] = parts
        sources = self._sources[name] = [*parts, *absent, *self._stored(node.parents())]
        missing = [source for source in sources if not self._lookup.has(source)]
        for source in sources:
            self._users.setdefault(source.fingerprint, []).append(node)
        for source in missing:
            self._visit(source, (*above, name))
        self._level[name] = 1 + max((self._level[source.fingerprint] for source in missing), default=-1)
        self._nodes[name] = node

    def _delay_temporary(self) -> None:
        """Move temporary nodes to the level at which all else that their users need is there, so that few exist at a time."""
        earliest = {}
        for name, node in self._nodes.items():
            if node.temporary and not node.TRANSIENT:
                users = {user.fingerprint: user for user in self._users.get(name, ())}
                others = {source.fingerprint for user in users for source in self._sources[user]} - users.keys() - {name}
                earliest[name] = 1 + max((self._level[other] for other in others if other in self._level), default=-1)
        if earliest:
            for name in self._nodes:  # sources come before their users
                below = (self._level.get(source.fingerprint, -1) for source in self._sources[name])
                self._level[name] = max(earliest.get(name, 0), 1 + max(below, default=-1))

    def _parts_of(self, node: Node) -> tuple[Sequence[Node], Sequence[Node]]:
        """The parts of a node, or no parts and the absent nodes that its parts depend on."""
        try:
            return node.parts(self._present), ()
        except Absent as absent:
            if any(other.fingerprint == node.fingerprint for other in absent.nodes):
                raise StoreError(f"parts() of {type(node).__name__} {node.fingerprint} depends on the node itself") from absent
            self.open.add(node.fingerprint)
            return (), absent.nodes

    def _stored(self, parents: Iterable[Node]) -> Iterator[Node]:
        """The parents that are stored nodes. Any other parent is replaced by its own parents unless it is in memory."""
        for parent in parents:
            if parent.STORED:
                yield parent
            elif not self._lookup.has(parent):
                yield from self._stored(parent.parents())
