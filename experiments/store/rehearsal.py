"""How much disk the shards of missing nodes take at a time, found by going through the work without computing anything."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attribution.nodes import Node, groups, short_name
from experiments.store.store import Store
from experiments.store.work import Work


class Rehearsal:
    """A store in which nodes are declared stored instead of computed. It goes as one process does, level by level.

    ``groups``: the nodes of each call of ``compute_together``, in order; nodes whose parts are not known yet are left out.
    ``peaks``: the most bytes of temporary nodes, by class. ``peak``: the most bytes of all temporary nodes together.
    """

    def __init__(self, nodes: Sequence[Node], store: Store):
        self._store = store
        self._stored: dict[str, bool] = {}
        self._held: Counter[str] = Counter()
        self.groups: list[list[Node]] = []
        self.peaks: defaultdict[str, float] = defaultdict(float)
        self.peak = 0.0
        self._work = Work([node for node in nodes if not self.has(node)], self)
        for level in self._work.levels():
            for group in groups(level):
                self._finish(group)

    def __call__(self, node: Node[Any]) -> Any:
        return self._store(node)

    def many(self, nodes: Sequence[Node[Any]], title: str = "") -> list[Any]:
        return self._store.many(nodes, title)

    def workspace(self, node: Node) -> Path:
        return self._store.workspace(node)

    def has(self, node: Node) -> bool:
        name = node.fingerprint
        return self._stored[name] if name in self._stored else self._store.has(node)

    def has_parts(self, fingerprint: str) -> bool:
        """Return whether a missing node has parts, to which its passes count."""
        return bool(self._work.parts[fingerprint])

    def _finish(self, group: Sequence[Node]) -> None:
        """Declare the missing nodes of a group stored, and then go on as the store does."""
        group = [node for node in group if not self.has(node) and self._work.needs(node)]
        if group:
            self.groups.append(group)
        for node in group:
            self._stored[node.fingerprint] = True
            if node.temporary:
                self._hold(node, node.cost().disk)
        for node in group:
            for source in self._work.spare_sources(node):
                if self._stored.pop(source.fingerprint, False):
                    self._hold(source, -source.cost().disk)
            for users in self._work.next(node):
                self._finish(users)

    def _hold(self, node: Node, size: float) -> None:
        kind = short_name(type(node))
        self._held[kind] += size  # pyright: ignore[reportArgumentType]
        self.peaks[kind] = max(self.peaks[kind], self._held[kind])
        self.peak = max(self.peak, sum(self._held.values()))
