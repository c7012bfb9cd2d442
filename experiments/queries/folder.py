"""Queries from a folder of image files."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attribution.checks import FieldError
from attribution.images import Images, ImageSet
from attribution.nodes import Get, digest, execution
from experiments.datasets.image_files import find_images
from experiments.datasets.image_reader import Crop, Framing, Resize, read_images
from experiments.models.experiment import Experiment
from experiments.queries.base import Queries

SHARED = ("attribution.images.images", "experiments.datasets.image_reader")


@dataclass(frozen=True, kw_only=True)
class Folder(Queries):
    """The image files in the folder ``path``. ``resize`` and ``crop`` are those of :class:`Framing`."""

    path: str | Path
    resize: Resize = "none"
    crop: Crop = "none"

    def node(self, experiment: Experiment) -> ImageSet:
        data = experiment.data.seen
        if not data.bounded:
            raise FieldError(
                self, "path", "image files are no queries for a model of latents; choose queries=validation or generated"
            )
        if experiment.data.condition is not None:
            raise FieldError(
                self,
                "path",
                "image files have no class and no embedding, which the model needs; choose queries=validation or generated",
            )
        files = ImageFolder(path=self.path, shape=data.shape, resize=self.resize, crop=self.crop)
        return experiment.data.encoded(files)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSet):
    """The image files in the folder ``path`` and its subfolders, as images of ``shape`` (C, H, W).

    :func:`read_images` says what becomes of rotated, transparent, gray and other images. Names are paths below the folder, ids
    are positions in the natural order of the names, and labels are -1. The identity is the content of the images. The folder is
    read once per process.
    """

    NAME = "ImageFolder"
    VERSION = 1
    TITLE = "reading images"
    STORED = False

    path: str | Path = execution()
    shape: tuple[int, int, int]
    resize: Resize = execution(default="none")
    crop: Crop = execution(default="none")

    @property
    def count(self) -> int:
        return len(self._read()[0])

    def compute(self, get: Get) -> Images:
        """Read the images.

        Raises:
            DataError: the folder is missing or has no images, or some images cannot be used.
        """
        return self._read()[0]

    def description(self) -> dict[str, Any]:
        return {**super().description(), "content": self._read()[1]}

    def _read(self) -> tuple[Images, str]:
        channels, height, width = self.shape
        return _read(str(self.path), Framing((channels, height, width), self.resize, self.crop))


@functools.lru_cache(maxsize=8)
def _read(path: str, framing: Framing) -> tuple[Images, str]:
    """Return the images and the digest of their pixels."""
    files = find_images(Path(path).expanduser(), f"queries.path={path}")
    count = len(files.paths)
    pixels = read_images(files, range(count), framing, "queries")
    return Images(pixels, np.arange(count), np.full(count, -1), names=np.array(files.names, np.str_)), digest(pixels)
