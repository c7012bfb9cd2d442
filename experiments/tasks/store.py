"""``task=store``: list, explain or prune the contents of the store."""

from typing import Literal

from omegaconf import DictConfig

from experiments.store import inventory, inventory_table
from experiments.store.prune import prune
from experiments.store.storage import explained
from experiments.store.store import Store
from experiments.tasks.settings import SettingError


def store(
    config: DictConfig,
    action: Literal["list", "explain", "prune"],
    node: str | None,
    apply: bool,
    unfinished: bool,
    older_than_days: float | None,
    node_class: str | None,
) -> None:
    """List, explain or prune the store.

    Raises:
        SettingError: If ``action`` is ``explain`` and ``node`` is None, or ``prune`` and there is no condition, or
            ``older_than_days`` is below 0.
        StoreError: If the store cannot be read or, to prune it, written.
    """
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
