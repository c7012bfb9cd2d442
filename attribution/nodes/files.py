"""Files that survive a crash: written and synced before they get their names, and known by their size and SHA-256."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_MAX_DEPTH = 200
"""Objects and lists within each other; descriptions of nodes have about 20."""


@dataclass(frozen=True)
class Digest:
    """The size and the SHA-256 of a file."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, sync: bool = False) -> Self:
        """Read the file at ``path``; ``sync`` also flushes it to disk."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if sync:
                os.fsync(file.fileno())
            return cls(file.tell(), digest)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` so that a crash leaves the whole file, the previous one, or none."""
    part = path.with_name(path.name + ".tmp")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1))
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: the file is not JSON, or its values are nested too deep.
        OSError: the file cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    layer = [value]
    for _ in range(_MAX_DEPTH):
        layer = [inner for outer in layer for inner in _children(outer)]
        if not layer:
            return value
    raise ValueError("nested too deep")


def inode(path: Path) -> int | None:
    """The number of the file or folder on its disk, or None if there is none. A replaced file has another number."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def sync_folder(folder: Path) -> None:
    """Flush the names of the files in ``folder`` to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
