"""The dry run: which nodes are missing, and an estimate of their time, memory and disk. No stored node is computed."""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from attribution.nodes import Cost, Node, short_name
from experiments.store.inventory import entries
from experiments.store.inventory_table import duration, size
from experiments.store.rehearsal import Rehearsal
from experiments.store.store import Store
from experiments.store.work import Absent, Present


class Rates(Protocol):
    """The time and the memory of a cost on some device."""

    def seconds(self, cost: Cost) -> float:
        """The time; that of a sum of costs is the sum of their times."""
        ...

    def memory(self, cost: Cost) -> float:
        """The most bytes that are held at a time, with the parameters and activations of the network."""
        ...


def plan(
    nodes: Sequence[Node], store: Store, rates: Rates | None = None, lacking: Sequence[tuple[Node, Cost]] | None = None
) -> list[dict[str, Any]]:
    """One row per class with missing nodes, and a last row "total". The parents of a stored node do not count as missing.

    A row has class, work (the kind of work in words), nodes (their number), passes (forward + backward of one image; those that
    nodes share count once), memory (peak bytes of one node, or of nodes that are computed together), disk (bytes; of temporary
    nodes, which are deleted on the way, the most at a time in one process), seconds, unknown (the number of nodes without an
    estimate of time; ``seconds`` leaves them out, and is None if there are no others), and cost (of all nodes together). Without
    ``rates``, memory is what nodes count themselves, and times follow from those of stored nodes of the class. Parts that depend
    on a missing parent count toward the node that they are parts of. ``lacking``: the
    result of ``missing``, if the caller has it.
    """
    lacking = missing(nodes, store) if lacking is None else lacking
    rehearsal, history = Rehearsal(nodes, store), _History(store.root)
    by_class: dict[str, list[_Group]] = {short_name(type(node)): [] for node, _ in lacking}
    for group in _groups(lacking, rehearsal):
        by_class[short_name(type(group.nodes[0]))].append(group)
    rows = [_row(name, groups, rates, history) for name, groups in by_class.items()]
    kept = {name for name, groups in by_class.items() if not groups[0].nodes[0].temporary}
    rows = [row if row["class"] in kept else {**row, "disk": rehearsal.peaks[row["class"]]} for row in rows]
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in ("nodes", "passes", "unknown")}
    total["disk"] = rehearsal.peak + sum(row["disk"] for row in rows if row["class"] in kept)
    memory = max((row["memory"] for row in rows), default=0.0)
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    seconds = sum(known) if known or not rows else None
    cost = reduce(add, [row["cost"] for row in rows], Cost())
    return [*rows, {"class": "total", "work": "", **total, "memory": memory, "seconds": seconds, "cost": cost}]


def announcement(nodes: Sequence[Node], store: Store) -> str | None:
    """One line about the missing work for ``nodes``, its time, memory and disk; None if no node is missing."""
    *rows, total = plan(nodes, store)
    if not rows:
        return None
    unknown = f" plus {total['unknown']} nodes without an estimate" if total["unknown"] else ""
    time = f"about {duration(total['seconds'])}{unknown}" if total["seconds"] is not None else "no estimate of time yet"
    return (
        f"to compute: {total['nodes']} nodes, {total['passes']:,.0f} passes of an image, {time}; at most "
        f"{size(total['memory'])} of memory, {size(total['disk'])} on disk (task=plan lists them)"
    )


def needed(nodes: Sequence[Node], store: Store) -> set[str]:
    """The fingerprints of ``nodes``, their parents and their parts, to any depth, without the shards of stored nodes."""
    present = Present(store)
    fingerprints: set[str] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node.fingerprint not in fingerprints:
            fingerprints.add(node.fingerprint)
            done = node.STORED and store.has(node)
            queue += node.parents()
            queue += [part for part in _parts(node, present) or () if not (done and part.TRANSIENT)]
    return fingerprints


class _Group(NamedTuple):
    """Nodes that are computed in one call, and what the call takes."""

    nodes: Sequence[Node]
    cost: Cost


def _groups(lacking: Sequence[tuple[Node, Cost]], rehearsal: Rehearsal) -> Iterator[_Group]:
    """Yield missing nodes as they are computed together. A node whose parts are not known yet is alone."""
    own = {node.fingerprint: (node, cost) for node, cost in lacking}
    for names in [[node.fingerprint for node in group] for group in rehearsal.groups]:
        if len(names) > 1 and not any(rehearsal.has_parts(name) for name in names):
            nodes = [own.pop(name)[0] for name in names]
            yield _Group(nodes, type(nodes[0]).cost_together(nodes))
    yield from (_Group([node], cost) for node, cost in own.values())


class _History:
    """The time that nodes of a class take, from the times of stored nodes of the class.

    A node's record has its share of the time and of the passes of the nodes that were computed with it.
    """

    def __init__(self, root: Path):
        self._records: dict[str, list[dict[str, Any]]] = {}
        for entry in entries(root):
            if entry.finished and "seconds" in entry.record:
                self._records.setdefault(entry.kind, []).append(entry.record)

    def seconds(self, name: str, group: _Group) -> float | None:
        records = self._records.get(name, [])
        took = sum(record["seconds"] for record in records)
        if group.cost.passes == 0:
            return len(group.nodes) * took / len(records) if records else None
        done = sum(record["cost"]["passes"] for record in records)
        return group.cost.passes * took / done if done else None


def missing(nodes: Sequence[Node], store: Store) -> list[tuple[Node, Cost]]:
    """The nodes that would be computed and stored, each with its own cost."""
    present = Present(store)
    seen: set[str] = set()
    found: list[tuple[Node, Cost]] = []
    queue = list(nodes)
    while queue:
        node = queue.pop(0)
        if node.fingerprint not in seen and not (node.STORED and store.has(node)):
            parts = _parts(node, present)
            if node.STORED:
                cost = node.cost()
                alone = dataclasses.replace(cost, passes=0.0) if parts else dataclasses.replace(cost, disk=cost.disk + cost.scratch)
                found.append((node, alone))
            queue += [*node.parents(), *(parts or ())]
        seen.add(node.fingerprint)
    return found


def _parts(node: Node, present: Present) -> Sequence[Node] | None:
    """The parts of a node; None if they depend on a missing parent."""
    try:
        return node.parts(present)
    except Absent:
        return None


def _row(name: str, groups: Sequence[_Group], rates: Rates | None, history: _History) -> dict[str, Any]:
    costs = [group.cost for group in groups]
    times = [history.seconds(name, group) if rates is None else rates.seconds(group.cost) for group in groups]
    known = [time for time in times if time is not None]
    return {
        "class": name,
        "work": groups[0].nodes[0].title(),
        "nodes": sum(len(group.nodes) for group in groups),
        "passes": sum(cost.passes for cost in costs),
        "memory": max(cost.memory if rates is None else rates.memory(cost) for cost in costs),
        "disk": sum(cost.disk for cost in costs),
        "seconds": sum(known) if known else None,
        "unknown": sum(len(group.nodes) for group, time in zip(groups, times, strict=True) if time is None),
        "cost": reduce(add, costs),
    }
