"""What is in a store: list it, explain one node. Rows are plain dicts; ``experiments.store.inventory_table`` prints them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.store.storage import GONE, LOCKS, NODE, PART, StoreError, fingerprint_of, locked, read_json, verify

_SUMMARY_WIDTH = 100


@dataclass(frozen=True)
class Entry:
    """One folder of a store: a stored node, or what is left of one that was being computed or removed."""

    folder: Path
    record: dict[str, Any]
    """Its node.json, as far as there is one that can be read."""

    @property
    def kind(self) -> str:
        return self.folder.parent.name

    @property
    def fingerprint(self) -> str:
        return self.folder.name.split(".")[0]

    @property
    def finished(self) -> bool:
        return self.folder.suffix not in (PART, GONE)

    @property
    def description(self) -> dict[str, Any]:
        return self.record.get("description", {})

    @property
    def bytes(self) -> int:
        return sum(_size(path) for path in self.folder.rglob("*"))

    @property
    def age(self) -> float:
        """Seconds since it was stored, or last worked on."""
        now = datetime.now(UTC)
        if created := self.record.get("created"):
            return (now - datetime.fromisoformat(created)).total_seconds()
        return now.timestamp() - _worked_on(self.folder, default=now.timestamp())

    def state(self, root: Path) -> str:
        """``stored``, ``damaged`` (at first sight: ``explain`` reads every byte), ``running`` or ``unfinished``."""
        if self.finished:
            return "stored" if self.description else "damaged"
        with locked(root, [self.fingerprint]) as free:
            return "unfinished" if free else "running"


def entries(root: Path) -> Iterator[Entry]:
    """Everything in the store, by class and fingerprint."""
    for kind in sorted(path for path in root.iterdir() if path.is_dir() and path.name != LOCKS) if root.is_dir() else ():
        for folder in sorted(path for path in kind.iterdir() if path.is_dir()):
            yield Entry(folder, _record(folder))


def listing(root: Path) -> list[dict[str, Any]]:
    """A row for each entry: class, fingerprint, state, bytes, age and seconds that it took (both in seconds), and its settings."""
    return [
        {
            "class": entry.kind,
            "fingerprint": entry.fingerprint,
            "state": entry.state(root),
            "bytes": entry.bytes,
            "age": entry.age,
            "seconds": entry.record.get("seconds"),
            "summary": _summary(entry.description),
        }
        for entry in entries(root)
    ]


def explain(root: Path, prefix: str) -> dict[str, Any]:
    """All about the node whose fingerprint begins with ``prefix``, after reading every byte of it.

    Its description, versions and git revision; under ``depends_on`` and ``needed_by`` rows of class, fingerprint and whether it is
    stored; under ``check`` "intact" or what is wrong.

    Raises:
        StoreError: no fingerprint or several begin so.
    """
    everything = list(entries(root))
    matches = [entry for entry in everything if prefix and entry.fingerprint.startswith(prefix)]
    names = sorted({entry.fingerprint for entry in matches})
    if not names:
        raise StoreError(f"nothing in {root} has a fingerprint that begins with {prefix!r}: list the store to see what there is")
    if len(names) > 1:
        shown = ", ".join(f"{entry.kind} {entry.fingerprint}" for entry in matches[:5])
        raise StoreError(
            f"{len(names)} fingerprints begin with {prefix!r} ({shown}{', ...' if len(matches) > 5 else ''}): give more digits"
        )
    entry = max(matches, key=lambda entry: entry.finished)
    stored = {other.fingerprint for other in everything if other.finished}
    below = {name: inner for inner in _nodes_in(entry.description) if (name := fingerprint_of(inner)) != entry.fingerprint}
    above = [
        other
        for other in everything
        if other.fingerprint != entry.fingerprint and entry.fingerprint in map(fingerprint_of, _nodes_in(other.description))
    ]
    return {
        "class": entry.kind,
        "fingerprint": entry.fingerprint,
        "state": entry.state(root),
        "check": _check(entry),
        "folder": str(entry.folder),
        "bytes": entry.bytes,
        **{key: value for key, value in entry.record.items() if key not in ("class", "fingerprint")},
        "depends_on": [
            {"class": inner["class"].rpartition(".")[2], "fingerprint": name, "stored": name in stored}
            for name, inner in below.items()
        ],
        "needed_by": [{"class": other.kind, "fingerprint": other.fingerprint, "stored": other.finished} for other in above],
    }


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / NODE)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _worked_on(folder: Path, default: float) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return default


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        # A worker may rename and delete its files while they are counted.
        return 0


def _check(entry: Entry) -> str:
    if not entry.finished:
        return "not finished"
    try:
        verify(entry.folder)
    except StoreError as error:
        return str(error)
    return "intact"


def _nodes_in(value: Any) -> Iterator[dict[str, Any]]:
    """Descriptions of nodes inside a description, itself first."""
    if isinstance(value, dict):
        if {"class", "version"} <= value.keys():
            yield value
        for inner in value.values():
            yield from _nodes_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes_in(inner)


def _summary(description: dict[str, Any]) -> str:
    """The settings of a node in one line."""

    def short(value: Any) -> str:
        if isinstance(value, dict):
            return str(value.get("class", "...")).rpartition(".")[2]
        if isinstance(value, list):
            return f"[{', '.join(map(short, value))}]" if len(value) <= 4 else f"[{len(value)}]"
        return str(value)

    line = " ".join(f"{key}={short(value)}" for key, value in description.items() if key not in ("class", "version"))
    return line if len(line) <= _SUMMARY_WIDTH else line[: _SUMMARY_WIDTH - 1] + "…"
