"""Folders of stored nodes. A folder is complete or does not exist: it is written to a temporary folder, hashed, and then renamed.

A stored node is the folder ``<root>/<NAME>/<fingerprint>``: the files of its artifact, ``node.json`` (its description and how it
was computed) and ``manifest.json`` (size and SHA-256 of every other file). ``<fingerprint>.part`` holds work in progress,
``<fingerprint>.gone`` a folder that is being removed.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attribution.nodes import Node, describe, fingerprint_of
from attribution.nodes.files import Digest, read_json, sync_folder, write_json
from attribution.nodes.saves import FOLDER as PROGRESS
from attribution.nodes.saves import Saves, in_progress
from experiments import disk
from experiments.store.errors import StoreError
from experiments.store.locks import forget, locked

NODE = "node.json"
MANIFEST = "manifest.json"
PART = ".part"
GONE = ".gone"

_OCCUPIED = {errno.EEXIST, errno.ENOTEMPTY}


def begin(part: Path, node: Node) -> None:
    """Create the ``.part`` folder of a node, or reopen that of an earlier attempt if it has saves, and write its description there.

    Raises:
        StoreError: the description of the node is not plain JSON, so it could not be compared later.
    """
    description = json.loads(json.dumps(describe(node)))
    if fingerprint_of(description) != node.fingerprint:
        raise StoreError(f"the description of {type(node).__name__} is not plain JSON: use strings as keys")
    if part.is_dir() and not (part / PROGRESS).is_dir():  # nothing tells whether the files are complete
        shutil.rmtree(part)
    for folder in sorted((path for path in part.rglob("*") if path.is_dir()), reverse=True):
        with suppress(OSError):  # only empty folders go: one of them may be in the place of a file
            folder.rmdir()
    part.mkdir(parents=True, exist_ok=True)
    write_json(part / NODE, {"fingerprint": node.fingerprint, "description": description})


def settle(part: Path, node: Node) -> dict[str, Digest]:
    """Keep those files of a computed node that its last save lists, before the artifact adds its own, and return their digests.

    Without saves all files stay: ``begin`` has removed those of earlier attempts.
    """
    if not (part / PROGRESS).is_dir():
        return {}
    digests = Saves(part, node.fingerprint).published()
    for path in _files(part):
        if (name := _name(path, part)) not in digests and name != NODE and not in_progress(name):
            path.unlink()
    return digests


def publish(part: Path, final: Path, facts: dict[str, Any], saved: dict[str, Digest]) -> None:
    """Turn a finished ``.part`` folder into the stored node: add ``facts`` to node.json, hash and sync all files, then rename.

    Raises:
        StoreError: a file in ``saved`` is no longer what it was when it was saved.
    """
    write_json(part / NODE, read_json(part / NODE) | facts)
    files = {name: path for path in _files(part) if not in_progress(name := _name(path, part))}
    digests = {name: Digest.of(path, sync=True) for name, path in files.items()}
    if changed := sorted(name for name, digest in saved.items() if digests.get(name) != digest):
        raise StoreError(f"{part / changed[0]} has changed since it was saved: run again to compute the node from what is intact")
    if (part / PROGRESS).is_dir():
        shutil.rmtree(part / PROGRESS)
    write_json(part / MANIFEST, {name: asdict(digest) for name, digest in digests.items()})
    for folder in (*(path for path in part.rglob("*") if path.is_dir()), part):
        sync_folder(folder)
    try:
        os.rename(part, final)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        # On a network file system a stored node may become visible late, so that it is computed twice. The first one stays.
        shutil.rmtree(part)
    sync_folder(final.parent)


def verify(folder: Path) -> dict[str, Any]:
    """Check every byte of a stored node against its manifest, and its description against the name of its folder.

    Returns:
        The content of node.json.

    Raises:
        StoreError: a file is missing, changed or unexpected, or the folder describes a different node from the one it is named
            after.
    """
    remedy = f"delete {folder} (the node will be computed again), or restore it"
    try:
        record, manifest = read_json(folder / NODE), read_json(folder / MANIFEST)
        name = fingerprint_of(record["description"])
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except FileNotFoundError as error:
        raise StoreError(f"{folder} is damaged: its {NODE} or {MANIFEST} is missing: {remedy}") from error
    except (IsADirectoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{folder} is damaged: its {NODE} or {MANIFEST} is unreadable ({error}): {remedy}") from error
    if name != folder.name:
        raise StoreError(
            f"{folder} describes a different node from the one it is named after (class, version or a field differs): {remedy}"
        )
    present = {_name(path, folder): path for path in _files(folder)}
    if different := sorted(expected.keys() ^ present.keys()):
        problem = "is missing" if different[0] in expected else "does not belong there"
        raise StoreError(f"{folder} is damaged: {different[0]} {problem}: {remedy}")
    for name, (size, digest) in expected.items():
        if (actual := present[name].stat().st_size) != size:
            raise StoreError(f"{folder} is damaged: {name} has {actual} bytes instead of {size}: {remedy}")
        if Digest.of(present[name]).sha256 != digest:
            raise StoreError(f"{folder} is damaged: the content of {name} is not what was stored: {remedy}")
    return record


def remove(root: Path, folder: Path) -> bool:
    """Remove the folder of a node unless another process holds its lock, and return whether it was removed.

    The folder is renamed first: a reader finds all of it or nothing, and an interrupted removal leaves no stored node.
    """
    fingerprint = folder.name.split(".")[0]
    with locked(root, [fingerprint]) as free:
        if not free or not folder.is_dir():
            return False
        gone = folder if folder.suffix == GONE else folder.with_suffix(GONE)
        if folder != gone:
            shutil.rmtree(gone, ignore_errors=True)
            os.rename(folder, gone)
        shutil.rmtree(gone)
        forget(root, [fingerprint])
        return True


@contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or a misplaced file under ``root`` into a StoreError with setting and remedy."""
    kept = "what was stored or saved is kept and will be reused (task=store task.action=prune removes what is not needed)"
    with disk.explained(root, "store.root", kept, StoreError):
        yield


def _files(folder: Path) -> list[Path]:
    """All files below ``folder`` except its manifest, and except the files that NFS keeps for deleted files that are still open."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".nfs"))
    return [path for path in files if path != folder / MANIFEST]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
