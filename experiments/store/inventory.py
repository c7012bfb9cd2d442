"""List a store and explain one of its nodes. Rows are plain dicts; ``experiments.store.inventory_table`` prints them."""

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attribution.nodes import SOURCE, fingerprint_of
from attribution.nodes.files import read_json
from experiments.store.errors import StoreError
from experiments.store.leftovers import PARTS, SOURCES, orphans
from experiments.store.locks import LOCKS, locked
from experiments.store.storage import GONE, NODE, PART, verify

_SUMMARY_WIDTH = 100


@dataclass(frozen=True)
class Entry:
    """One folder of a store: a stored node, or the remains of a computation or removal that did not finish."""

    folder: Path
    record: dict[str, Any]
    """The content of node.json; empty if the file is missing or unreadable."""

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
        return sum(file_size(path) for path in self.folder.rglob("*"))

    @property
    def age(self) -> float:
        """Seconds since the node was stored, or since its folder last changed."""
        now = datetime.now(UTC)
        if created := self.record.get("created"):
            return (now - datetime.fromisoformat(created)).total_seconds()
        return now.timestamp() - _last_change(self.folder, default=now.timestamp())

    def state(self, root: Path) -> str:
        """``stored``, ``damaged`` (no readable node.json; only ``explain`` checks every byte), ``running`` or ``unfinished``."""
        if self.finished:
            return "stored" if self.description else "damaged"
        try:
            with locked(root, [self.fingerprint]) as free:
                return "unfinished" if free else "running"
        except OSError:  # a store that this user cannot write
            return "unfinished"


def leftovers(everything: Iterable[Entry]) -> set[Path]:
    """The folders of temporary nodes of which something stored was made: they remain if a process is killed at that moment."""
    finished = [entry for entry in everything if entry.finished]
    names = orphans(entry.record for entry in finished)
    return {entry.folder for entry in finished if entry.fingerprint in names}


def entries(root: Path) -> Iterator[Entry]:
    """All entries of the store, sorted by class and fingerprint."""
    for kind in _kinds(root):
        for folder in sorted(path for path in kind.iterdir() if path.is_dir()):
            yield Entry(folder, _record(folder))


def listing(root: Path) -> list[dict[str, Any]]:
    """One row per entry: class, fingerprint, state, bytes, age and computing time (both in seconds), and a summary."""
    everything = list(entries(root))
    left = leftovers(everything)
    return [
        {
            "class": entry.kind,
            "fingerprint": entry.fingerprint,
            "state": "leftover" if entry.folder in left else entry.state(root),
            "bytes": entry.bytes,
            "age": entry.age,
            "seconds": entry.record.get("seconds"),
            "summary": _summary(entry.description),
        }
        for entry in everything
    ]


def explain(root: Path, prefix: str) -> dict[str, Any]:
    """Explain the node whose fingerprint begins with ``prefix``, and check every byte of it.

    The result has the node's description, versions and git revision; ``depends_on`` and ``needed_by`` with rows of class,
    fingerprint and whether that node is stored; and ``check``: "intact", or what is wrong.

    Raises:
        StoreError: no fingerprint begins with ``prefix``, or several do.
    """
    everything, kinds = list(entries(root)), {folder.name for folder in _kinds(root)}
    matches = [entry for entry in everything if prefix and entry.fingerprint.startswith(prefix)]
    names = sorted({entry.fingerprint for entry in matches})
    if not names:
        raise StoreError(f"nothing in {root} has a fingerprint that begins with {prefix!r}: list the store to see its nodes")
    if len(names) > 1:
        shown = ", ".join(f"{entry.kind} {entry.fingerprint}" for entry in matches[:5])
        raise StoreError(
            f"{len(names)} fingerprints begin with {prefix!r} ({shown}{', ...' if len(matches) > 5 else ''}): give more digits"
        )
    entry = max(matches, key=lambda entry: entry.finished)
    stored = {other.fingerprint for other in everything if other.finished}
    below = {name: inner for inner in _nodes_in(entry.description, kinds) if (name := fingerprint_of(inner)) != entry.fingerprint}
    above = [
        other
        for other in everything
        if other.fingerprint != entry.fingerprint and entry.fingerprint in map(fingerprint_of, _nodes_in(other.description, kinds))
    ]
    return {
        "class": entry.kind,
        "fingerprint": entry.fingerprint,
        "state": entry.state(root),
        "check": _check(entry),
        "folder": str(entry.folder),
        "bytes": entry.bytes,
        **{key: value for key, value in entry.record.items() if key not in ("class", "fingerprint", PARTS, SOURCES)},
        "depends_on": [{"class": _kind(inner), "fingerprint": name, "stored": name in stored} for name, inner in below.items()],
        "needed_by": [{"class": other.kind, "fingerprint": other.fingerprint, "stored": other.finished} for other in above],
    }


def _kinds(root: Path) -> list[Path]:
    """The folders of a store, one for each class of nodes."""
    return sorted(path for path in root.iterdir() if path.is_dir() and path.name != LOCKS) if root.is_dir() else []


def _kind(description: dict[str, Any]) -> str:
    """The folder name of the described class: its NAME, or its name without module."""
    return str(description["class"]).rpartition(".")[2]


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_json(folder / NODE)
    except (OSError, ValueError):
        return {}
    return record if _valid(record) else {}


def _valid(record: Any) -> bool:
    """Return whether the content of node.json has the types that a store writes."""
    try:
        created = datetime.fromisoformat(record.get("created", "2000-01-01T00:00:00+00:00"))
        numbers = (record.get("seconds", 0), record.get("cost", {}).get("passes", 0))
        lists = [names for key in (PARTS, SOURCES) for names in record.get(key, {}).values()]
        texts = [record["description"]["class"], *(name for names in lists for name in names)]
        kinds = all(isinstance(number, int | float) for number in numbers) and all(isinstance(text, str) for text in texts)
        return created.tzinfo is not None and kinds
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def _last_change(folder: Path, default: float) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return default


def file_size(path: Path) -> int:
    """Return the bytes of a file; 0 if it is no file, or no longer there."""
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:
        return 0  # a worker may rename and delete its files while they are counted


def _check(entry: Entry) -> str:
    if not entry.finished:
        return "not finished"
    try:
        verify(entry.folder)
    except StoreError as error:
        return str(error)
    return "intact"


def _nodes_in(value: Any, kinds: Container[str]) -> Iterator[dict[str, Any]]:
    """All descriptions of stored nodes (of classes ``kinds``) nested in ``value``, including itself."""
    if isinstance(value, dict):
        if "class" in value and _kind(value) in kinds:
            yield value
        for inner in value.values():
            yield from _nodes_in(inner, kinds)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes_in(inner, kinds)


def _summary(description: dict[str, Any]) -> str:
    """The settings of a node in one line."""

    def short(value: Any) -> str:
        if isinstance(value, dict):
            return _kind(value) if "class" in value else "..."
        if isinstance(value, list):
            return f"[{', '.join(map(short, value))}]" if len(value) <= 4 else f"[{len(value)}]"
        return str(value)

    line = " ".join(f"{key}={short(value)}" for key, value in description.items() if key not in ("class", "version", SOURCE))
    return line if len(line) <= _SUMMARY_WIDTH else line[: _SUMMARY_WIDTH - 1] + "…"
