"""Offline runs of W&B read back: records of protobuf in the blocks of LevelDB's log format."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7
_FULL, _LAST = 1, 4


@dataclass
class OfflineRun:
    """What one ``offline-run-*`` folder holds. ``history`` has a mapping for each step that was logged."""

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, str] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    def table(self, name: str) -> dict[str, Any]:
        """The last table that was logged under a name, as ``columns`` and ``data``; pictures are mappings with a ``path``."""
        return json.loads(self.files(name)[f"{name}.table.json"].read_text())

    def files(self, name: str) -> dict[str, Path]:
        """The files of the artifact that a table is."""
        manifests = [artifact.manifest.contents for artifact in self.artifacts if artifact.type == "run_table"]
        files = [{entry.path: Path(entry.local_path) for entry in contents} for contents in manifests]
        return [found for found in files if f"{name}.table.json" in found][-1]


def read(folder: Path) -> OfflineRun:
    """Read the run in an ``offline-run-*`` folder."""
    [path] = folder.glob("run-*.wandb")
    found = OfflineRun(folder)
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = record.run
            found.config |= _values(record.run.config.update)
        elif kind == "config":
            found.config |= _values(record.config.update)
        elif kind == "history":
            found.history.append(_values(record.history.item))
            found.summary |= found.history[-1]
        elif kind == "summary":
            found.summary |= _values(record.summary.update)
        elif kind == "metric":
            found.metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _values(items: Any) -> dict[str, Any]:
    """The values by name; those of tables and images, which have several parts, are mappings."""
    values: dict[str, Any] = {}
    for item in items:
        name, *parts = item.nested_key or [item.key]
        if parts:
            values.setdefault(name, {})["/".join(parts)] = json.loads(item.value_json)
        else:
            values[name] = json.loads(item.value_json)
    return values


def _records(content: bytes) -> list[bytes]:
    """Join the chunks of a log. Each chunk has a checksum, a length and a kind; blocks end with zeros."""
    records, parts, at = [], [], _HEADER
    assert content[:4] == b":W&B"
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts.append(content[at + _HEADER : at + _HEADER + length])
        if kind in (_FULL, _LAST):
            records.append(b"".join(parts))
            parts = []
        at += _HEADER + length
    return records
