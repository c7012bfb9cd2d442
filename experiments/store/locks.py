"""The locks of nodes. The process that computes or removes a node holds ``<root>/locks/<fingerprint>.lock``.

A lock is released when its process ends. Its file is deleted with the lock held, once the node is stored or removed. A process that
takes a lock whose file has just been deleted notices, and takes the lock of the new file.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from attribution.nodes.files import inode

LOCKS = "locks"
_TRIES = 3


@contextmanager
def locked(root: Path, fingerprints: Iterable[str]) -> Iterator[bool]:
    """Hold the locks of all these nodes and yield True. If another process holds one of them, hold none and yield False.

    This never waits. All processes take the locks in the same order, so of several with overlapping sets one always succeeds.
    """
    (root / LOCKS).mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            for fingerprint in sorted(fingerprints):
                held.enter_context(_acquired(_path(root, fingerprint)))
        except Timeout:
            held.close()
            free = False
        else:
            free = True
        yield free


def forget(root: Path, fingerprints: Iterable[str]) -> None:
    """Delete the files of locks that this process holds and that no process needs any more."""
    for fingerprint in fingerprints:
        with suppress(OSError):  # it stays on a system that does not delete open files
            _path(root, fingerprint).unlink(missing_ok=True)


def forget_if_free(root: Path, fingerprint: str) -> bool:
    """Delete the file of a lock unless a process holds the lock, and return whether it was free."""
    with locked(root, [fingerprint]) as free:
        if free:
            forget(root, [fingerprint])
        return free


def lock_files(root: Path) -> list[Path]:
    """All files of locks; a file's stem is a fingerprint."""
    folder = root / LOCKS
    return sorted(path for path in folder.glob("*.lock") if path.is_file()) if folder.is_dir() else []


@contextmanager
def _acquired(path: Path) -> Iterator[None]:
    """Hold the lock of the file that is at ``path``. Raises Timeout: another process holds it."""
    for _ in range(_TRIES):
        before = inode(path)
        with FileLock(path, blocking=False):
            # A file that was there before and after is the one that was opened, unless it was replaced twice in between.
            if before is not None and before == inode(path):
                yield
                return
    with FileLock(path, blocking=False):  # on a file system without locks, FileLock makes the file anew each time
        yield


def _path(root: Path, fingerprint: str) -> Path:
    return root / LOCKS / f"{fingerprint}.lock"
