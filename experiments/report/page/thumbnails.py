"""Images of a page: as PNG files, and as data URIs of thumbnails."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from attribution.images import Images
from experiments.report.colors import colors

LARGEST = 96
"""The largest side of a thumbnail in pixels. Smaller images keep their pixels: the browser enlarges them."""


def pictures(images: Images, rows: Sequence[int]) -> list[Image.Image]:
    """The images in ``rows``, gray or with three colors."""
    if not len(rows):
        return []
    levels = np.rint(colors(images, rows) * 255).astype(np.uint8)
    return [Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]) for pixels in levels]


def is_reduced(images: Images) -> bool:
    """Whether thumbnails of these images have fewer pixels than the images."""
    return max(images.visible_shape[1:]) > LARGEST


def thumbnails(images: Images, rows: Sequence[int]) -> list[str]:
    """Data URIs of the images in ``rows``, as PNG with at most LARGEST pixels on a side."""
    return [data_uri(_png(_reduced(picture))) for picture in pictures(images, rows)]


def data_uri(png: bytes) -> str:
    """The content of a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def save(folder: Path, images: Images, rows: Sequence[int]) -> None:
    """Write the images in ``rows`` to ``folder``, as ID.png in their own size."""
    folder.mkdir(parents=True, exist_ok=True)
    for row, picture in zip(rows, pictures(images, rows), strict=True):
        (folder / f"{images.index[row]}.png").write_bytes(_png(picture))


def folder_of(kind: str) -> str:
    """The folder, below that of the run, with the images of one kind of queries."""
    return f"images/queries_{quote(kind, safe=' ')}"


TRAIN = "images/train"
"""The folder, below that of the run, with training images in full size."""


def _reduced(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= LARGEST:
        return picture
    picture = picture.copy()
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return picture


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=max(picture.size) <= LARGEST)
    return file.getvalue()
