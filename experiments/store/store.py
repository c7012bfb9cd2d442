"""The store: a ``Get`` on disk, shared by any number of processes. Each node is computed once, whoever asks.

Existence means complete. A worker that is killed at any moment loses the node (the shard) that it was computing, or less
where the node keeps its progress in ``workspace``; its locks vanish with it.

Why nobody waits for ever: a process that waits holds only the locks of nodes that it is computing, and waits only for what these
depend on. Dependence has no cycles, so the process at the end of any chain of waiting is computing. (Nodes that are computed
together hold their locks together: none of them may depend on what shares a key with another.)
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from attribution.nodes import Artifact, Node, groups, short_name
from experiments.store.progress import Track
from experiments.store.provenance import provenance
from experiments.store.storage import PART, StoreError, begin, explained, locked, publish, remove, verify
from experiments.store.work import Work

A = TypeVar("A")

_SECONDS_BETWEEN_LOOKS = 0.2
_ARTIFACTS_KEPT = 16


class Store:
    """Turns nodes into artifacts, looked up under ``root`` or else computed, written and read back.

    ``progress`` (``experiments.store.progress.track``) shows what is being computed; None is silent. What was computed is read back
    before it is used, so that a run that computes and a run that finds go on from the same bytes.

    Raises (from every way of asking for an artifact):
        StoreError: a stored node is damaged or describes something else, the disk is full or not writable, or a node needs itself.
    """

    def __init__(self, root: Path | str, progress: Track | None = None):
        self.root = Path(root)
        self._track = progress or _silent
        self._alive: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._recent: dict[str, Any] = {}
        self._verified: set[str] = set()
        self._underway: set[str] = set()
        self._seconds_below = 0.0

    def __call__(self, node: Node[A]) -> A:
        return self.many([node])[0]

    def many(self, nodes: Sequence[Node[A]], title: str = "") -> list[A]:
        """All of them. What is missing, and whatever is missing below it, is divided with other processes."""
        start, below = time.perf_counter(), self._seconds_below
        try:
            with explained(self.root):
                unique = {node.fingerprint: node for node in nodes}
                found = {name: artifact for name, node in unique.items() if (artifact := self._find(node)) is not None}
                found |= self._make([node for name, node in unique.items() if name not in found], title)
                return [found[node.fingerprint] for node in nodes]
        finally:
            self._seconds_below = below + time.perf_counter() - start

    def workspace(self, node: Node) -> Path:
        """A folder for a node's progress, from within its computation: kept after a crash, and found by the next attempt."""
        if not node.STORED:
            raise StoreError(f"{type(node).__name__} has STORED = False, hence no folder for progress: set STORED = True")
        part = self.folder(node).with_suffix(PART)
        part.mkdir(parents=True, exist_ok=True)
        return part

    def folder(self, node: Node) -> Path:
        """Where the node lies once it is stored."""
        return self.root / short_name(type(node)) / node.fingerprint

    def has(self, node: Node) -> bool:
        """Whether it need not be computed."""
        return self.folder(node).is_dir() if node.STORED else node.fingerprint in self._alive

    def _make(self, missing: Sequence[Node], title: str) -> dict[str, Any]:
        """The artifacts of nodes that were missing, by fingerprint."""
        found: dict[str, Any] = {}
        planned = False
        while not planned:
            work = Work([node for node in missing if node.fingerprint not in found], self)
            planned, levels = not work.open, work.levels()
            # Of a plan with open ends only the first level: then more can be told.
            for number, level in enumerate(levels if planned else levels[:1], 1):
                later = [node for nodes in levels[number:] for node in nodes]
                asked = any(node.fingerprint in work.asked for node in level)
                heading = (title if asked else "") or ", ".join(dict.fromkeys(node.title() for node in level))
                for _ in self._track(self._settle(level, later, work, found), heading, len(level)):
                    pass
        for group in groups([node for node in missing if not node.STORED]):
            with self._computing(group):
                artifacts = type(group[0]).compute_together(group, self)
            for node, artifact in zip(group, artifacts, strict=True):
                found[node.fingerprint] = self._remember(node, artifact)
        return found

    def _settle(self, nodes: Sequence[Node], later: Sequence[Node], work: Work, found: dict[str, Any]) -> Iterator[Node]:
        """Yields each node once it is stored, by whomever, or needed no more; artifacts that were asked for go to ``found``.

        Groups of nodes that others are computing are put off, so processes with the same list share it out among themselves.
        While others are at all that is left, it works ahead: on what comes ``later`` and lacks nothing that it is made from.
        """
        waiting = list(nodes)
        while waiting:
            settled: set[str] = set()
            for group in groups(waiting):
                for node in self._attempt(group, work):
                    settled.add(node.fingerprint)
                    if node.fingerprint in work.asked:
                        found[node.fingerprint] = self(node)
                    self._sweep(work.spare_parts(node))
                    yield node
            waiting = [node for node in waiting if node.fingerprint not in settled]
            if waiting and not settled and not self._work_ahead(later, work):
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _work_ahead(self, nodes: Sequence[Node], work: Work) -> bool:
        """Computes one group for which all is there, if there is one that nobody is at; whether it did."""
        for group in groups([node for node in nodes if not self.has(node)]):
            if (lacking := self._lacking(group, work)) and all(map(work.ready, lacking)) and self._attempt(lacking, work):
                return True
        return False

    def _sweep(self, parts: Iterable[Node]) -> None:
        for part in parts:
            if self.has(part):
                self._verified.discard(part.fingerprint)
                self._recent.pop(part.fingerprint, None)
                remove(self.root, self.folder(part))

    def _attempt(self, group: Sequence[Node], work: Work) -> list[Node]:
        """Computes what the group lacks, unless another process is at it; returns what is settled."""
        lacking = self._lacking(group, work)
        if lacking:
            with self._computing(lacking), locked(self.root, [node.fingerprint for node in lacking]) as free:
                # Between the look and the lock another process may have finished them, or what they are parts of. Under
                # the lock neither can change: who stores a whole sweeps only parts whose locks are free.
                if free and (lacking := self._lacking(lacking, work)):
                    self._compute(lacking, work)
                    lacking = []
        left = {node.fingerprint for node in lacking}
        return [node for node in group if node.fingerprint not in left]

    def _lacking(self, group: Sequence[Node], work: Work) -> list[Node]:
        return [node for node in group if not self.has(node) and work.needs(node)]

    def _compute(self, nodes: Sequence[Node], work: Work) -> None:
        """Computes and stores nodes whose locks this process holds. If it fails, their ``.part`` folders stay."""
        kind = type(nodes[0])
        for node in nodes:
            begin(self.workspace(node), node)
        self._seconds_below, start = 0.0, time.perf_counter()
        artifacts = kind.compute_together(nodes, self)
        seconds = (time.perf_counter() - start - self._seconds_below) / len(nodes)
        if len(artifacts) != len(nodes):
            raise StoreError(f"{kind.__name__}.compute_together made {len(artifacts)} artifacts of {len(nodes)} nodes: mend it")
        for node, artifact in zip(nodes, artifacts, strict=True):
            part = self.workspace(node)
            artifact.save(part)
            publish(part, self.folder(node), _facts(node, seconds, bool(work.parts[node.fingerprint])))
            self._verified.add(node.fingerprint)

    @contextmanager
    def _computing(self, nodes: Iterable[Node]) -> Iterator[None]:
        """Marks nodes as under way here: who asks for one of them from within would wait for itself."""
        names = {node.fingerprint: node for node in nodes}
        if again := [node for name, node in names.items() if name in self._underway]:
            raise StoreError(
                f"{type(again[0]).__name__} {again[0].fingerprint} was asked for while it is being computed: its compute() "
                f"(or one computed together with it) leads back to itself; break that cycle"
            )
        self._underway |= names.keys()
        try:
            yield
        finally:
            self._underway -= names.keys()

    def _find(self, node: Node) -> Any:
        """The artifact from memory or disk, or None."""
        artifact = self._alive.get(node.fingerprint)
        if artifact is None and node.STORED:
            artifact = self._read(node)
        return None if artifact is None else self._remember(node, artifact)

    def _read(self, node: Node) -> Artifact | None:
        folder = self.folder(node)
        while (before := _inode(folder)) is not None:
            try:
                if node.fingerprint not in self._verified:
                    verify(folder)
                    self._verified.add(node.fingerprint)
                return node.ARTIFACT.load(folder)
            except Exception:
                if _inode(folder) == before:
                    raise
                # Removed, as a part that is of no more use, while it was being read.
                self._verified.discard(node.fingerprint)
        return None

    def _remember(self, node: Node, artifact: Any) -> Any:
        """Kept while anybody uses it, and the latest few anyway, for loops that ask for the same parents again and again."""
        self._alive[node.fingerprint] = artifact
        if node.TRANSIENT:  # may be large, and is soon swept: whoever works with it holds it
            return artifact
        self._recent.pop(node.fingerprint, None)
        self._recent[node.fingerprint] = artifact
        if len(self._recent) > _ARTIFACTS_KEPT:
            del self._recent[next(iter(self._recent))]
        return artifact


def _facts(node: Node, seconds: float, has_parts: bool) -> dict[str, Any]:
    """What node.json tells beside the description. ``seconds``: of the attempt that finished it, without parents and parts."""
    cost = node.cost()
    if has_parts:  # whose passes were theirs, as the seconds were
        cost = dataclasses.replace(cost, passes=0.0)
    settings = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if not f.metadata.get("identity", True)}
    return {
        "class": short_name(type(node)),
        "version": node.VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "cost": dataclasses.asdict(cost),
        "execution": {
            name: value if isinstance(value, bool | int | float | None) else str(value) for name, value in settings.items()
        },
        **provenance(),
    }


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except FileNotFoundError:
        return None


def _silent(iterable: Iterable[A], title: str, total: int | None = None) -> Iterable[A]:
    return iterable
