"""Folders that are complete or not there: written aside, hashed, renamed into place; verified when they are read.

A stored node is the folder ``<root>/<class>/<fingerprint>``: the files of its artifact, ``node.json`` (what it is and how it was
made) and ``manifest.json`` (size and SHA-256 of every other file). Work in progress lies beside it in ``<fingerprint>.part``, what
is being removed in ``<fingerprint>.gone``. ``<root>/locks/<fingerprint>.lock`` is held by who computes, and vanishes with it.
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
_HARDLY_ANY_SPACE = 1 << 20


class StoreError(OSError):
    """The store cannot give what was asked; the message names the folder or the setting, and the mend."""


def begin(part: Path, node: Node) -> None:
    """Opens the folder of a node's work in progress, or the one that an earlier attempt left, and says there what it is.

    Raises:
        StoreError: the node's description is not plain JSON, so that it could not be told from another later.
    """
    description = json.loads(json.dumps(describe(node)))
    if fingerprint_of(description) != node.fingerprint:
        raise StoreError(f"the description of {type(node).__name__} is not plain JSON: use strings for its keys")
    part.mkdir(parents=True, exist_ok=True)
    write_json(part / NODE, {"fingerprint": node.fingerprint, "description": description})


def publish(part: Path, final: Path, facts: dict[str, Any]) -> None:
    """Makes a finished ``.part`` the stored node: ``facts`` join its node.json, everything is hashed and on disk, then renamed."""
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
        # A network file system may show a stored node late, so that it is computed again. The first one stays.
        shutil.rmtree(part)
    _sync(final.parent)


def verify(folder: Path) -> None:
    """Checks every byte of a stored node against its manifest, and its description against the folder's name.

    Raises:
        StoreError: a file is missing, changed or one too many, or the folder describes another node than its name says.
    """
    mend = f"delete {folder} (it will be computed again), or restore it"
    try:
        description, manifest = read_json(folder / NODE)["description"], read_json(folder / MANIFEST)
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} is damaged: its {NODE} or {MANIFEST} is missing or unreadable ({error}): {mend}") from error
    if fingerprint_of(description) != folder.name:
        raise StoreError(f"{folder} describes another node than its name says (class, version or a field differs): {mend}")
    present = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    if unlike := sorted(expected.keys() ^ present.keys()):
        what = "is missing" if unlike[0] in expected else "does not belong there"
        raise StoreError(f"{folder} is damaged: {unlike[0]} {what}: {mend}")
    for name, (size, digest) in expected.items():
        if (found := present[name].stat().st_size) != size:
            raise StoreError(f"{folder} is damaged: {name} has {found} bytes instead of {size}: {mend}")
        with present[name].open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                raise StoreError(f"{folder} is damaged: the content of {name} is not what was stored: {mend}")


@contextmanager
def locked(root: Path, fingerprints: Iterable[str]) -> Iterator[bool]:
    """Holds the locks of all these nodes and yields True, or none and yields False if anybody has one. Never waits.

    They are taken in one order by everybody, so of several processes after overlapping sets one always gets its own.
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
    """Removes a stored node or a leftover unless somebody holds its lock; whether it did.

    Renamed first: a reader finds all of it or nothing, and what a crash leaves of the removal is no stored node.
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
    """Turns a full disk or a missing permission under ``root`` into a StoreError that names the setting and the mend."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        name = getattr(error, "filename", None)
        inside = isinstance(name, str | os.PathLike) and root.absolute() in (path := Path(name).absolute(), *path.parents)
        if _is_full(error, root) and (inside or name is None):
            message = f"the disk of store.root={root} is full ({_free(root) / 1e6:.1f} MB free)"
            mend = "free some space (prune the store) or set store.root to another disk"
        elif isinstance(error, OSError) and error.errno in _DENIED and inside:
            message, mend = (
                f"store.root={root} cannot be used ({error})",
                "mend its permissions or set store.root to another folder",
            )
        else:
            raise
        raise StoreError(f"{message}: {mend}, then run again; what was stored is intact and will be reused") from error


def _is_full(error: Exception, root: Path) -> bool:
    if isinstance(error, OSError) and error.errno is None:
        # numpy reports a short write as an OSError that says how many items were written, but not why.
        return _free(root) < _HARDLY_ANY_SPACE
    # safetensors hands the system's message on inside an exception of its own.
    return getattr(error, "errno", None) in _FULL or os.strerror(errno.ENOSPC) in str(error)


def _free(root: Path) -> int:
    exists = next(path for path in (root.absolute(), *root.absolute().parents) if path.is_dir())
    return shutil.disk_usage(exists).free


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def write_json(path: Path, value: Any) -> None:
    """Writes and syncs."""
    with path.open("w") as file:
        file.write(json.dumps(value, indent=1))
        file.flush()
        os.fsync(file.fileno())


def _files(folder: Path) -> list[Path]:
    """All files below ``folder`` but its manifest, and but NFS's stand-ins for files that are deleted while open."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".nfs"))
    return [path for path in found if path != folder / MANIFEST]


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
