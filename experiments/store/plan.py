"""The dry run: what is missing for an answer, and about how much time, memory and disk it will take. Computes nothing stored."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attribution.nodes import Cost, Node
from experiments.store.inventory import entries
from experiments.store.inventory_table import duration, size
from experiments.store.store import Store
from experiments.store.work import Absent, Present


def plan(nodes: Sequence[Node], store: Store, rate: float | None = None) -> list[dict[str, Any]]:
    """A row for each class that is missing and a last one, "total". A node that is there hides all that it was made from.

    Each has class, nodes (how many), passes (forward + backward of one image), memory (peak bytes of one), disk (bytes),
    seconds, and unknown (nodes about whose time nothing is known; ``seconds`` leaves them out, and is None if they are all).
    ``rate``: seconds per pass; None: what the stored nodes of the class took. Parts that cannot be told before a parent is
    there are in the row of the node that they will be parts of.
    """
    history = _History(store.root, rate)
    by_class: dict[str, list[Cost]] = {}
    for node, cost in _missing(nodes, store):
        by_class.setdefault(type(node).__name__, []).append(cost)
    rows = [_row(name, costs, history) for name, costs in by_class.items()]
    total = {key: sum(row[key] for row in rows) for key in ("nodes", "passes", "disk", "unknown")}
    memory = max((row["memory"] for row in rows), default=0.0)
    known = [row["seconds"] for row in rows if row["seconds"] is not None]
    return [*rows, {"class": "total", **total, "memory": memory, "seconds": sum(known) if known or not rows else None}]


def announcement(nodes: Sequence[Node], store: Store) -> str | None:
    """One line about what ``nodes`` will take, before it starts; None where all of them are there."""
    *rows, total = plan(nodes, store)
    if not rows:
        return None
    unknown = " and what was never done here" if total["unknown"] else ""
    time = f"about {duration(total['seconds'])}{unknown}" if total["seconds"] is not None else "a time not yet known"
    return (
        f"to compute: {total['nodes']} nodes, {total['passes']:,.0f} passes of an image, {time}; at "
        f"most {size(total['memory'])} of memory at a time, {size(total['disk'])} on disk (task=plan says more)"
    )


def needed(nodes: Sequence[Node], store: Store) -> set[str]:
    """Fingerprints of these nodes and what they need: parents, and parts except shards of what is stored already."""
    present = Present(store)
    found: set[str] = set()
    queue = list(nodes)
    while queue:
        node = queue.pop()
        if node.fingerprint not in found:
            found.add(node.fingerprint)
            done = node.STORED and store.has(node)
            queue += node.parents()
            queue += [part for part in _parts(node, present) or () if not (done and part.TRANSIENT)]
    return found


class _History:
    """Seconds that nodes of a class take: by their passes, or by what such nodes took before."""

    def __init__(self, root: Path, rate: float | None):
        self._rate = rate
        self._records: dict[str, list[dict[str, Any]]] = {}
        for entry in entries(root):
            if entry.finished and "seconds" in entry.record:
                self._records.setdefault(entry.kind, []).append(entry.record)

    def seconds(self, name: str, passes: float) -> float | None:
        records = self._records.get(name, [])
        took = sum(record["seconds"] for record in records)
        if passes == 0:
            return took / len(records) if records else None
        if self._rate is not None:
            return passes * self._rate
        done = sum(record["cost"]["passes"] for record in records)
        return passes * took / done if done else None


def _missing(nodes: Sequence[Node], store: Store) -> list[tuple[Node, Cost]]:
    """What would have to be computed and stored, and what each takes beside the others."""
    present = Present(store)
    seen: set[str] = set()
    found: list[tuple[Node, Cost]] = []
    queue = list(nodes)
    while queue:
        node = queue.pop(0)
        if node.fingerprint not in seen and not (node.STORED and store.has(node)):
            parts = _parts(node, present)
            if node.STORED:
                found.append((node, dataclasses.replace(node.cost(), passes=0.0) if parts else node.cost()))
            queue += [*node.parents(), *(parts or ())]
        seen.add(node.fingerprint)
    return found


def _parts(node: Node, present: Present) -> Sequence[Node] | None:
    """None while they depend on what is not computed."""
    try:
        return node.parts(present)
    except Absent:
        return None


def _row(name: str, costs: Sequence[Cost], history: _History) -> dict[str, Any]:
    seconds = [history.seconds(name, cost.passes) for cost in costs]
    known = [value for value in seconds if value is not None]
    return {
        "class": name,
        "nodes": len(costs),
        "passes": sum(cost.passes for cost in costs),
        "memory": max(cost.memory for cost in costs),
        "disk": sum(cost.disk for cost in costs),
        "seconds": sum(known) if known else None,
        "unknown": len(seconds) - len(known),
    }
