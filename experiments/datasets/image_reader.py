"""The reader of encoded images: pixels of one shape from files of many kinds, and one error that lists all it cannot use."""

import io
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from experiments.datasets.errors import DataError
from experiments.datasets.image_files import ImageFiles, listed, note

Resize = Literal["none", "area", "bilinear", "bicubic", "lanczos"]
Crop = Literal["none", "center"]

_FILTERS = {
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""Decoders that may read a file, whatever its suffix."""
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_ALPHA = {"LA", "PA", "RGBA"}
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # tags of TIFF
_THREADS = 16
"""The largest number of images that are decoded at a time. PIL decodes outside of Python's global lock."""
_AHEAD = 256
"""The number of encoded images that are held at a time."""
_LISTED = 100
"""The largest number of names of one reason in an error."""
_DAMAGED = "damaged or no image (repair or remove)"
_SEVERAL = "an animation or several pages (save the one image that you mean)"


class _UnusableError(Exception):
    """A file that cannot be used, for a reason that it may share with others."""


class _OtherSizeError(Exception):
    """An image that cannot get the wanted size."""


@dataclass(frozen=True)
class Framing:
    """How images of any size become images of ``shape`` (C, H, W).

    - ``crop="center"`` takes the largest part in the middle that has the proportions of the shape if the image is resized, and
      the H × W pixels in the middle if it is not.
    - ``resize`` brings this part, or with ``crop="none"`` the whole image whatever its proportions, to H × W: "area" averages
      over the area of each new pixel; "bilinear", "bicubic" and "lanczos" are PIL's, which widen the filter when they shrink.
      With "none", all images must have the size already.

    Raises:
        DataError: a value is none of these, or C is neither 1 (gray) nor 3 (RGB).
    """

    shape: tuple[int, int, int]
    resize: Resize = "none"
    crop: Crop = "none"

    def __post_init__(self):
        if self.shape[0] not in (1, 3):
            raise DataError(f"image files have 1 or 3 channels, but the model's images have {self.shape[0]}")
        for name, kinds in (("resize", get_args(Resize)), ("crop", get_args(Crop))):
            if getattr(self, name) not in kinds:
                raise DataError(f"{name}={getattr(self, name)}: choose one of {', '.join(kinds)}")

    def apply(self, image: Image.Image) -> np.ndarray:
        """Return the pixels of an 8-bit image, ``[C, H, W]`` uint8."""
        channels, height, width = self.shape
        image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            if self.resize != "none":
                box = _centered(image.size, (width, height)) if self.crop == "center" else (0, 0, *image.size)
                image = image.resize((width, height), _FILTERS[self.resize], box)
            elif self.crop == "center" and image.width >= width and image.height >= height:
                left, top = (image.width - width) // 2, (image.height - height) // 2
                image = image.crop((left, top, left + width, top + height))
            else:
                raise _OtherSizeError(f"{image.width}×{image.height}")
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)


