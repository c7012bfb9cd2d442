"""What a crash leaves beside stored nodes: parts that should have been removed when their whole was stored, and files of locks.

The node.json of a whole lists its transient parts under ``parts``: fingerprints by class. In the same way it lists other temporary
nodes that it was made from under ``sources``. These may be needed again, so they are leftovers only if their own node.json says
``temporary``: the run that stored them did not mean to keep them.
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attribution.nodes import Node, short_name
from attribution.nodes.files import read_json
from experiments.store.locks import forget_if_free, lock_files
from experiments.store.storage import GONE, NODE

PARTS = "parts"
SOURCES = "sources"
TEMPORARY = "temporary"


def parts_of(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """The transient parts that node.json lists: fingerprints by class."""
    return record.get(PARTS, {})


def listed(nodes: Iterable[Node]) -> dict[str, list[str]]:
    """Return fingerprints by class, as node.json lists the parts or the sources of a node."""
    names: dict[str, list[str]] = {}
    for node in nodes:
        if node.STORED:
            names.setdefault(short_name(type(node)), []).append(node.fingerprint)
    return names


def orphans(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """The fingerprints of the stored nodes that are leftovers if they exist, given the node.json of all stored nodes."""
    records = list(records)
    temporary = {record["fingerprint"] for record in records if record.get(TEMPORARY)}
    parts = {name for record in records for names in parts_of(record).values() for name in names}
    return parts | {name for record in records for names in record.get(SOURCES, {}).values() for name in names} & temporary


def is_temporary(folder: Path) -> bool:
    """Whether the run that stored this node, which is not a shard, did not mean to keep it. False if it is being removed."""
    try:
        return bool(read_json(folder / NODE).get(TEMPORARY))
    except (OSError, ValueError, AttributeError):
        return False


class Leftovers:
    """The leftovers of the nodes that a process has read."""

    def __init__(self, root: Path):
        self.root = root
        self._parts: dict[str, set[str]] = {}
        self._sources: dict[str, set[str]] = {}
        self._nodes: set[str] = set()

    def note(self, record: Mapping[str, Any]) -> None:
        """Remember a stored node, given its node.json."""
        self._nodes.add(record["fingerprint"])
        for key, noted in ((PARTS, self._parts), (SOURCES, self._sources)):
            for kind, names in record.get(key, {}).items():
                noted.setdefault(kind, set()).update(names)

    def folders(self, spared: Collection[str]) -> Sequence[Path]:
        """The folders of parts and sources that remain, without the ``spared`` fingerprints, and forget about them."""
        parts = [folder for kind, names in self._parts.items() for folder in self._present(kind, names - set(spared))]
        sources = [folder for kind, names in self._sources.items() for folder in self._present(kind, names - set(spared))]
        self._parts.clear()
        self._sources.clear()
        # Unfinished sources (.part) stay: another run may go on with them.
        return [*parts, *(folder for folder in sources if folder.suffix == GONE or (is_temporary(folder) and not folder.suffix))]

    def _present(self, kind: str, names: Collection[str]) -> list[Path]:
        present = os.listdir(self.root / kind) if (self.root / kind).is_dir() else []
        return [self.root / kind / entry for entry in present if entry.split(".")[0] in names]

    def remove_locks(self) -> None:
        """Remove the files of locks that remain, and forget about them. If that is not permitted they stay: they do no harm."""
        if self._nodes:
            with suppress(OSError):
                for path in lock_files(self.root):
                    if path.stem in self._nodes:
                        forget_if_free(self.root, path.stem)
            self._nodes.clear()
