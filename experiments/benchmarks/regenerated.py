"""Generated queries that retrained models sample again from the same noise."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from attribution.estimators.embedding import Embedding
from attribution.images import Images
from attribution.nodes import Get
from experiments.benchmarks.removals import Removals, RemovedSets
from experiments.models.samples import Samples

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""The distances between images, or their embeddings, ``[..]``: the first dimensions of both arguments broadcast."""


@dataclass(frozen=True)
class Regenerated:
    """Images or their embeddings, from models trained without each of M' out of M sets.

    ``original [Q, ...]`` and ``regenerated [K, M', Q, ...]``. ``indices [M']`` are the indices of the M' sets among 0..M-1, where
    set 0 is empty; ``sets`` is M.
    """

    original: np.ndarray
    regenerated: np.ndarray
    indices: Sequence[int]
    sets: int

    @classmethod
    def of(cls, removals: Removals, queries: Samples, sets: RemovedSets, get: Get) -> "Regenerated":
        """The images ``[.., C, H, W]``, float32 in [-1, 1]; those that latents stand for."""
        indices, nodes = removals.regenerated(queries, sets)
        pixels = np.stack([_pixels(images) for images in get.many(nodes, "sampling")])
        return cls(_pixels(get(queries)), pixels.reshape(-1, len(indices), *pixels.shape[1:]), indices, len(sets.rows))

    def embedded(self, embedding: Embedding, device: torch.device) -> "Regenerated":
        """The embeddings ``[.., d]`` of the images."""
        original, regenerated = (_embed(embedding, images, device) for images in (self.original, self.regenerated))
        return dataclasses.replace(self, original=original, regenerated=regenerated)

    @property
    def intact(self) -> np.ndarray:
        """The images from models trained on all images, ``[K, 1, Q, ...]``, the reference of those with the same seed."""
        return self.regenerated[:, [list(self.indices).index(0)]]

    def distances(self, reference: np.ndarray, metric: Distance) -> np.ndarray:
        """Distances from ``reference`` (``original`` or ``intact``), ``[K, Q, M]``; NaN for sets without regenerated images."""
        known = metric(self.regenerated, reference)
        values = np.full((len(known), len(self.original), self.sets), np.nan)
        values[:, :, list(self.indices)] = known.transpose(0, 2, 1)
        return values

    def under(self, sets: np.ndarray) -> np.ndarray:
        """Each query under the first seed's model that was trained without the query's set: ``[Q] -> [Q, ...]``."""
        places = [list(self.indices).index(index) for index in sets]
        return self.regenerated[0, places, np.arange(len(sets))]


def _pixels(images: Images) -> np.ndarray:
    return images.pixels if images.pictures is None else (2 * images.visible() - 1).numpy()


def _embed(embedding: Embedding, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    vectors = embedding.embed(Images(flat, np.arange(len(flat)), np.full(len(flat), -1)), device)
    return vectors.reshape(*pixels.shape[:-3], -1)
