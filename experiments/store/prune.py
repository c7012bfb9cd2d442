"""Remove nodes from a store by condition. A node that a process is computing is never removed."""

from collections.abc import Sequence
from typing import Any

from attribution.nodes import Node
from experiments.store.inventory import entries
from experiments.store.plan import needed
from experiments.store.storage import StoreError, remove
from experiments.store.store import Store

_DAY = 86400.0


def prune(
    store: Store,
    *,
    unfinished: bool = False,
    older_than_days: float | None = None,
    node_class: str | None = None,
    keep: Sequence[Node] | None = None,
    dry_run: bool = True,
) -> list[dict[str, Any]]:
    """Remove the entries that meet all given conditions, and return a row for each.

    ``unfinished``: only remains of crashes; ``older_than_days``: only older entries; ``node_class``: only this class; ``keep``:
    spare these nodes and everything they need. With ``dry_run`` nothing is removed. A row has class,
    fingerprint, state, bytes, age (seconds) and removed.

    Raises:
        StoreError: no condition is given, which would remove everything.
    """
    if not unfinished and older_than_days is None and node_class is None and keep is None:
        raise StoreError("prune needs a condition: unfinished, older_than_days, node_class or keep")
    reachable = None if keep is None else needed(keep, store)
    rows = []
    for entry in entries(store.root):
        row = {"class": entry.kind, "fingerprint": entry.fingerprint, "state": entry.state(store.root)}
        spared = (
            row["state"] == "running"
            or (unfinished and entry.finished)
            or (older_than_days is not None and entry.age < older_than_days * _DAY)
            or (node_class is not None and entry.kind != node_class)
            or (reachable is not None and entry.fingerprint in reachable)
        )
        if not spared:
            row |= {"bytes": entry.bytes, "age": entry.age}
            rows.append(row | {"removed": not dry_run and remove(store.root, entry.folder)})
    return rows
