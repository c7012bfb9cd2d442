"""A folder of images as queries."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from attribution.images import Images, ImageSet
from attribution.nodes import Get, digest, execution
from experiments.datasets.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}


@dataclass(frozen=True, kw_only=True)
class ImageFolder(ImageSet):
    """The PNG and JPEG files in the folder ``path``, in the order of their names, as images of ``shape`` (C, H, W).

    Colours become grey, or grey three equal channels, as C asks; transparency is dropped. Nothing is resized: how an image is
    brought to the model's size changes its attribution, and is the user's choice. Ids are positions in the order of names;
    labels are -1. Identity is content. The folder is read once per process.
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
        """Raises DataError: no images, an unreadable one, or one of another size."""
        return _read(str(self.path), tuple(self.shape))[0]

    def description(self) -> dict[str, Any]:
        return {**super().description(), "content": _read(str(self.path), tuple(self.shape))[1]}


@functools.lru_cache(maxsize=8)
def _read(path: str, shape: tuple[int, int, int]) -> tuple[Images, str]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"the queries' folder {folder} does not exist: name a folder of PNG or JPEG files")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"the queries' folder {folder} holds no PNG or JPEG files")
    pixels = np.stack([_pixels(file, shape) for file in files])
    return Images(pixels, np.arange(len(files)), np.full(len(files), -1)), digest(pixels)


def _pixels(file: Path, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"image files give 1 or 3 channels, but the queries' shape asks for {channels}")
    try:
        with Image.open(file) as image:
            if image.size != (width, height):
                raise DataError(f"{file} is {image.width}×{image.height} pixels, the model's images {width}×{height}: resize it")
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(f"{file} has pixels of type {image.mode}: save it with 8 bits a channel")
            array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as an image ({error}): repair or remove it") from error
    return array.reshape(height, width, channels).transpose(2, 0, 1)
