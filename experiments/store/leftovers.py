"""What a crash leaves beside stored nodes: parts that should have been removed when their whole was stored, and files of locks.

The node.json of a whole lists its transient parts under ``parts``: fingerprints by class.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attribution.nodes import Node, short_name
from experiments.store.locks import forget_if_free, lock_files

PARTS = "parts"


def parts_of(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """The transient parts that node.json lists: fingerprints by class."""
    return record.get(PARTS, {})


def listed(parts: Iterable[Node]) -> dict[str, list[str]]:
    """What node.json lists of the parts of a node."""
    names: dict[str, list[str]] = {}
    for part in parts:
        if part.TRANSIENT and part.STORED:
            names.setdefault(short_name(type(part)), []).append(part.fingerprint)
    return names


def orphans(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """The fingerprints of all transient parts of stored nodes, given the node.json of these nodes."""
    return {name for record in records for names in parts_of(record).values() for name in names}


class Leftovers:
    """The leftovers of the nodes that a process has read."""

    def __init__(self, root: Path):
        self.root = root
        self._parts: dict[str, set[str]] = {}
        self._nodes: set[str] = set()

    def note(self, record: Mapping[str, Any]) -> None:
        """Remember a stored node, given its node.json."""
        self._nodes.add(record["fingerprint"])
        for kind, names in parts_of(record).items():
            self._parts.setdefault(kind, set()).update(names)

    def parts(self, spared: Collection[str]) -> Sequence[Path]:
        """The folders of parts that remain, without the ``spared`` fingerprints, and forget about them."""
        folders = []
        for kind, names in self._parts.items():
            present = os.listdir(self.root / kind) if (self.root / kind).is_dir() else []
            folders += [self.root / kind / entry for entry in present if entry.split(".")[0] in names - set(spared)]
        self._parts.clear()
        return folders

    def remove_locks(self) -> None:
        """Remove the files of locks that remain, and forget about them. If that is not permitted they stay: they do no harm."""
        if self._nodes:
            with suppress(OSError):
                for path in lock_files(self.root):
                    if path.stem in self._nodes:
                        forget_if_free(self.root, path.stem)
            self._nodes.clear()
