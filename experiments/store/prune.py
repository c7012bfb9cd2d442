"""Remove nodes from a store by condition. A node that a process is computing is never removed."""

import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from attribution.nodes import Node
from experiments.store.errors import StoreError
from experiments.store.inventory import entries, leftovers
from experiments.store.locks import LOCKS, forget_if_free, lock_files, locked
from experiments.store.plan import needed
from experiments.store.storage import remove
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

    ``unfinished``: only remains of crashes (work in progress, parts whose whole is stored, files of locks); ``older_than_days``:
    only older entries; ``node_class``: only this class; ``keep``: spare these nodes and everything they need. With ``dry_run``
    nothing is removed. A row has class, fingerprint, state, bytes, age (seconds) and removed; the files of locks are one row.

    Raises:
        StoreError: no condition is given, which would remove everything.
    """
    if not unfinished and older_than_days is None and node_class is None and keep is None:
        raise StoreError("prune needs a condition: unfinished, older_than_days, node_class or keep")
    reachable = None if keep is None else needed(keep, store)
    rows = []
    everything = list(entries(store.root))
    left = leftovers(everything)
    for entry in everything:
        state = "leftover" if entry.folder in left else entry.state(store.root)
        row = {"class": entry.kind, "fingerprint": entry.fingerprint, "state": state}
        spared = (
            row["state"] == "running"
            or (unfinished and entry.finished and state != "leftover")
            or (older_than_days is not None and entry.age < older_than_days * _DAY)
            or (node_class is not None and entry.kind != node_class)
            or (reachable is not None and entry.fingerprint in reachable)
        )
        if not spared:
            row |= {"bytes": entry.bytes, "age": entry.age}
            rows.append(row | {"removed": not dry_run and remove(store.root, entry.folder)})
    if node_class is None:
        unfinished_nodes = {entry.fingerprint for entry in everything if not entry.finished}
        rows += _prune_locks(store.root, unfinished_nodes, (older_than_days or 0.0) * _DAY, dry_run)
    return rows


def _prune_locks(root: Path, unfinished: Container[str], age: float, dry_run: bool) -> list[dict[str, Any]]:
    """One row for all files of locks that no process holds, older than ``age`` seconds, without those of unfinished nodes."""
    now = time.time()
    files = [path for path in lock_files(root) if path.stem not in unfinished and now - path.stat().st_mtime >= age]
    free = [path for path in files if _is_free(root, path.stem)]
    if not free:
        return []
    row = {"class": LOCKS, "fingerprint": f"{len(free)} files", "state": "leftover", "bytes": sum(p.stat().st_size for p in free)}
    oldest = max(now - path.stat().st_mtime for path in free)
    removed = [] if dry_run else [forget_if_free(root, path.stem) for path in free]
    return [row | {"age": oldest, "removed": bool(removed) and all(removed)}]


def _is_free(root: Path, fingerprint: str) -> bool:
    with locked(root, [fingerprint]) as free:
        return free
