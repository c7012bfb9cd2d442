"""A node: a computation whose identity is the content of its fields. Knows nothing of disks.

A node is a frozen dataclass; its fields are what defines its result, except those declared with ``execution()`` (device,
workers, attribution batch size), which say how to compute it, not what. ``fingerprint`` hashes the description. ``get`` (a
store, or ``InMemory``) turns a node into its artifact, computing it if nobody has.
"""

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
import torch


class Artifact(ABC):
    """What a node computes. It can write itself to a folder (safetensors, npy, json) and read itself back, lazily if large."""

    @abstractmethod
    def save(self, folder: Path) -> None: ...

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self: ...


A = TypeVar("A")
_A = TypeVar("_A", covariant=True)


class Get(Protocol):
    """Turns nodes into artifacts."""

    def __call__(self, node: "Node[A]") -> A: ...

    def many(self, nodes: Sequence["Node[A]"], title: str = "") -> list[A]:
        """All of them; missing ones may be computed together, or by whoever else works on the same list."""
        ...

    def workspace(self, node: "Node") -> Path:
        """A folder where a long computation may keep its progress: it survives a crash, and what it holds at the end is kept."""
        ...


def execution(**kwargs: Any) -> Any:
    """A field that says how a node is computed, not what it is: no part of its identity."""
    return dataclasses.field(metadata={"identity": False}, **kwargs)


@dataclass(frozen=True)
class Cost:
    """What computing a node takes: passes (forward + backward of one image), peak memory and disk in bytes."""

    passes: float = 0.0
    memory: float = 0.0
    disk: float = 0.0


@dataclass(frozen=True)
class Node(ABC, Generic[_A]):
    """One unit of stored work. Subclasses set VERSION (raise it when the same fields come to mean another result) and ARTIFACT."""

    VERSION: ClassVar[int] = 1
    ARTIFACT: ClassVar[type[Artifact]]
    STORED: ClassVar[bool] = True
    """False for what is quicker made again than read back; such an artifact lives in memory only."""
    TRANSIENT: ClassVar[bool] = False
    """True for shards: of no use once the node that they are parts of is stored."""

    @abstractmethod
    def compute(self, get: Get) -> _A:
        """The artifact. Parents come from ``get``."""

    def parts(self, get: Get) -> "Sequence[Node]":
        """Shards that this node is put together from: computed before it, without its lock, by any number of workers.

        ``get`` is for parents, on which it may depend how many there are.
        """
        return ()

    def together(self) -> Hashable | None:
        """Missing nodes of one class with equal keys are computed by one ``compute_together``; None: each on its own."""
        return None

    @classmethod
    def compute_together(cls, nodes: "Sequence[Self]", get: Get) -> Sequence[_A]:
        """The artifacts of nodes that share a key, in order."""
        return [node.compute(get) for node in nodes]

    def cost(self) -> Cost:
        """An estimate for the dry run, without parents, and with parts (for as long as these are not known)."""
        return Cost()

    def parents(self) -> "list[Node]":
        """The nodes among the fields, also inside dataclasses and sequences."""
        return list(_nodes_in(getattr(self, f.name) for f in dataclasses.fields(self)))

    def description(self) -> dict[str, Any]:
        """What defines the result, as plain JSON."""
        return _describe_dataclass(self)

    @functools.cached_property
    def fingerprint(self) -> str:
        """20 hexadecimal digits of the SHA-256 of the description."""
        text = json.dumps(describe(self), sort_keys=True, allow_nan=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class JointNode(Node[_A]):
    """A node that only knows how to be computed together with others of its key."""

    def compute(self, get: Get) -> _A:
        return self.compute_together([self], get)[0]

    @classmethod
    @abstractmethod
    def compute_together(cls, nodes: "Sequence[Self]", get: Get) -> Sequence[_A]: ...  # pyright: ignore[reportIncompatibleMethodOverride]


def describe(value: Any) -> Any:
    """Any identity as plain JSON. An object may describe itself by a method ``description()``.

    Raises:
        TypeError: a value of a type that has no content to go by.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, Enum | Path):
        return str(value)
    if callable(method := getattr(value, "description", None)) and not isinstance(value, type):
        return method()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _describe_dataclass(value)
    if isinstance(value, functools.partial):
        return {"call": _name(value.func), "args": describe(value.args), **describe(value.keywords)}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, Sequence):
        return [describe(v) for v in value]
    if isinstance(value, torch.Tensor | np.ndarray):
        return {"sha256": digest(np.asarray(value)), "shape": list(value.shape)}
    if callable(value):
        return _name(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be part of an identity: use plain values and dataclasses")


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 over dtypes, shapes and contents."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _describe_dataclass(value: Any) -> dict[str, Any]:
    fields = [f for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
    version = {"version": type(value).VERSION} if hasattr(type(value), "VERSION") else {}
    return {"class": _name(type(value)), **version, **{f.name: describe(getattr(value, f.name)) for f in fields}}


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _nodes_in(values: Iterable[Any]) -> Iterable[Node]:
    for value in values:
        if isinstance(value, Node):
            yield value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _nodes_in(getattr(value, f.name) for f in dataclasses.fields(value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from _nodes_in(value)


class InMemory:
    """A ``Get`` without a store, for use as a library: each node is computed once and lives as long as this object.

    Keep it as long as the artifacts: large ones are read lazily from a temporary folder that goes away with it.
    """

    def __init__(self) -> None:
        self._artifacts: dict[str, Any] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="attribution-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __call__(self, node: Node[A]) -> A:
        return self.many([node])[0]

    def many(self, nodes: Sequence[Node[A]], title: str = "") -> list[A]:
        missing = {node.fingerprint: node for node in nodes if node.fingerprint not in self._artifacts}
        if parts := [part for node in missing.values() for part in node.parts(self)]:
            self.many(parts, title)
        for group in groups(list(missing.values())):
            artifacts = type(group[0]).compute_together(group, self)
            self._artifacts.update((node.fingerprint, artifact) for node, artifact in zip(group, artifacts, strict=True))
        return [self._artifacts[node.fingerprint] for node in nodes]

    def workspace(self, node: Node) -> Path:
        folder = self._folder / node.fingerprint
        folder.mkdir(exist_ok=True)
        return folder


def groups(nodes: Sequence[Node[A]]) -> list[list[Node[A]]]:
    """Nodes that are computed together, in order of first appearance."""
    by_key: dict[Hashable, list[Node[A]]] = {}
    for node in nodes:
        key = node.together()
        by_key.setdefault((type(node), node.fingerprint if key is None else key), []).append(node)
    return list(by_key.values())
