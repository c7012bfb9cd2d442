"""The reader of image files: pixels of one shape from files of many kinds, and one error that lists all files it cannot use."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

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


@dataclass
class _Changes:
    """Names of the files in which more is changed than the size."""

    composited: list[str] = field(default_factory=list)
    rounded: list[str] = field(default_factory=list)


def read_images(files: ImageFiles, rows: Sequence[int], framing: Framing, setting: str) -> np.ndarray:
    """Read the files at the positions ``rows``: pixels ``[N, C, H, W]`` uint8.

    Rotations and mirrorings in EXIF data are applied. Palettes and CMYK become RGB; color profiles are not applied. Transparent
    images are composited on white. Of 16 bits per channel, the higher 8 are kept. Gray images have three equal channels in RGB,
    colors become luma (ITU-R 601) in gray. The user is told which images were transparent or had 16 bits.

    Raises:
        DataError: files are damaged, have several images, pixels that are no colors of 8 or 16 bits, or another size. The one
            message lists them all, and names the settings ``setting``.resize and .crop.
    """
    pixels = np.empty((len(rows), *framing.shape), np.uint8)
    unusable: dict[str, list[str]] = {}
    other_sizes: list[str] = []
    changes = _Changes()
    for place, row in enumerate(rows):
        path, name = files.paths[row], files.names[row]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of metadata that it does not understand
                pixels[place] = framing.apply(_eight_bits(*_opened(path), name, changes))
        except _UnusableError as error:
            unusable.setdefault(str(error), []).append(name)
        except _OtherSizeError as error:
            other_sizes.append(f"{name} ({error})")
    if unusable or other_sizes:
        reasons = [f"{reason}: {listed(names)}" for reason, names in unusable.items()]
        reasons += [_sizes_message(other_sizes, framing, setting)] if other_sizes else []
        bad = sum(map(len, unusable.values())) + len(other_sizes)
        raise DataError(f"{bad} of {len(rows)} images in {files.folder} cannot be used: {'; '.join(reasons)}")
    if changes.composited:
        note(f"transparent images are shown on white: {listed(changes.composited)}")
    if changes.rounded:
        note(f"of 16 bits per channel, the higher 8 are kept: {listed(changes.rounded)}")
    return pixels


def _opened(path: Path) -> tuple[Image.Image, bool]:
    """Return the image in a file, upright, and whether it has 16 bits per channel."""
    try:
        content = path.read_bytes()
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


def _eight_bits(image: Image.Image, sixteen_bits: bool, name: str, changes: _Changes) -> Image.Image:
    """Return the image without transparency and with 8 bits per channel; ``changes`` gets its name if it is changed."""
    transparent = image.mode in _ALPHA or "transparency" in image.info
    if sixteen_bits and image.mode.startswith("I") and not transparent:
        image = Image.fromarray((np.asarray(image).astype(np.int32) >> 8).astype(np.uint8))
    if image.mode not in _EIGHT_BITS:
        raise _UnusableError(f"pixels of type {image.mode} (save as RGB or gray with 8 bits per channel)")
    if sixteen_bits:
        changes.rounded.append(name)
    if transparent:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            changes.composited.append(name)
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image


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
    wanted = f"{width}×{height} pixels (width × height, data.size)"
    if framing.crop == "center":
        return f"smaller than {wanted}, with {setting}.resize=none (set it to area, bilinear, bicubic or lanczos): {listed(images)}"
    return (
        f"not {wanted}, with {setting}.resize=none and {setting}.crop=none (set {setting}.resize to area, bilinear, bicubic or "
        f"lanczos, and {setting}.crop=center to keep proportions): {listed(images)}"
    )
