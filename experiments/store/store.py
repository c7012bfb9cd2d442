"""The store: a ``Get`` on disk that any number of processes share. Each node is computed once.

Existence means complete. A worker that is killed loses at most the node (the shard) that it was computing, or less if the node
makes saves (``attribution.nodes.saves``) in its ``workspace``. Its locks are released when it ends.

The processes cannot deadlock: a waiting process holds only the locks of nodes that it is computing, and waits only for nodes that
these depend on. Dependence has no cycles, so the process at the end of every chain of waiting is computing. (The locks of nodes
that are computed together are held together, so none of them may depend on a node that shares a key with another.)
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from attribution.nodes import Artifact, Cost, Node, groups, short_name
from attribution.nodes.files import inode
from experiments.store.errors import StoreError
from experiments.store.held_bytes import held_bytes
from experiments.store.leftovers import PARTS, SOURCES, TEMPORARY, Leftovers, is_temporary, listed
from experiments.store.locks import forget, locked
from experiments.store.peak_memory import PeakMemory, peak_memory
from experiments.store.progress import Track
from experiments.store.provenance import provenance
from experiments.store.storage import PART, begin, explained, publish, remove, settle, verify
from experiments.store.work import Work

A = TypeVar("A")

_SECONDS_BETWEEN_LOOKS = 0.2
_ARTIFACTS_KEPT = 16
_BYTES_KEPT = 2.5e9


class Store:
    """Turns nodes into artifacts: reads them from ``root``, or computes, writes and reads them back.

    ``progress`` (``experiments.store.progress.track``) shows the progress of computations; None is silent. A computed artifact is
    read back before it is used, so that a run that computes and a run that finds it continue from the same bytes.

    Every method that returns artifacts raises
        StoreError: a stored node is damaged or is a different node, the disk is full or not writable, or a node depends on itself.
    """

    def __init__(self, root: Path | str, progress: Track | None = None):
        self.root = Path(root)
        self._track = progress or _silent
        self._alive: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._recent: dict[str, tuple[Any, int]] = {}
        self._verified: set[str] = set()
        self._in_progress: set[str] = set()
        self._leftovers = Leftovers(self.root)
        self._ahead: list[Node] = []
        self._calls = 0
        self._seconds_below = 0.0

    def __call__(self, node: Node[A]) -> A:
        return self.many([node])[0]

    def many(self, nodes: Sequence[Node[A]], title: str = "") -> list[A]:
        """The artifacts of all ``nodes``, in order. Missing nodes and their missing parents are shared with other processes."""
        start, below = time.perf_counter(), self._seconds_below
        self._calls += 1
        try:
            with explained(self.root):
                unique = {node.fingerprint: node for node in nodes}
                artifacts = {name: artifact for name, node in unique.items() if (artifact := self._find(node)) is not None}
                artifacts |= self._make([node for name, node in unique.items() if name not in artifacts], title)
            if self._calls == 1:  # calls for parents come in between, while others may still need the parts
                self._sweep(self._leftovers.folders(spared={*unique, *self._alive}))
                self._leftovers.remove_locks()
            return [artifacts[node.fingerprint] for node in nodes]
        finally:
            self._calls -= 1
            self._seconds_below = below + time.perf_counter() - start

    def workspace(self, node: Node) -> Path:
        """A folder for the progress of a node that is being computed. After a crash the next attempt finds what was saved."""
        if not node.STORED:
            raise StoreError(f"{type(node).__name__} has STORED = False, so it has no folder for its progress: set STORED = True")
        part = self.folder(node).with_suffix(PART)
        part.mkdir(parents=True, exist_ok=True)
        return part

    def folder(self, node: Node) -> Path:
        """The folder of the node once it is stored."""
        return self.root / short_name(type(node)) / node.fingerprint

    def has(self, node: Node) -> bool:
        """Return whether the node is stored, or in memory if it is never stored."""
        return self.folder(node).is_dir() if node.STORED else node.fingerprint in self._alive

    def _make(self, missing: Sequence[Node], title: str) -> dict[str, Any]:
        """Compute missing nodes, and return their artifacts by fingerprint."""
        made: dict[str, Any] = {}
        complete = False
        while not complete:
            work = Work([node for node in missing if node.fingerprint not in made], self)
            complete, levels = not work.open, work.levels()
            # If the parts of some nodes are not known yet, compute the first level and then plan again.
            for number, level in enumerate(levels if complete else levels[:1], 1):
                later = [node for nodes in levels[number:] for node in nodes]
                if not (level := [node for node in level if node.fingerprint in work.requested or self._missing([node], work)]):
                    continue  # merged on the way
                requested = any(node.fingerprint in work.requested for node in level)
                heading = (title if requested else "") or ", ".join(dict.fromkeys(node.title() for node in level))
                for _ in self._track(self._wait_for(level, later, work, made), heading, len(level)):
                    pass
        for group in groups([node for node in missing if not node.STORED]):
            with self._computing(group):
                artifacts = type(group[0]).compute_together(group, self)
            for node, artifact in zip(group, artifacts, strict=True):
                made[node.fingerprint] = self._remember(node, artifact)
        return made

    def _wait_for(self, nodes: Sequence[Node], later: Sequence[Node], work: Work, made: dict[str, Any]) -> Iterator[Node]:
        """Yield each node once any process has stored it, or once it is no longer needed. Requested artifacts go to ``made``.

        Groups that other processes are computing are postponed, so that processes with the same list divide it. When only such
        groups remain, the process works ahead on ``later`` nodes that are ready.
        """
        waiting = list(nodes)
        while waiting:
            done: set[str] = set()
            for group in groups(waiting):
                for node in self._attempt(group, work):
                    done.add(node.fingerprint)
                    if node.fingerprint in work.requested:
                        made[node.fingerprint] = self(node)
                    self._sweep_sources(node, work)
                    self._compute_users(node, work)
                    yield node
            waiting = [node for node in waiting if node.fingerprint not in done]
            if waiting and not done and not self._work_ahead(later, work):
                time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _compute_users(self, node: Node, work: Work) -> None:
        """Compute the users of a temporary node whose other sources are stored, and delete the node if no user is left."""
        for group in work.next(node):
            for user in self._attempt(group, work):
                self._sweep_sources(user, work)
                self._compute_users(user, work)
        if node.temporary and not node.TRANSIENT and not work.needs(node):
            self._sweep_nodes([node])

    def _work_ahead(self, nodes: Sequence[Node], work: Work) -> bool:
        """Compute one group that is ready and that no other process is computing; return whether there was one."""
        for group in groups([node for node in nodes if not self.has(node)]):
            missing = self._missing(group, work)
            temporary = [node for node in missing if node.temporary and not node.TRANSIENT]
            if temporary and any(self.has(node) for node in self._ahead):
                continue  # at most one group of temporary nodes at a time is stored ahead
            if missing and all(map(work.ready, missing)) and self._attempt(missing, work):
                self._ahead = temporary or self._ahead
                for node in temporary:
                    self._compute_users(node, work)
                return True
        return False

    def _sweep_sources(self, node: Node, work: Work) -> None:
        """Delete what a stored node was made from and nothing needs any more: shards and other temporary nodes."""
        self._sweep_nodes(work.spare_sources(node))

    def _sweep_nodes(self, nodes: Iterable[Node]) -> None:
        """Delete temporary nodes, except those that are not shards and that a run stored to keep."""
        folders = [(node.TRANSIENT, self.folder(node)) for node in nodes if self.has(node)]
        self._sweep(folder for shard, folder in folders if shard or is_temporary(folder))

    def _sweep(self, folders: Iterable[Path]) -> None:
        """Remove the folders of parts. If that fails, as in a read-only store, they stay: they do no harm."""
        for folder in folders:
            self._verified.discard(folder.name)
            self._recent.pop(folder.name, None)
            self._alive.pop(folder.name, None)
            with suppress(OSError):
                remove(self.root, folder)

    def _attempt(self, group: Sequence[Node], work: Work) -> list[Node]:
        """Compute the missing nodes of a group unless another process is computing them; return the nodes that are done."""
        missing = self._missing(group, work)
        if missing:
            with self._computing(missing), locked(self.root, [node.fingerprint for node in missing]) as free:
                # Before the lock was taken, another process may have finished these nodes, or the nodes that they are parts of.
                # Under the lock neither can happen: a process that stores a node removes only parts whose locks are free.
                if free and (still := self._missing(missing, work)):
                    self._compute(still, work)
                    for node in still:  # under the lock, so that no other run deletes temporary nodes first
                        if node.temporary and not node.TRANSIENT:
                            self._compute_users(node, work)
                if free:
                    forget(self.root, (node.fingerprint for node in missing))
                    missing = []
        undone = {node.fingerprint for node in missing}
        return [node for node in group if node.fingerprint not in undone]

    def _missing(self, group: Sequence[Node], work: Work) -> list[Node]:
        return [node for node in group if not self.has(node) and work.needs(node)]

    def _compute(self, nodes: Sequence[Node], work: Work) -> None:
        """Compute and store nodes; this process holds their locks. After a failure their ``.part`` folders remain."""
        kind = type(nodes[0])
        for node in nodes:
            begin(self.workspace(node), node)
        self._seconds_below, start = 0.0, time.perf_counter()
        with peak_memory() as peak:
            artifacts = kind.compute_together(nodes, self)
        seconds, joint = (time.perf_counter() - start - self._seconds_below) / len(nodes), kind.cost_together(nodes)
        if len(artifacts) != len(nodes):
            raise StoreError(
                f"{kind.__name__}.compute_together returned {len(artifacts)} artifacts of {len(nodes)} nodes: return one for each "
                "node, in order"
            )
        for node, artifact in zip(nodes, artifacts, strict=True):
            part = self.workspace(node)
            saved = settle(part, node)
            artifact.save(part)
            parts, sources = work.parts[node.fingerprint], work.temporary_sources(node)
            publish(part, self.folder(node), _facts(node, joint, len(nodes), seconds, peak, parts, sources), saved)
            self._verified.add(node.fingerprint)

    @contextmanager
    def _computing(self, nodes: Iterable[Node]) -> Iterator[None]:
        """Mark nodes as in progress in this process, where a request for one of them would wait for itself."""
        names = {node.fingerprint: node for node in nodes}
        if cycle := [node for name, node in names.items() if name in self._in_progress]:
            raise StoreError(
                f"{type(cycle[0]).__name__} {cycle[0].fingerprint} was requested while it is being computed: its compute(), or "
                "that of a node that is computed together with it, depends on the node itself; remove this cycle"
            )
        self._in_progress |= names.keys()
        try:
            yield
        finally:
            self._in_progress -= names.keys()

    def _find(self, node: Node) -> Any:
        """The artifact from memory or disk, or None."""
        artifact = self._alive.get(node.fingerprint)
        if artifact is None and node.STORED:
            artifact = self._read(node)
        return None if artifact is None else self._remember(node, artifact)

    def _read(self, node: Node) -> Artifact | None:
        folder = self.folder(node)
        while (before := inode(folder)) is not None:
            try:
                if node.fingerprint not in self._verified:
                    self._leftovers.note(verify(folder))
                    self._verified.add(node.fingerprint)
                return node.ARTIFACT.load(folder)
            except Exception:
                if inode(folder) == before:
                    raise
                # Another process removed the folder, as a part that is no longer needed, while it was being read.
                self._verified.discard(node.fingerprint)
        return None

    def _remember(self, node: Node, artifact: Any) -> Any:
        """Keep an artifact while it is in use. The latest few are kept anyway, for loops that request the same parents."""
        self._alive[node.fingerprint] = artifact
        if node.temporary:  # may be large and is removed soon: its users hold it
            return artifact
        self._recent.pop(node.fingerprint, None)
        self._recent[node.fingerprint] = artifact, held_bytes(artifact)
        while len(self._recent) > _ARTIFACTS_KEPT or sum(size for _, size in self._recent.values()) > _BYTES_KEPT:
            del self._recent[next(iter(self._recent))]
        return artifact


def _facts(
    node: Node, joint: Cost, together: int, seconds: float, peak: PeakMemory, parts: Sequence[Node], sources: Sequence[Node]
) -> dict[str, Any]:
    """The content of node.json except the description.

    ``joint``: the cost of the nodes, ``together`` in number, that were computed with this one. ``seconds``: this node's share of
    the successful attempt, without parents and parts. ``peak``: of this process during the attempt. ``sources``: temporary nodes
    that are no shards, from which the node was made.
    """
    passes = 0.0 if parts else joint.passes / together  # passes and seconds of parts count toward them
    cost = dataclasses.replace(
        joint, passes=passes, products=joint.products / together, cubes=joint.cubes / together, disk=node.cost().disk
    )
    settings = {f.name: getattr(node, f.name) for f in dataclasses.fields(node) if not f.metadata.get("identity", True)}
    return {
        "class": short_name(type(node)),
        "version": node.VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "cost": dataclasses.asdict(cost),
        "peak_memory": dataclasses.asdict(peak),
        "execution": {
            name: value if isinstance(value, bool | int | float | None) else str(value) for name, value in settings.items()
        },
        **({TEMPORARY: True} if node.temporary and not node.TRANSIENT else {}),
        **({PARTS: names} if (names := listed(part for part in parts if part.TRANSIENT)) else {}),
        **({SOURCES: names} if (names := listed(sources)) else {}),
        **provenance(),
    }


def _silent(iterable: Iterable[A], title: str, total: int | None = None) -> Iterable[A]:
    return iterable
