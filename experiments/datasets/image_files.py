"""The image files in a folder: which there are, in natural order, and which are left out."""

import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from experiments.datasets.errors import DataError

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
"""Suffixes of the files that are read, in any case."""
_OTHER_KINDS = {
    *(".apng", ".avif", ".dds", ".emf", ".eps", ".exr", ".fits", ".hdr", ".heic", ".heics", ".heif", ".hif", ".icns", ".ico"),
    *(".j2c", ".j2k", ".jfi", ".jfif", ".jif", ".jp2", ".jpe", ".jpf", ".jpg2", ".jpx", ".jxl", ".pam", ".pbm", ".pcx", ".pfm"),
    *(".pgm", ".pict", ".pnm", ".ppm", ".psd", ".qoi", ".ras", ".sgi", ".svg", ".svgz", ".tga", ".wmf", ".xbm", ".xcf", ".xpm"),
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"),
}  # fmt: skip
"""Suffixes of images that are not read."""
_CLUTTER = {"@eadir", "__macosx", "$recycle.bin"}
"""Folders, in lower case, that systems make beside the user's files. Hidden files and folders begin with a dot."""
_LISTED = 8
"""The largest number of names in a note."""


@dataclass(frozen=True)
class ImageFiles:
    """The image files below ``folder`` in natural order, and their names: paths below the folder, with slashes."""

    folder: Path
    paths: Sequence[Path]
    names: Sequence[str]


def find_images(folder: Path, setting: str) -> ImageFiles:
    """Find the image files in ``folder`` and its subfolders, in the natural order of their names: img2 before img10.

    Hidden files and folders, and those that systems make (macOS's ``._x.png``, ``Thumbs.db``), are left out. Symbolic links are
    followed. Images of kinds that are not read are left out, and the user is told their names. ``setting`` is
    "setting=value" of ``folder`` for messages.

    Raises:
        DataError: the folder does not exist or cannot be listed, or has no image files.
    """
    if not folder.is_dir():
        raise DataError(f"{setting}: there is no such folder; give a folder of image files ({', '.join(KINDS)})")
    try:
        found = sorted(_walk(folder, ()), key=lambda path: natural(path.relative_to(folder)))
    except OSError as error:
        raise DataError(f"{setting}: {error.filename or folder} cannot be listed ({error.strerror or error})") from error
    paths = [path for path in found if path.suffix.lower() in KINDS]
    left_out = listed([_name(path, folder) for path in found if path.suffix.lower() not in KINDS])
    if not paths:
        others = f", only images of kinds that are not read: {left_out}" if left_out else ""
        raise DataError(f"{setting} holds no image files ({', '.join(KINDS)}){others}")
    if left_out:
        note(f"left out of {folder}, as kinds of images that are not read: {left_out}")
    return ImageFiles(folder, paths, [_name(path, folder) for path in paths])


def natural(path: Path) -> Any:
    """A key that sorts paths as people do: by the value of numbers, without regard to case and to how accents are encoded."""
    parts = [re.split(r"([0-9]+)", unicodedata.normalize("NFC", part).casefold()) for part in path.with_suffix("").parts]
    return [[int(piece) if place % 2 else piece for place, piece in enumerate(pieces)] for pieces in parts], str(path)


def note(sentence: str) -> None:
    """Tell the user what was done to the images or left out."""
    print(f"note: {sentence}", file=sys.stderr)


def listed(names: Sequence[str], most: int = _LISTED) -> str:
    """The names in one line; of more than ``most``, the first ones and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _name(path: Path, folder: Path) -> str:
    """The path below ``folder``, with slashes. Bytes that are no UTF-8 are escaped."""
    return os.fsencode(path.relative_to(folder).as_posix()).decode("utf-8", "backslashreplace")


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield all files below ``folder`` that are images by their suffix, or by their content if they have no suffix.

    ``above`` are the folders on the way here: a link back to one of them would never end.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.lower() in _CLUTTER:
            continue
        if path.is_dir():
            yield from _walk(path, (*above, here))
        elif path.suffix:
            if path.suffix.lower() in (*KINDS, *_OTHER_KINDS) and (path.is_file() or path.is_symlink()):  # no sockets or pipes
                yield path
        elif path.is_file() and _is_image(path):
            yield path


def _is_image(path: Path) -> bool:
    """Whether a file begins as an image."""
    try:
        with Image.open(path):
            return True
    except Exception:  # any other content can raise any error
        return False
