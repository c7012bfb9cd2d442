"""Images with their ids: what estimators score and what they score it against."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from attribution.nodes import Arrays, Artifact, Node


@dataclass(frozen=True, eq=False)
class Images(Artifact):
    """N images and what they are called.

    ``pixels`` is ``[N, C, H, W]``: float32 in [-1, 1], or unsigned integers 0..``levels`` that ``x0`` maps there (a data set stays
    as small in memory as on disk). ``index`` int64 ``[N]``: the id of each image in its source, unique; draws are a function of it.
    ``label`` int64 ``[N]``: class, or -1.
    """

    pixels: np.ndarray
    index: np.ndarray
    label: np.ndarray
    levels: int = 255

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.pixels.shape[1:])

    def x0(self, rows: slice | Sequence[int] | np.ndarray | Tensor = slice(None)) -> Tensor:
        """Images as float32 in [-1, 1], ``[B, C, H, W]``."""
        rows = rows.numpy() if isinstance(rows, Tensor) else rows
        pixels = np.array(self.pixels[rows], dtype=np.float32)
        if self.pixels.dtype.kind == "u":
            pixels = pixels * np.float32(2 / self.levels) - np.float32(1)
        return torch.from_numpy(pixels)

    def ids(self, rows: slice | Sequence[int] | np.ndarray = slice(None)) -> Tensor:
        """Ids as int64 ``[B]``."""
        return torch.from_numpy(np.array(self.index[rows], dtype=np.int64))

    def take(self, rows: Sequence[int] | np.ndarray | slice) -> "Images":
        """Some of the images, ids kept."""
        return Images(self.pixels[rows], self.index[rows], self.label[rows], self.levels)

    def save(self, folder: Path) -> None:
        for name in ("pixels", "index", "label"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        np.save(folder / "levels.npy", np.int64(self.levels))

    @classmethod
    def load(cls, folder: Path) -> Self:
        arrays = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("pixels", "index", "label")]
        return cls(*arrays, levels=int(np.load(folder / "levels.npy")))


@dataclass(frozen=True)
class ImageSet(Node[Images]):
    """A node of images whose number is known before it is computed."""

    ARTIFACT = Images

    @property
    @abstractmethod
    def count(self) -> int:
        """How many images."""

    @property
    def trajectories(self) -> "Node[Trajectories] | None":
        """How a sampler came to these images, where that is known."""
        return None


@dataclass(frozen=True, eq=False)
class Trajectories(Arrays):
    """``states [N, S + 1, C, H, W]`` float32 from noise to image, and the ids ``index [N]`` of the images."""

    MAPPED = "r"

    states: np.ndarray
    index: np.ndarray

    def x0(self, rows: slice = slice(None)) -> Tensor:
        """The states of some, ``[B, S + 1, C, H, W]``: what a measure of trajectories takes instead of images."""
        return torch.from_numpy(np.array(self.states[rows]))

    def ids(self, rows: slice = slice(None)) -> Tensor:
        """Ids as int64 ``[B]``."""
        return torch.from_numpy(np.array(self.index[rows], dtype=np.int64))
