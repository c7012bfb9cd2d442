"""Images in memory as a node."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from attribution.images.images import Images, ImageSet
from attribution.nodes import Get, class_identity

SHARED = ("attribution.images.images",)


@dataclass(frozen=True, eq=False)
class GivenImages(ImageSet):
    """``images``, known by their content."""

    NAME = "GivenImages"
    VERSION = 1
    TITLE = "the given images"
    STORED = False

    images: Images

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.images.shape

    def compute(self, get: Get) -> Images:
        return self.images

    def description(self) -> dict[str, Any]:
        return {**class_identity(type(self)), "content": self._content}

    @cached_property
    def _content(self) -> str:
        return self.images.digest()


def image_set(images: Images | ImageSet | Tensor | np.ndarray) -> ImageSet:
    """``images`` as a node. An array ``[N, C, H, W]`` has unsigned integers 0..255, or floats as the network takes them.

    The ids of the images of an array are 0..N-1.

    Raises:
        ValueError: an array of another shape or type, without images, or with values that are not finite.
    """
    if isinstance(images, ImageSet):
        return images
    if not isinstance(images, Images):
        if isinstance(images, Tensor):
            images = (images.float() if images.is_floating_point() else images).detach().cpu().numpy()  # NumPy has no bfloat16
        pixels = np.asarray(images)
        if pixels.ndim != 4 or not len(pixels):
            raise ValueError(f"images of the shape {list(pixels.shape)}: give [N, C, H, W], with at least one image")
        if pixels.dtype.kind == "f":
            pixels = pixels.astype(np.float32)
        elif pixels.dtype != np.uint8:
            raise ValueError(f"images of the type {pixels.dtype}: give uint8 in 0..255, or floats as the network takes them")
        images = Images(pixels, np.arange(len(pixels)), np.full(len(pixels), -1))
    if images.pixels.dtype.kind == "f" and not np.isfinite(images.pixels).all():
        raise ValueError("images with values that are not finite: give pixels or latents without NaN and infinity")
    return GivenImages(images)
