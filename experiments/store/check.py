"""Whether a file system has what a store relies on: writing, syncing, renaming, and locks, also between nodes of a cluster."""

import errno
import multiprocessing
import os
import shutil
import socket
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from attribution.nodes.files import sync_folder, write_json
from experiments.store.locks import LOCKS, locked
from experiments.store.meeting import MeetingError, meet

FOLDER = "check"
"""The folder of the check, beside the locks of nodes: ``<root>/locks/check``."""

_LOCK = "lock"
_SECONDS_TO_ANSWER = 120.0
_ANOTHER = "set store.root to another file system"
_REMEDIES = {
    "write": f"correct the permissions, free some space, or {_ANOTHER}",
    "locks": f"mount it with locks (NFS without nolock and local_lock, Lustre with flock, BeeGFS: docs/cluster.md), or {_ANOTHER}",
}
_UNWRITTEN = "needs a folder that can be written"


@dataclass(frozen=True)
class Finding:
    """One property of the file system. ``ok`` is None if it was not checked, and ``text`` says what was found, or a remedy."""

    name: str
    ok: bool | None
    text: str


class _Lacking(Exception):
    """The file system lacks a property; the message says what happened."""


def check(root: Path, processes: int, seconds: float) -> Generator[Finding, None, None]:
    """Check the file system of ``root``, which is created, together with other processes that run this check at the same time.

    Args:
        root: The root of a store.
        processes: How many processes run this check, on one or several nodes, including this one.
        seconds: How long to wait for the others.
    """
    shared = root.absolute() / LOCKS / FOLDER
    folder = shared / f"{socket.gethostname()}-{os.getpid()}"
    try:
        found = _finding("write", "files can be written and read", _write, folder)
        yield found
        for name, claim, examine in _PROPERTIES:
            yield _finding(name, claim, examine, folder) if found.ok else Finding(name, None, _UNWRITTEN)
        yield _between_nodes(shared, processes, seconds) if found.ok else Finding("nodes", None, _UNWRITTEN)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for emptied in (shared / LOCKS, shared):
            with suppress(OSError):  # another process still uses it
                emptied.rmdir()


def _finding(name: str, claim: str, examine: Callable[[Path], None], folder: Path) -> Finding:
    try:
        examine(folder)
    except (OSError, _Lacking) as error:
        return Finding(name, False, f"{error}: {_REMEDIES.get(name, _ANOTHER)}")
    return Finding(name, True, claim)


def _write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "file").write_text("text")
    if (folder / "file").read_text() != "text":
        raise _Lacking(f"{folder / 'file'} does not have the text that was written to it")


def _sync(folder: Path) -> None:
    with (folder / "file").open("w") as file:
        file.write("text")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _rename(folder: Path) -> None:
    """As saves and stored nodes are renamed: a file replaces another; a folder takes a free name and no occupied one."""
    for number in (1, 2):
        write_json(folder / "replaced.json", number)
    if (folder / "replaced.json").read_text() != "2":
        raise _Lacking("a file that was renamed to the name of another did not replace it")
    for name in ("first.part", "second.part"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
    os.rename(folder / "first.part", folder / "final")
    try:
        os.rename(folder / "second.part", folder / "final")
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    else:
        raise _Lacking("a folder that was renamed to the name of another replaced it")
    if (folder / "first.part").exists() or (folder / "final" / "file").read_text() != "first.part":
        raise _Lacking("a renamed folder is not complete under its new name, or is still there under its old one")


def _exclude(folder: Path) -> None:
    """Another process on this machine cannot take a held lock, can take it once it is free, and loses it when it is killed."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=_take_twice, args=(folder, there), daemon=True)
    other.start()
    there.close()
    try:
        with locked(folder, [_LOCK]) as free:
            if not free:
                raise _Lacking("a new lock could not be taken")
            if _answer(here):
                raise _Lacking("another process on this machine took a lock that this process held")
        if not _answer(here):
            raise _Lacking("another process on this machine could not take a lock that was released")
    finally:
        other.kill()
        other.join()
    with locked(folder, [_LOCK]) as free:
        if not free:
            raise _Lacking("the lock of a killed process was not released")


def _answer(pipe: Connection) -> bool:
    """Ask the other process to take the lock, and return whether it could."""
    try:
        pipe.send(None)
        if pipe.poll(_SECONDS_TO_ANSWER):
            return pipe.recv()
    except (EOFError, BrokenPipeError):
        pass
    raise _Lacking("a second process on this machine failed to try a lock")


def _take_twice(folder: Path, pipe: Connection) -> None:
    """Try to take the lock whenever asked. The second time, keep it until this process is killed."""
    pipe.recv()
    with locked(folder, [_LOCK]) as free:
        pipe.send(free)
    pipe.recv()
    with locked(folder, [_LOCK]) as free:
        pipe.send(free)
        pipe.recv()


_PROPERTIES = (
    ("sync", "files and folders can be flushed to disk (fsync)", _sync),
    ("rename", "a file replaces another, a folder never does", _rename),
    ("locks", "a lock excludes other processes of this machine and ends with its process", _exclude),
)


def _between_nodes(shared: Path, processes: int, seconds: float) -> Finding:
    """Meet the other processes, and say which hosts took part."""
    if processes == 1:
        return Finding("nodes", None, "one process took part; see docs/cluster.md for a check of two nodes")
    try:
        hosts = meet(shared, processes, seconds)
    except (OSError, MeetingError) as error:
        return Finding("nodes", False, f"{error}: {_REMEDIES['locks']}")
    if len(set(hosts)) == 1:
        return Finding("nodes", None, f"{processes} processes took part, all of {hosts[0]}, and their locks exclude each other")
    return Finding("nodes", True, f"locks exclude processes of other nodes: {', '.join(sorted(set(hosts)))}")