def _centered(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest box (left, top, right, bottom) in the middle of ``size`` (W, H) with the proportions of ``wanted``."""
    scale = min(have / want for have, want in zip(size, wanted, strict=True))
    left, top = (max(0.0, (have - scale * want) / 2) for have, want in zip(size, wanted, strict=True))
    return left, top, size[0] - left, size[1] - top


class Encoded(NamedTuple):
    """The name of an image, and a function that returns the content of its file."""

    name: str
    content: Callable[[], bytes]


class _Decoded(NamedTuple):
    """What became of an image: why it cannot be used, or its other size, or whether more than its size was changed."""

    unusable: str | None = None
    other_size: str | None = None
    composited: bool = False
    rounded: bool = False


def files_of(files: ImageFiles, rows: Sequence[int]) -> list[Encoded]:
    """The files at the positions ``rows``."""
    return [Encoded(files.names[row], files.paths[row].read_bytes) for row in rows]


def read_images(files: ImageFiles, rows: Sequence[int], framing: Framing, setting: str) -> np.ndarray:
    """Read the files at the positions ``rows``: pixels ``[N, C, H, W]`` uint8, as :func:`decode` describes."""
    pixels = np.empty((len(rows), *framing.shape), np.uint8)
    for sentence in decode(files_of(files, rows), pixels, framing, str(files.folder), setting):
        note(sentence)
    return pixels


def decode(images: Iterable[Encoded], pixels: np.ndarray, framing: Framing, place: str, setting: str) -> list[str]:
    """Decode images, a few at a time on several threads, into ``pixels [N, C, H, W]`` uint8.

    Rotations and mirrorings in EXIF data are applied. Palettes and CMYK become RGB; color profiles are not applied. Transparent
    images are composited on white. Of 16 bits per channel, the higher 8 are kept. Gray images have three equal channels in RGB,
    colors become luma (ITU-R 601) in gray.

    Returns:
        Sentences for the user: which images were transparent or had 16 bits.

    Raises:
        DataError: images are damaged, are animations, or have pixels that are no colors of 8 or 16 bits, or another size. The one
            message lists them all, and names ``place`` and the settings ``setting``.resize and .crop.
    """
    found: list[tuple[str, _Decoded]] = []
    numbered = iter(enumerate(images))

    def one(numbered: tuple[int, Encoded]) -> tuple[str, _Decoded]:
        row, image = numbered
        return image.name, _decoded(image, pixels[row], framing)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of metadata that it does not understand
        while some := list(itertools.islice(numbered, _AHEAD)):
            found += [(name, result) for name, result in threads.map(one, some) if any(result)]
    unusable = [(name, result.unusable) for name, result in found if result.unusable]
    other_sizes = [f"{name} ({result.other_size})" for name, result in found if result.other_size]
    if unusable or other_sizes:
        by_reason = {reason: [name for name, other in unusable if other == reason] for _, reason in unusable}
        reasons = [f"{reason}: {listed(names, _LISTED)}" for reason, names in by_reason.items()]
        reasons += [_sizes_message(other_sizes, framing, setting)] if other_sizes else []
        bad = len(unusable) + len(other_sizes)
        raise DataError(f"{bad} of {len(pixels)} images in {place} cannot be used: {'; '.join(reasons)}")
    composited, rounded = ([name for name, result in found if getattr(result, kind)] for kind in ("composited", "rounded"))
    return [
        *([f"transparent images are shown on white: {listed(composited)}"] if composited else []),
        *([f"of 16 bits per channel, the higher 8 are kept: {listed(rounded)}"] if rounded else []),
    ]


def _decoded(image: Encoded, pixels: np.ndarray, framing: Framing) -> _Decoded:
    """Decode an image into ``pixels [C, H, W]``."""
    try:
        opened, sixteen_bits = _opened(image.content)
        flat, composited = _eight_bits(opened, sixteen_bits)
        pixels[:] = framing.apply(flat)
    except _UnusableError as error:
        return _Decoded(unusable=str(error))
    except _OtherSizeError as error:
        return _Decoded(other_size=str(error))
    return _Decoded(composited=composited, rounded=sixteen_bits)


def _opened(read: Callable[[], bytes]) -> tuple[Image.Image, bool]:
    """Return the image in a file, upright, and whether it has 16 bits per channel."""
    try:
        content = read()
    except OSError as error:
        raise _UnusableError((error.strerror or str(error)).lower()) from error
    try:
        Image.open(io.BytesIO(content), formats=_FORMATS).verify()  # the checksums of PNG files
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a JPEG of phones, the main picture first
        if frames == 1:
            return ImageOps.exif_transpose(image), _has_sixteen_bits(image, content)
    except Image.DecompressionBombError as error:
        raise _UnusableError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels (shrink)") from error
    except Exception as error:  # a damaged file can raise any error
        raise _UnusableError(_DAMAGED) from error
    raise _UnusableError(_SEVERAL)


def _eight_bits(image: Image.Image, sixteen_bits: bool) -> tuple[Image.Image, bool]:
    """Return the image without transparency and with 8 bits per channel, and whether it was transparent."""
    transparent = image.mode in _ALPHA or "transparency" in image.info
    if sixteen_bits and image.mode.startswith("I") and not transparent:
        image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    if image.mode not in _EIGHT_BITS:
        raise _UnusableError(f"pixels of type {image.mode} (save as RGB or gray with 8 bits per channel)")
    if transparent:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image), True
    return image, False


def _has_sixteen_bits(image: Image.Image, content: bytes) -> bool:
    """Whether the channels of a file are unsigned integers of 16 bits. PIL keeps all bits of gray images only."""
    if image.format == "PNG":
        return content[24] == 16  # the bit depth in the header
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits, kind = (np.atleast_1d(image.tag_v2.get(tag, 1)).tolist() for tag in (_BITS_PER_SAMPLE, _SAMPLE_FORMAT))
        return set(bits) == {16} and set(kind) == {1}
    return False


def _sizes_message(images: Sequence[str], framing: Framing, setting: str) -> str:
    _, height, width = framing.shape
    names = listed(images, _LISTED)
    wanted = f"{width}×{height} pixels (width × height, data.size)"
    if framing.crop == "center":
        return f"smaller than {wanted}, with {setting}.resize=none (set it to area, bilinear, bicubic or lanczos): {names}"
    return (
        f"not {wanted}, with {setting}.resize=none and {setting}.crop=none (set {setting}.resize to area, bilinear, bicubic or "
        f"lanczos, and {setting}.crop=center to keep proportions): {names}"
    )
