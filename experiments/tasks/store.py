"""``task=store``: list, explain or prune the contents of the store, or check its file system."""

import os
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from experiments.store import inventory, inventory_table
from experiments.store.check import check
from experiments.store.errors import StoreError
from experiments.store.prune import prune
from experiments.store.storage import explained
from experiments.store.store import Store
from experiments.tasks.settings import SettingError

_SECONDS_TO_MEET = 120.0
_STATES = {True: "ok", False: "failed", None: "not checked"}


def store(
    config: DictConfig,
    action: Literal["list", "explain", "prune", "check"],
    node: str | None,
    apply: bool,
    unfinished: bool,
    older_than_days: float | None,
    node_class: str | None,
    processes: int | None,
) -> None:
    """List, explain or prune the store, or check its file system.

    Raises:
        SettingError: If ``action`` is ``explain`` and ``node`` is None, or ``prune`` and there is no condition, or
            ``older_than_days`` is below 0, or ``processes`` below 1.
        StoreError: If the store cannot be read or, to prune it, written; or if its file system fails the check.
    """
    if processes is not None and processes < 1:
        raise SettingError(f"task.processes={processes}: must be at least 1")
    if action == "check":
        check_file_system(Path(config.store.root), processes or processes_of_step())
        return
    if older_than_days is not None and older_than_days < 0:
        raise SettingError(f"task.older_than_days={older_than_days}: must be at least 0")
    if action == "prune" and not unfinished and older_than_days is None and node_class is None:
        raise SettingError("task.action=prune needs task.unfinished=true, task.older_than_days=DAYS or task.node_class=CLASS")
    opened = Store(config.store.root)
    with explained(opened.root):
        if action == "list":
            inventory_table.show(inventory.listing(opened.root), str(opened.root))
        elif action == "prune":
            rows = prune(opened, unfinished=unfinished, older_than_days=older_than_days, node_class=node_class, dry_run=not apply)
            inventory_table.show(rows, "removed" if apply else "would be removed (task.apply=true does it)")
        elif node is None:
            raise SettingError("task.action=explain needs task.node=FINGERPRINT, or its beginning; task.action=list shows them")
        else:
            inventory_table.show_explanation(inventory.explain(opened.root, node))


def check_file_system(root: Path, processes: int) -> None:
    """Print a line for each property of the file system of ``root``; ``processes`` run this check at the same time.

    Raises:
        StoreError: If the file system lacks a property.
    """
    lacking = []
    for finding in check(root, processes, _SECONDS_TO_MEET):
        print(f"{_STATES[finding.ok]:12}{finding.name:8}{finding.text}", flush=True)
        lacking += [finding.name] if finding.ok is False else []
    if lacking:
        raise StoreError(f"the file system of store.root={root} cannot hold a shared store: {', '.join(lacking)} failed")


def processes_of_step() -> int:
    """Return the number of tasks of the Slurm step (``srun``) that this process is one of, and 1 outside Slurm."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
