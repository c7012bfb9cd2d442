"""The interface of data sources: training and validation images, identified by their content and not by their path."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from attribution.checks import FieldError, listed, whole
from attribution.images import Images, ImageSet
from attribution.nodes import Get, added, class_identity, describe, describe_fields, execution
from experiments.datasets.conditions import Condition, conditioned
from experiments.datasets.errors import DataError

SHARED = ("attribution.images.images", "experiments.datasets.conditions")

Name = Literal["train", "validation"]


class Decoder(Protocol):
    """Turns latents into pictures."""

    def pictures(self, latents: Tensor) -> np.ndarray:
        """What people see of ``latents [B, c, h, w]``: ``[B, C, H, W]`` uint8, 255 for white."""
        ...


@dataclass(frozen=True, eq=False)
class Splits:
    """The training images and the held-out images of a source. Ids are unique within each.

    Images without names are called "train/ID" and "validation/ID".
    """

    train: Images
    validation: Images


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """A source of images of ``channels`` × ``size``. Subclasses read them.

    Models are built for ``channels`` and ``size``, which must agree with the images, as must ``levels``.

    - ``size``: the number of pixels of a side, or (height, width)
    - ``flips``: whether training mirrors each image left to right with probability 1/2
    - ``levels``: the largest value of a pixel in the files (255 for 8 bits), the unit of the ELBO
    - ``root``: the folder of the source's files, by default ``data``; sources without files ignore it
    - ``condition``: what networks are told about the images, which ``load`` adds to them
    """

    channels: int
    size: int | Sequence[int]
    flips: bool
    levels: int = 255
    root: str | Path | None = execution(default=None)
    condition: Condition | None = added(default=None)

    def __post_init__(self):
        for name in ("channels", "levels"):
            whole(self, name, least=1)
        if isinstance(self.size, list | tuple):
            listed(self, "size", partial(whole, least=1))
            if len(self.size) != 2:
                raise FieldError(self, "size", "must be a number of pixels, or [height, width]")
        else:
            whole(self, "size", least=1)
        # Configurations give lists. Tuples make the source hashable, so that it is read only once.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, field.name, tuple(value))

    @abstractmethod
    def read(self) -> Splits:
        """Read the images.

        Raises:
            DataError: the files are missing or damaged, or the settings do not fit them.
        """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        return self.channels, height, width

    @property
    def bounded(self) -> bool:
        """Whether the values that models see are in [-1, 1]. Latents need not be: samplers must not clip them."""
        return True

    @property
    def display(self) -> float:
        """The magnitude that figures draw as black and white."""
        return 1.0 if self.bounded else self.load().train.display

    @property
    def decoder(self) -> "Decoder | None":
        """What turns latents into pictures, if models see latents."""
        return None

    @property
    def seen(self) -> "Source":
        """The images as people see them: those of this source, or the ones that it encodes."""
        return self

    def encoded(self, images: ImageSet) -> ImageSet:
        """``images`` like those of ``seen``, as models see them."""
        return images

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return Path("data" if self.root is None else self.root).expanduser()

    def load(self) -> Splits:
        """Return the images of ``read`` after checking them. They are read once per process.

        Raises:
            DataError: the files are missing or damaged, or the settings do not fit them.
        """
        return _load(self).splits

    def content(self, name: Name) -> str:
        """Return the SHA-256 of one split: pixels, levels, ids and labels."""
        return _load(self).content[name]

    def description(self) -> dict[str, Any]:
        """Return class, settings and content. Sources with the same settings but different files differ."""
        return {**class_identity(type(self)), **describe_fields(self), "content": _load(self).content}


@dataclass(frozen=True)
class Split(ImageSet):
    """The training or validation images of a source, or those at the positions ``rows``.

    The identity is the content of this split only. It does not depend on the other split, so that changing the number of
    validation images retrains no model.
    """

    NAME = "Split"
    VERSION = 1
    TITLE = "reading images"
    STORED = False

    source: Source
    name: Name
    rows: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.name not in ("train", "validation"):
            raise DataError(f"split {self.name!r}: choose train or validation")

    @property
    def count(self) -> int:
        return len(getattr(self.source.load(), self.name)) if self.rows is None else len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.source.shape

    def compute(self, get: Get) -> Images:
        """Return the images.

        Raises:
            DataError: a row is out of range or given twice.
        """
        images = getattr(self.source.load(), self.name)
        if self.rows is None:
            return images
        rows = np.asarray(self.rows, dtype=np.int64)
        if len(np.unique(rows)) < len(rows) or rows.min(initial=0) < 0 or rows.max(initial=0) >= len(images):
            raise DataError(f"rows of the {self.name} images must be distinct positions in 0..{len(images) - 1}")
        return images.take(rows)

    def description(self) -> dict[str, Any]:
        return {
            **class_identity(type(self)),
            "source": class_identity(type(self.source)),
            "name": self.name,
            "content": self.source.content(self.name),
            "rows": None if self.rows is None else describe(np.asarray(self.rows, dtype=np.int64)),
        }


@dataclass(frozen=True, eq=False)
class _Loaded:
    splits: Splits
    content: dict[str, str]


_BLOCK = 1024
_ROUNDING = 1e-4


def _check_pixels(source: Source, name: Name, images: Images) -> None:
    """Check the values that models will see: sources of users may have others than :class:`Images` asks for."""
    owner, kind = type(source).__name__, images.pixels.dtype
    if kind.kind != "u" and kind != np.float32:
        raise DataError(f"{owner}: the {name} pixels are {kind}: use unsigned integers 0..levels, or float32 in [-1, 1]")
    low, high = (0, images.levels) if kind.kind == "u" else (-1 - _ROUNDING, 1 + _ROUNDING)
    for start in range(0, len(images), _BLOCK):
        block = images.pixels[start : start + _BLOCK]
        least, most = float(block.min()), float(block.max())
        if not np.isfinite([least, most]).all():
            raise DataError(f"{owner}: {name} images have values that are not finite")
        if (least < low or most > high) and (source.bounded or kind.kind == "u"):
            allowed = "in [-1, 1] (or the source is not bounded)" if kind.kind == "f" else f"0..{images.levels}, the data's levels"
            raise DataError(f"{owner}: {name} images have values from {least:g} to {most:g}; they must be {allowed}")


# All nodes of a run use the same source; a sweep over data sets in one process uses a few.
@functools.lru_cache(maxsize=4)
def _load(source: Source) -> _Loaded:
    """Read and check a source."""
    splits = source.read()
    by_name: dict[Name, Images] = {"train": splits.train, "validation": splits.validation}
    if not len(splits.train):
        raise DataError(f"{type(source).__name__}: there are no training images")
    for name, images in by_name.items():
        channels, height, width = images.shape
        if (channels, height, width) != source.shape:
            raise DataError(
                f"data.channels={source.channels}, data.size={source.size}, but the {name} images are "
                f"{channels}×{height}×{width} (channels, height, width): set them to the shape of the images in the files"
            )
        if images.levels != source.levels:
            raise DataError(
                f"data.levels={source.levels}, but the {name} images have {images.levels}: set data.levels={images.levels}"
            )
        _check_pixels(source, name, images)
    named = Splits(*(images.named(name) for name, images in by_name.items()))
    if source.condition is not None:
        named = Splits(*conditioned(source.condition, named.train, named.validation))
    return _Loaded(named, {"train": named.train.digest(), "validation": named.validation.digest()})
