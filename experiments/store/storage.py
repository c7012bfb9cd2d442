"""Folders of stored nodes. A folder is complete or does not exist: it is written to a temporary folder, hashed, and then renamed.

A stored node is the folder ``<root>/<NAME>/<fingerprint>``: the files of its artifact, ``node.json`` (its description and how it
was computed) and ``manifest.json`` (size and SHA-256 of every other file). ``<fingerprint>.part`` holds work in progress,
``<fingerprint>.gone`` a folder that is being removed. The process that computes a node holds ``<root>/locks/<fingerprint>.lock``;
the lock is released when that process ends.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from attribution.nodes import Node, describe, fingerprint_of

NODE = "node.json"
MANIFEST = "manifest.json"
PART = ".part"
GONE = ".gone"
LOCKS = "locks"

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
_OCCUPIED = {errno.EEXIST, errno.ENOTEMPTY}
_MINIMAL_SPACE = 1 << 20


class StoreError(OSError):
    """The store cannot return an artifact. The message names the folder or the setting, and the remedy."""


def begin(part: Path, node: Node) -> None:
    """Create the ``.part`` folder of a node, or reopen the one of an earlier attempt, and write its description there.

    Raises:
        StoreError: the description of the node is not plain JSON, so it could not be compared later.
    """
    description = json.loads(json.dumps(describe(node)))
    if fingerprint_of(description) != node.fingerprint:
        raise StoreError(f"the description of {type(node).__name__} is not plain JSON: use strings as keys")
    part.mkdir(parents=True, exist_ok=True)
    write_json(part / NODE, {"fingerprint": node.fingerprint, "description": description})


def publish(part: Path, final: Path, facts: dict[str, Any]) -> None:
    """Turn a finished ``.part`` folder into the stored node: add ``facts`` to node.json, hash and sync all files, then rename."""
    write_json(part / NODE, read_json(part / NODE) | facts)
    manifest = {}
    for path in _files(part):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        manifest[path.relative_to(part).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    write_json(part / MANIFEST, manifest)
    for folder in (*(path for path in part.rglob("*") if path.is_dir()), part):
        _sync(folder)
    try:
        os.rename(part, final)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        # On a network file system a stored node may become visible late, so that it is computed twice. The first one stays.
        shutil.rmtree(part)
    _sync(final.parent)


def verify(folder: Path) -> None:
    """Check every byte of a stored node against its manifest, and its description against the name of its folder.

    Raises:
        StoreError: a file is missing, changed or unexpected, or the folder describes a different node from the one it is named
            after.
    """
    remedy = f"delete {folder} (the node will be computed again), or restore it"
    try:
        description, manifest = read_json(folder / NODE)["description"], read_json(folder / MANIFEST)
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} is damaged: its {NODE} or {MANIFEST} is missing or unreadable ({error}): {remedy}") from error
    if fingerprint_of(description) != folder.name:
        raise StoreError(
            f"{folder} describes a different node from the one it is named after (class, version or a field differs): {remedy}"
        )
    present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if different := sorted(expected.keys() ^ present.keys()):
        problem = "is missing" if different[0] in expected else "does not belong there"
        raise StoreError(f"{folder} is damaged: {different[0]} {problem}: {remedy}")
    for name, (size, digest) in expected.items():
        if (actual := present[name].stat().st_size) != size:
            raise StoreError(f"{folder} is damaged: {name} has {actual} bytes instead of {size}: {remedy}")
        with present[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise StoreError(f"{folder} is damaged: the content of {name} is not what was stored: {remedy}")


@contextmanager
def locked(root: Path, fingerprints: Iterable[str]) -> Iterator[bool]:
    """Hold the locks of all these nodes and yield True. If another process holds one of them, hold none and yield False.

    This never waits. All processes take the locks in the same order, so of several with overlapping sets one always succeeds.
    """
    folder = root / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            for fingerprint in sorted(fingerprints):
                held.enter_context(FileLock(folder / f"{fingerprint}.lock", blocking=False))
        except Timeout:
            held.close()
            free = False
        else:
            free = True
        yield free


def remove(root: Path, folder: Path) -> bool:
    """Remove the folder of a node unless another process holds its lock, and return whether it was removed.

    The folder is renamed first: a reader finds all of it or nothing, and an interrupted removal leaves no stored node.
    """
    with locked(root, [folder.name.split(".")[0]]) as free:
        if not free or not folder.is_dir():
            return False
        gone = folder if folder.suffix == GONE else folder.with_suffix(GONE)
        if folder != gone:
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(folder, gone)
        shutil.rmtree(gone)
        return True


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission under ``root`` into a StoreError that names the setting and the remedy."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        name = getattr(error, "filename", None)
        inside = isinstance(name, str | os.PathLike) and root.absolute() in (path := Path(name).absolute(), *path.parents)
        if _is_full(error, root) and (inside or name is None):
            message = f"the disk of store.root={root} is full ({_free(root) / 1e6:.1f} MB free)"
            remedy = "free some space (prune the store) or set store.root to another disk"
        elif isinstance(error, OSError) and error.errno in _DENIED and inside:
            message, remedy = (
                f"store.root={root} cannot be used ({error})",
                "correct its permissions or set store.root to another folder",
            )
        else:
            raise
        raise StoreError(f"{message}: {remedy}, then run again; stored nodes are intact and will be reused") from error


def _is_full(error: Exception, root: Path) -> bool:
    if isinstance(error, OSError) and error.errno is None:
        # numpy reports a short write as an OSError with the number of written items, but without the cause.
        return _free(root) < _MINIMAL_SPACE
    # safetensors puts the system's message into its own exception.
    return getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(error)


def _free(root: Path) -> int:
    existing = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    return shutil.disk_usage(existing).free


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` and sync the file to disk."""
    with path.open("w") as file:
        file.write(json.dumps(value, indent=1))
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> list[Path]:
    """All files below ``folder`` except its manifest, and except the files that NFS keeps for deleted files that are still open."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".nfs"))
    return [path for path in files if path != folder / MANIFEST]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
