"""Pixels that are decoded once and kept in the store, so that later runs and other processes map them into memory."""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from attribution.nodes import Artifact, Cost, Get, Node, execution, fingerprint_of
from attribution.nodes.files import write_json
from experiments.datasets.image_files import note
from experiments.store.progress import track
from experiments.store.store import Store

SHARED = ("experiments.datasets.array_pixels", "experiments.datasets.image_reader")

Fill = Callable[[np.ndarray], list[str]]
"""Writes the pixels of N images into an array ``[N, C, H, W]`` and returns sentences for the user about what was changed."""

_PIXELS, _NOTES = "pixels.npy", "notes.json"


@dataclass(frozen=True, eq=False)
class DecodedPixels(Artifact):
    """``pixels [N, C, H, W]``, a file that is mapped into memory, and ``notes`` on what was changed in them."""

    pixels: np.ndarray
    notes: list[str]

    def save(self, folder: Path) -> None:
        """The pixels are in their file already."""
        write_json(folder / _NOTES, self.notes)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(np.load(folder / _PIXELS, mmap_mode="r"), json.loads((folder / _NOTES).read_text(encoding="utf-8")))


@dataclass(frozen=True, kw_only=True)
class Decoded(Node[DecodedPixels]):
    """The pixels that ``fill`` makes, of ``shape`` (N, C, H, W). ``made_of`` identifies the files and how they are read."""

    NAME = "Decoded"
    VERSION = 1
    TITLE = "reading images"
    ARTIFACT = DecodedPixels

    made_of: str
    shape: tuple[int, ...]
    dtype: str
    fill: Fill = execution()

    def cost(self) -> Cost:
        return Cost(disk=math.prod(self.shape) * np.dtype(self.dtype).itemsize)

    def compute(self, get: Get) -> DecodedPixels:
        path = get.workspace(self) / _PIXELS
        pixels = np.lib.format.open_memmap(path, "w+", np.dtype(self.dtype), self.shape)
        try:
            notes = self.fill(pixels)
        except BaseException:
            del pixels
            shutil.rmtree(path.parent)  # it may be large, and repaired files are other pixels
            raise
        pixels.flush()
        return DecodedPixels(pixels, notes)


def decoded(store: str | Path | None, made_of: Any, shape: tuple[int, ...], dtype: str, fill: Fill) -> np.ndarray:
    """Return the pixels that ``fill`` makes, of ``shape`` (N, C, H, W), and tell the user its sentences.

    They are kept in the store in the folder ``store``, under ``made_of``, plain values that identify the files and how they are
    read. With None, or a folder that cannot be written, they are made in memory.
    """
    get = store_of(store)
    if get is None:
        pixels = np.empty(shape, dtype)
        notes = fill(pixels)
    else:
        node = Decoded(made_of=fingerprint_of(made_of), shape=shape, dtype=dtype, fill=fill)
        made = get(node)
        pixels, notes = made.pixels, made.notes
    for sentence in notes:
        note(sentence)
    return pixels


def store_of(folder: str | Path | None) -> Store | None:
    """The store in ``folder``, or None for no folder and for one that cannot be written."""
    return None if folder is None or not _writable(Path(folder)) else Store(folder, track)


def states(paths: Iterable[Path]) -> list[list[Any]]:
    """What tells whether files are still the same: path, size, and the times of the last change of content and status."""
    return [[str(path.absolute()), *_state(path)] for path in paths]


def _state(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:  # reading it will say why
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _writable(folder: Path) -> bool:
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return os.access(existing, os.W_OK)
