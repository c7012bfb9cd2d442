"""Full, read-only and misused disks: what happened, in words."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "has no quota left"}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
_UNLOCKABLE = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_MINIMAL_SPACE = 1 << 20


class DiskError(OSError):
    """A file cannot be written. The message names the setting of its folder, and the remedy."""


def problem(error: BaseException, folder: Path, setting: str) -> tuple[str, str] | None:
    """What ``error`` says about the disk of ``folder``, the value of ``setting``, and a remedy; None if it is about something else.

    An error that names a file is about ``folder`` if the file is in it. One that names none is about ``folder`` if a disk is full.
    """
    names = [Path(os.fsdecode(name)).absolute() for name in _names(error)]
    inside = [name for name in names if folder.absolute() in (name, *name.parents)]
    if names and not inside:
        return None
    if (code := _code(error)) in _FULL:
        temporary = Path(tempfile.gettempdir())
        if not names and free(folder) >= _MINIMAL_SPACE > free(temporary):
            folder, setting = temporary, "TMPDIR"
        message = f"the disk of {setting}={folder} {_FULL[code]} ({_space(folder)})"
        return message, f"free some space or set {setting} to a folder on another disk"
    if code in _DENIED and inside:
        reason = f"{os.strerror(code)}: {inside[0]}"
        return f"{setting}={folder} cannot be used ({reason})", f"correct its permissions or set {setting} to another folder"
    if code in _MISPLACED and (reason := _misplaced(inside)):
        return f"{setting}={folder} cannot be used ({reason})", f"remove it or set {setting} to another folder"
    if code in _UNLOCKABLE:
        return f"the file system of {setting}={folder} has no file locks", f"set {setting} to another file system"
    return None


@contextmanager
def explained(folder: Path, setting: str, kept: str, kind: type[OSError] = DiskError) -> Iterator[None]:
    """Turn errors of the disk of ``folder`` into one sentence, which ends with what is ``kept``.

    Raises:
        kind: the body failed because the disk is full, read-only or misused.
    """
    try:
        yield
    except Exception as error:
        explained_before = isinstance(error, DiskError | ValueError)
        if explained_before or (found := problem(error, folder, setting)) is None:
            raise
        message, remedy = found
        raise kind(f"{message}: {remedy}, then run again; {kept}") from error


def is_full(error: BaseException) -> bool:
    """Return whether an error, or one that it comes from, is about a full disk."""
    return _code(error) in _FULL


def free(folder: Path) -> int:
    """Free bytes on the disk of ``folder``, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def _space(folder: Path) -> str:
    files = os.statvfs(_existing(folder)) if hasattr(os, "statvfs") else None
    no_files = files is not None and files.f_files > 0 and files.f_favail == 0
    return f"{free(folder) / 1e6:.1f} MB free{', but no more files' if no_files else ''}"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())


def _misplaced(paths: list[Path]) -> str:
    """What has the wrong type: a file at or above one of ``paths``, or a folder that should be a file."""
    for path in paths:
        for place in (*reversed(path.parents), path):
            if place.is_file():
                return f"{place} is a file, but should be a folder"
    return f"{paths[0]} is a folder, but should be a file" if paths and paths[0].is_dir() else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or current.__context__


def _code(error: BaseException) -> int | None:
    """The system's number of an error. Libraries that write files put it into exceptions and messages of their own."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno is not None:
            return each.errno
        if match := re.search(r"\(os error (\d+)\)", str(each)):  # safetensors
            return int(match.group(1))
        if isinstance(each, OSError) and re.search(r"\d+ requested and \d+ written", str(each)):  # numpy: a short write
            return errno.ENOSPC
    return None


def _names(error: BaseException) -> list[str | bytes | os.PathLike]:
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno is not None:
            return [name for name in (each.filename, each.filename2) if isinstance(name, str | bytes | os.PathLike)]
    return []
