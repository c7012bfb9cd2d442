"""Latent diffusion: images of another source, encoded once by a frozen autoencoder."""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attribution.checks import FieldError
from attribution.execution import FLOAT32_BYTES, ranges
from attribution.images import Images, ImageSet
from attribution.nodes import Arrays, Cost, Get, InMemory, Node, execution
from experiments.datasets.autoencoder import Autoencoder
from experiments.datasets.errors import DataError
from experiments.datasets.pixels import store_of
from experiments.datasets.source import Name, Source, Split, Splits

SHARED = ("attribution.images.images", "experiments.datasets.autoencoder")

_SHARD = 256
"""Images in one unit of stored work. A killed run loses at most one unit."""


@dataclass(frozen=True, kw_only=True)
class Latents(Source):
    """The latents of ``images`` under ``autoencoder``. Models see latents; figures and pages show the images.

    ``channels`` and ``size`` are those of a latent. Latents are kept in the store in the folder ``store`` (None: in memory only).
    ``root`` must be None: files belong to ``images``.
    """

    NAME = "Latents"
    VERSION = 1

    images: Source
    autoencoder: Autoencoder
    flips: bool = False
    store: str | Path | None = execution(default=None)

    def __post_init__(self):
        super().__post_init__()
        if self.flips:
            raise FieldError(self, "flips", "must be false: a mirrored latent is not the latent of the mirrored image")
        if self.root is not None:
            raise FieldError(self, "root", "must be null: files belong to the images that are encoded (data.images.root)")

    @property
    def bounded(self) -> bool:
        return False

    @property
    def display(self) -> float:
        return 1.0

    @property
    def decoder(self) -> Autoencoder:
        return self.autoencoder

    @property
    def seen(self) -> Source:
        return self.images

    def encoded(self, images: ImageSet) -> ImageSet:
        return EncodedImages(images, self.autoencoder)

    def read(self) -> Splits:
        try:
            self.images.load()
        except DataError as error:  # names settings of a source that is the data itself
            names = "|".join(field.name for field in dataclasses.fields(self.images))
            raise DataError(re.sub(rf"\bdata\.(?=({names})\b)", "data.images.", str(error))) from error
        try:
            shape = self.autoencoder.latent_shape(self.images.shape)
        except FieldError:
            raise
        except ValueError as error:
            raise DataError(f"data.autoencoder.path={self.autoencoder.path}: {error}: change the images (data.images.*)") from error
        if shape != self.shape:
            raise DataError(
                f"data.channels={self.channels}, data.size={self.size}, but latents of these images are "
                f"{'×'.join(map(str, shape))} (channels, height, width): set data.channels={shape[0]} data.size="
                f"{shape[1] if shape[1] == shape[2] else f'[{shape[1]},{shape[2]}]'}"
            )
        get = store_of(self.store) or InMemory()
        train, validation = (self._split(name, get) for name in ("train", "validation"))
        return Splits(train, validation)

    def _split(self, name: Name, get: Get) -> Images:
        images = Split(self.images, name)
        return encoded(get(images), get(EncodedArrays(images, self.autoencoder)))


@dataclass(frozen=True, eq=False)
class LatentArrays(Arrays):
    """``values [N, c, h, w]`` float32."""

    MAPPED = "r"

    values: np.ndarray


@dataclass(frozen=True)
class EncodedShard(Node[LatentArrays]):
    """The latents of the images in ``rows[0]`` to ``rows[1] - 1``."""

    NAME = "EncodedShard"
    VERSION = 1
    TITLE = "encoding images, in shards"
    ARTIFACT = LatentArrays
    TRANSIENT = True

    images: ImageSet
    autoencoder: Autoencoder
    rows: tuple[int, int]

    def compute(self, get: Get) -> LatentArrays:
        return LatentArrays(self.autoencoder.encode(get(self.images).x0(slice(*self.rows))).numpy())


@dataclass(frozen=True)
class EncodedArrays(Node[LatentArrays]):
    """The latents of ``images``."""

    NAME = "EncodedArrays"
    VERSION = 1
    TITLE = "encoding images"
    ARTIFACT = LatentArrays

    images: ImageSet
    autoencoder: Autoencoder

    def parts(self, get: Get) -> Sequence[Node]:
        return [EncodedShard(self.images, self.autoencoder, rows) for rows in ranges(0, self.images.count, _SHARD)]

    def cost(self) -> Cost:
        return Cost(disk=FLOAT32_BYTES * self.images.count * math.prod(self._shape))

    def compute(self, get: Get) -> LatentArrays:
        shards = [shard.values for shard in get.many(self.parts(get), "encoding images")]
        return LatentArrays(np.concatenate(shards) if shards else np.zeros((0, *self._shape), np.float32))

    @functools.cached_property
    def _shape(self) -> tuple[int, int, int]:
        return self.autoencoder.latent_shape(InMemory()(self.images).shape)


@dataclass(frozen=True)
class EncodedImages(ImageSet):
    """The latents of ``images``, with their pictures."""

    NAME = "EncodedImages"
    VERSION = 1
    TITLE = "encoding images"
    STORED = False

    images: ImageSet
    autoencoder: Autoencoder

    @property
    def count(self) -> int:
        return self.images.count

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        return None if self.images.image_shape is None else self.autoencoder.latent_shape(self.images.image_shape)

    def parts(self, get: Get) -> Sequence[Node]:
        return [self.images, EncodedArrays(self.images, self.autoencoder)]

    def compute(self, get: Get) -> Images:
        images, latents = self.parts(get)
        return encoded(get(images), get(latents))


def encoded(images: Images, latents: LatentArrays) -> Images:
    """``latents`` in place of the pixels of ``images``, which remain as their pictures."""
    if images.pixels.dtype == np.uint8 and images.levels == 255:
        pictures = images.pixels
    else:
        pictures = np.rint(images.visible().numpy() * 255).astype(np.uint8)
    return replace(images, pixels=latents.values, levels=255, pictures=pictures, display=1.0)
