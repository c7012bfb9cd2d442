"""Queries from a folder of image files."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from attribution.images import Images, ImageSet
from attribution.nodes import Get, digest, execution
from experiments.datasets import DataError
from experiments.models.experiment import Experiment
from experiments.queries.base import Queries

SHARED = ("attribution.images.images",)

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


@dataclass(frozen=True, kw_only=True)
class Folder(Queries):
    """The PNG and JPEG files in the folder ``path``."""

    path: str | Path

    def node(self, experiment: Experiment) -> ImageSet:
        return ImageFolder(path=self.path, shape=experiment.shape)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSet):
    """The PNG and JPEG files in the folder ``path``, in the order of their names, as images of ``shape`` (C, H, W).

    Files are converted to gray for C = 1 and to RGB for C = 3; transparency is dropped. Files are not resized: the resizing method
    changes the attribution, so it is the user's choice. Ids are positions in the order of names, and labels are -1. The identity
    is the content of the files. The folder is read once per process.
    """

    NAME = "ImageFolder"
    VERSION = 1
    TITLE = "reading images"
    STORED = False

    path: str | Path = execution()
    shape: tuple[int, int, int]

    @property
    def count(self) -> int:
        return len(_read(str(self.path), tuple(self.shape))[0])

    def compute(self, get: Get) -> Images:
        """Read the images.

        Raises:
            DataError: the folder is missing or has no images, or a file is unreadable or has another size.
        """
        return _read(str(self.path), tuple(self.shape))[0]

    def description(self) -> dict[str, Any]:
        return {**super().description(), "content": _read(str(self.path), tuple(self.shape))[1]}


@functools.lru_cache(maxsize=8)
def _read(path: str, shape: tuple[int, int, int]) -> tuple[Images, str]:
    """Return the images and the digest of their pixels."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"the queries' folder {folder} does not exist: give a folder of PNG or JPEG files")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"the queries' folder {folder} holds no PNG or JPEG files")
    pixels = np.stack([_pixels(file, shape) for file in files])
    return Images(pixels, np.arange(len(files)), np.full(len(files), -1)), digest(pixels)


def _pixels(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Return the pixels ``[C, H, W]`` uint8 of an image file."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"image files have 1 or 3 channels, but the model's images have {channels}")
    try:
        with Image.open(file) as image:
            if image.size != (width, height):
                raise DataError(f"{file} is {image.width}×{image.height} pixels, the model's images {width}×{height}: resize it")
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(f"{file} has pixels of type {image.mode}: save it with 8 bits per channel")
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image ({error}): repair or remove it") from error
    return array.reshape(height, width, channels).transpose(2, 0, 1)
