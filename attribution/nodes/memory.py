"""A ``Get`` without a store, for use as a library."""

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attribution.nodes.node import A, Node, groups
from attribution.nodes.saves import FOLDER as PROGRESS


class InMemory:
    """Computes each node once and keeps its artifact as long as this object lives.

    Keep a reference while you use the artifacts: large ones are read lazily from a temporary folder that is deleted with it.
    """

    def __init__(self) -> None:
        self._artifacts: dict[str, Any] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="attribution-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __call__(self, node: Node[A]) -> A:
        return self.many([node])[0]

    def many(self, nodes: Sequence[Node[A]], title: str = "") -> list[A]:
        missing = {node.fingerprint: node for node in nodes if node.fingerprint not in self._artifacts}
        for node in missing.values():
            if self._merges(node) and all(part.together() is None for part in node.parts(self)):
                self._merge(node)  # one node after the other, so that few parts exist at a time
        missing = {name: node for name, node in missing.items() if name not in self._artifacts}
        if parts := [part for node in missing.values() for part in node.parts(self)]:
            self.many(parts, title)
        for group in groups(list(missing.values())):
            group = [node for node in group if node.fingerprint not in self._artifacts]  # an earlier group may have needed it
            if not group:
                continue
            artifacts = type(group[0]).compute_together(group, self)
            for node in group:  # nothing resumes from here
                shutil.rmtree(self._folder / node.fingerprint / PROGRESS, ignore_errors=True)
            self._artifacts.update((node.fingerprint, artifact) for node, artifact in zip(group, artifacts, strict=True))
        for node in filter(self._merges, missing.values()):
            self._forget(node.parts(self))
        return [self._artifacts[node.fingerprint] for node in nodes]

    def _merges(self, node: Node) -> bool:
        return node.TRANSIENT and any(part.TRANSIENT for part in node.parts(self))

    def _merge(self, node: Node) -> None:
        for part in node.parts(self):
            self(part)
        self._artifacts[node.fingerprint] = node.compute(self)
        self._forget(node.parts(self))

    def _forget(self, parts: Sequence[Node]) -> None:
        for part in parts:
            self._artifacts.pop(part.fingerprint, None)

    def workspace(self, node: Node) -> Path:
        folder = self._folder / node.fingerprint
        folder.mkdir(exist_ok=True)
        return folder
