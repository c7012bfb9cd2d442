"""Images with their ids: the queries and training examples of estimators."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from attribution.nodes import Arrays, Artifact, Node, digest

Rows = slice | Sequence[int] | np.ndarray
_OPTIONAL = ("condition", "names", "pictures")


@dataclass(frozen=True, eq=False)
class Images(Artifact):
    """N images with ids, labels and conditions.

    ``pixels`` is ``[N, C, H, W]``: float32 in [-1, 1] (latents: any values), or unsigned integers 0..``levels`` that ``x0`` maps to
    this range (so that a data set takes no more memory than disk). ``index`` int64 ``[N]``: the id of each image in its source,
    unique; draws are a function of it. ``label`` int64 ``[N]``: class, or -1. ``condition`` ``[N, ...]``: an extra network input
    for each image (a class, an embedding); None for networks that take nothing else. ``names`` str ``[N]``: what people call each
    image, such as its file ("cats/img10.png") or its place in a data set ("train/123"); None: it is known by its id. ``display``:
    figures draw -display as black and display as white. ``pictures`` uint8 ``[N, C', H', W']``: what people see of latents; None:
    the images themselves. Names, display and pictures are no part of the content.
    """

    pixels: np.ndarray
    index: np.ndarray
    label: np.ndarray
    levels: int = 255
    condition: np.ndarray | None = None
    names: np.ndarray | None = None
    display: float = 1.0
    pictures: np.ndarray | None = None

    def __post_init__(self):
        """Raises ValueError: the arrays have different lengths, or two images have the same id."""
        lengths = {
            name: len(array)
            for name in ("pixels", "index", "label", "condition", "names", "pictures")
            if (array := getattr(self, name)) is not None
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"images of different numbers: {', '.join(f'{n} {name}' for name, n in lengths.items())}")
        ids, counts = np.unique(self.index, return_counts=True)
        if (repeated := ids[counts > 1]).size:
            raise ValueError(f"two images have the id {repeated[0]}: draws are a function of the id, so every image needs its own")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def x0(self, rows: Rows | Tensor = slice(None)) -> Tensor:
        """Images as float32 ``[B, C, H, W]``, in [-1, 1] unless they are latents."""
        rows = rows.numpy() if isinstance(rows, Tensor) else rows
        pixels = np.array(self.pixels[rows], dtype=np.float32)
        if self.pixels.dtype.kind == "u":
            pixels = pixels * np.float32(2 / self.levels) - np.float32(1)
        return torch.from_numpy(pixels)

    @property
    def visible_shape(self) -> tuple[int, int, int]:
        """(C', H', W') of what people see."""
        return self.shape if self.pictures is None else tuple(self.pictures.shape[1:])

    def visible(self, rows: Rows = slice(None)) -> Tensor:
        """What people see: float32 ``[B, C', H', W']``, 0 black and 1 white. Values beyond these are not clipped."""
        if self.pictures is not None:
            return torch.from_numpy(np.array(self.pictures[rows], dtype=np.float32)) / 255
        return (self.x0(rows) / self.display + 1) / 2

    def ids(self, rows: Rows = slice(None)) -> Tensor:
        """Ids as int64 ``[B]``."""
        return torch.from_numpy(np.array(self.index[rows], dtype=np.int64))

    def conditions(self, rows: Rows = slice(None)) -> Tensor | None:
        """Conditions ``[B, ...]``, classes as int64; or None."""
        return _conditions_at(self.condition, rows)

    def name(self, row: int) -> str:
        """The name of the image in ``row``, or its id if the images have no names."""
        return str(self.index[row] if self.names is None else self.names[row])

    def named(self, origin: str) -> "Images":
        """These images with their names, or with names such as "train/123", of ``origin`` and id, if they have none."""
        if self.names is not None:
            return self
        return replace(self, names=np.array([f"{origin}/{i}" for i in self.index.tolist()], dtype=np.str_))

    def take(self, rows: Rows) -> "Images":
        """The images in ``rows``, with their ids and names."""
        optional = {name: None if (array := getattr(self, name)) is None else array[rows] for name in _OPTIONAL}
        return Images(self.pixels[rows], self.index[rows], self.label[rows], levels=self.levels, display=self.display, **optional)

    def digest(self) -> str:
        """The SHA-256 of the content: pixels, levels, ids, labels and conditions."""
        arrays = [self.pixels, self.index, self.label, np.array(self.levels)]
        return digest(*arrays, *([] if self.condition is None else [self.condition]))

    def save(self, folder: Path) -> None:
        for name in ("pixels", "index", "label"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        np.save(folder / "levels.npy", np.int64(self.levels))
        if self.display != 1:
            np.save(folder / "display.npy", np.float64(self.display))
        for name in _OPTIONAL:
            if (array := getattr(self, name)) is not None:
                np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Self:
        optional = [name for name in _OPTIONAL if (folder / f"{name}.npy").exists()]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pixels", "index", "label", *optional)}
        display = float(np.load(folder / "display.npy")) if (folder / "display.npy").exists() else 1.0
        return cls(**arrays, levels=int(np.load(folder / "levels.npy")), display=display)


@dataclass(frozen=True)
class ImageSet(Node[Images]):
    """A node of images that knows their number before it is computed."""

    ARTIFACT = Images

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of images."""

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of an image, if it is known before they are computed."""
        return None

    @property
    def trajectories(self) -> "Node[Trajectories] | None":
        """The sampling trajectories of these images, if they were sampled; else None."""
        return None


@dataclass(frozen=True, eq=False)
class Trajectories(Arrays):
    """``states [N, S + 1, C, H, W]`` float32 from noise to image, the ids ``index [N]`` of the images, and their conditions."""

    MAPPED = "r"

    states: np.ndarray
    index: np.ndarray
    condition: np.ndarray | None = None

    def x0(self, rows: slice = slice(None)) -> Tensor:
        """The states in ``rows``, ``[B, S + 1, C, H, W]``: measures of trajectories take them in place of images."""
        return torch.from_numpy(np.array(self.states[rows]))

    def ids(self, rows: slice = slice(None)) -> Tensor:
        """Ids as int64 ``[B]``."""
        return torch.from_numpy(np.array(self.index[rows], dtype=np.int64))

    def conditions(self, rows: slice = slice(None)) -> Tensor | None:
        """Conditions ``[B, ...]``, classes as int64; or None."""
        return _conditions_at(self.condition, rows)


def _conditions_at(condition: np.ndarray | None, rows: Rows) -> Tensor | None:
    """``condition[rows]`` as a tensor, integers of any size as int64, which tables of classes take."""
    if condition is None:
        return None
    chosen = np.array(condition[rows])
    return torch.from_numpy(chosen.astype(np.int64) if chosen.dtype.kind in "iu" else chosen)
