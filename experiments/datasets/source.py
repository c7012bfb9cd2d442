"""What a data source is: training and validation images whose identity is their content, not where they lie."""

import dataclasses
import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attribution.images import Images, ImageSet
from attribution.nodes import Get, class_identity, describe, describe_fields, execution
from experiments.datasets.errors import DataError

Name = Literal["train", "validation"]


@dataclass(frozen=True, eq=False)
class Splits:
    """The images of a source that models train on, and those held out. Ids are unique within either."""

    train: Images
    validation: Images


@dataclass(frozen=True, kw_only=True)
class Source(ABC):
    """Images of ``channels`` × ``size`` × ``size``; models are built to these numbers, which must agree with what is read.

    So must ``levels``, the largest value of a pixel in the files (255 for 8 bits), which the ELBO counts in.
    ``flips``: training mirrors every image left to right half of the time. ``root``: the folder of the source's files,
    ``data`` unless given; a source without files ignores it.
    """

    channels: int
    size: int
    flips: bool
    levels: int = 255
    root: str | Path | None = execution(default=None)

    def __post_init__(self):
        # Lists, as configurations give them, become tuples: a source is hashable, so that it is read once.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, field.name, tuple(value))

    @abstractmethod
    def read(self) -> Splits:
        """The images, from wherever they are. Raises DataError."""

    @property
    def folder(self) -> Path:
        """Where the files are."""
        return Path("data" if self.root is None else self.root).expanduser()

    def load(self) -> Splits:
        """What ``read`` gives, checked; read once per process.

        Raises:
            DataError: files are missing or damaged, or the settings do not fit what they hold.
        """
        return _load(self).splits

    def content(self, name: Name) -> str:
        """SHA-256 of one split: pixels, levels, ids and labels."""
        return _load(self).content[name]

    def description(self) -> dict[str, Any]:
        """Class, settings and content: the same settings over other files are another source."""
        return {**class_identity(type(self)), **describe_fields(self), "content": _load(self).content}


@dataclass(frozen=True)
class Split(ImageSet):
    """The training or validation images of a source, or ``rows`` (positions) of them.

    Identity is the content of this split alone: how the other one is chosen does not change it, so that asking for more
    validation images retrains nothing.
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

    def compute(self, get: Get) -> Images:
        """Raises DataError: ``rows`` beyond the split, or given twice."""
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


# A few, because one process may run a sweep over data sets; every node of a run asks for the same one.
@functools.lru_cache(maxsize=4)
def _load(source: Source) -> _Loaded:
    splits = source.read()
    named = {"train": splits.train, "validation": splits.validation}
    for name, images in named.items():
        channels, height, width = images.shape
        if (channels, height, width) != (source.channels, source.size, source.size):
            raise DataError(
                f"data.channels={source.channels}, data.size={source.size}, but the {name} images are "
                f"{channels}×{height}×{width} (channels, height, width): set these two to what the files hold"
            )
        if images.levels != source.levels:
            raise DataError(f"data.levels={source.levels}, but the {name} images have {images.levels}: set it to that")
        if len(np.unique(images.index)) < len(images):
            raise DataError(f"{type(source).__name__}: two {name} images have one id")
    return _Loaded(splits, {name: images.digest() for name, images in named.items()})
