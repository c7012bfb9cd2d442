"""The dry run: which nodes are missing, and an estimate of their time, memory and disk. No stored node is computed."""

import dataclasses
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Protocol

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

    A row has class, work (the kind of work in words), nodes (their number), passes (forward + backward of one image), memory (peak
    bytes of one node), disk (bytes; of temporary nodes, which are deleted on the way, the most at a time in one process), seconds,
    unknown (the number of nodes without an estimate of time; ``seconds`` leaves them out, and is None if there are no others), and
    cost (of all nodes together). Without ``rates``, memory is what nodes count themselves, and times follow from those of
    stored nodes of the class. Parts that depend on a missing parent count toward the node that they are parts of. ``lacking``: the
    result of ``missing``, if the caller has it.
    """
    history = _History(store.root)
    by_class: dict[str, list[tuple[Node, Cost]]] = {}
    for node, cost in missing(nodes, store) if lacking is None else lacking:
        by_class.setdefault(short_name(type(node)), []).append((node, cost))
    rows = []
    for name, group in by_class.items():
        costs = [cost for _, cost in group]
        times = [history.seconds(name, cost.passes) for cost in costs] if rates is None else list(map(rates.seconds, costs))
        memory = max(cost.memory for cost in costs) if rates is None else max(map(rates.memory, costs))
        rows.append(_row(name, group[0][0].title(), costs, times, memory))
    shards, kept = Rehearsal(nodes, store), {name for name, group in by_class.items() if not group[0][0].temporary}
    rows = [row if row["class"] in kept else {**row, "disk": shards.peaks[row["class"]]} for row in rows]
    total: dict[str, Any] = {key: sum(row[key] for row in rows) for key in ("nodes", "passes", "unknown")}
    total["disk"] = shards.peak + sum(row["disk"] for row in rows if row["class"] in kept)
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


class _History:
    """The time that nodes of a class take, from the times of stored nodes of the class."""

    def __init__(self, root: Path):
        self._records: dict[str, list[dict[str, Any]]] = {}
        for entry in entries(root):
            if entry.finished and "seconds" in entry.record:
                self._records.setdefault(entry.kind, []).append(entry.record)

    def seconds(self, name: str, passes: float) -> float | None:
        records = self._records.get(name, [])
        took = sum(record["seconds"] for record in records)
        if passes == 0:
            return took / len(records) if records else None
        done = sum(record["cost"]["passes"] for record in records)
        return passes * took / done if done else None


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


def _row(name: str, work: str, costs: Sequence[Cost], seconds: Sequence[float | None], memory: float) -> dict[str, Any]:
    known = [value for value in seconds if value is not None]
    return {
        "class": name,
        "work": work,
        "nodes": len(costs),
        "passes": sum(cost.passes for cost in costs),
        "memory": memory,
        "disk": sum(cost.disk for cost in costs),
        "seconds": sum(known) if known else None,
        "unknown": len(seconds) - len(known),
        "cost": reduce(add, costs),
    }
