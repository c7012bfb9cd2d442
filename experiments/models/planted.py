"""A training set in which near-copies of queries take the places of random images: a test with a known answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from attribution.images import Images, ImageSet
from attribution.nodes import Cost, Get

SHARED = ("attribution.images.images",)


@dataclass(frozen=True, kw_only=True)
class PlantedImages(ImageSet):
    """The images of ``train``, of which random ones are replaced by ``copies`` near-copies of every image of ``queries``.

    A copy has Gaussian noise, and every second one is brighter. ``noise`` and ``brightness`` are in standard deviations of the
    values of the training images; values stay within the range of these. A copy has the label and the condition of its query, and
    the id of the image that it replaces, so that both are trained on at the same draws.
    """

    NAME = "PlantedImages"
    VERSION = 1
    TITLE = "planted images"

    train: ImageSet
    queries: Sequence[ImageSet]
    copies: int
    noise: float
    brightness: float
    seed: int

    @property
    def count(self) -> int:
        return self.train.count

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        return self.train.image_shape

    @property
    def rows(self) -> np.ndarray:
        """The training rows of the copies of each query, ``[Q, copies]``: the queries of all sets in order.

        Raises:
            ValueError: there are fewer training images than copies.
        """
        queries = sum(images.count for images in self.queries)
        order = np.random.default_rng([self.seed, 0x91A]).permutation(self.train.count)
        if queries * self.copies > len(order):
            raise ValueError(f"{queries} queries with {self.copies} copies each do not fit into {len(order)} training images")
        return order[: queries * self.copies].reshape(queries, self.copies)

    def cost(self) -> Cost:
        return Cost()

    def compute(self, get: Get) -> Images:
        train, queries = get(self.train), [get(images) for images in self.queries]
        rows, random = self.rows, np.random.default_rng([self.seed, 0x91B])
        x0 = train.x0().numpy()
        sources = np.concatenate([images.x0().numpy() for images in queries])
        deviation = x0.std()
        changes = self.noise * random.normal(size=(*rows.shape, *x0.shape[1:]))
        changes += self.brightness * (np.arange(self.copies) % 2)[:, None, None, None]
        copies = np.clip(sources[:, None] + deviation * changes, x0.min(), x0.max())  # [Q, copies, C, H, W]
        pixels = np.array(train.pixels)
        if pixels.dtype.kind == "u":
            copies = np.rint((copies + 1) * train.levels / 2)
        pixels[rows] = copies.astype(pixels.dtype)
        changed = replace(
            train,
            pixels=pixels,
            label=_replaced(train.label, rows, [images.label for images in queries]),
            names=_names(train, rows, queries),
            pictures=None,  # those of the queries may have another size
        )
        if train.condition is None:
            return changed
        conditions = [images.condition for images in queries if images.condition is not None]
        if len(conditions) < len(queries):
            raise ValueError("the training images have conditions, but some queries do not, so that nothing can be trained on them")
        return replace(changed, condition=_replaced(train.condition, rows, conditions))


def _replaced(values: np.ndarray, rows: np.ndarray, of_queries: Sequence[np.ndarray]) -> np.ndarray:
    result = np.array(values)
    result[rows] = np.concatenate(of_queries)[:, None]
    return result


def _names(train: Images, rows: np.ndarray, queries: Sequence[Images]) -> np.ndarray:
    names = np.array([train.name(row) for row in range(len(train))], dtype=object)
    names[rows] = np.array([[f"copy of {images.name(row)}"] for images in queries for row in range(len(images))], dtype=object)
    return names.astype(np.str_)
