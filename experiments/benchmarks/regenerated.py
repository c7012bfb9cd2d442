"""Generated queries, sampled again from the same noise under retrained models."""

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
"""Between images, or vectors of them, one by one."""


@dataclass(frozen=True)
class Regenerated:
    """``original [Q, ...]`` and ``anew [K, M', Q, ...]``, images or vectors of them; M': the ``concern`` among M ``sets``."""

    original: np.ndarray
    anew: np.ndarray
    concern: Sequence[int]
    sets: int

    @classmethod
    def of(cls, removals: Removals, queries: Samples, sets: RemovedSets, get: Get) -> "Regenerated":
        """The images ``[.., C, H, W]``, float32 in [-1, 1]."""
        concern, nodes = removals.regenerated(queries, sets)
        pixels = np.stack([images.pixels for images in get.many(nodes, "sampling")])
        return cls(get(queries).pixels, pixels.reshape(-1, len(concern), *pixels.shape[1:]), concern, len(sets.rows))

    def embedded(self, embedding: Embedding, device: torch.device) -> "Regenerated":
        """Vectors ``[.., d]`` instead of images."""
        original, anew = (_embed(embedding, images, device) for images in (self.original, self.anew))
        return dataclasses.replace(self, original=original, anew=anew)

    @property
    def intact(self) -> np.ndarray:
        """What models of all images make, ``[K, 1, Q, ...]``: free of what another training seed does to an image."""
        return self.anew[:, [list(self.concern).index(0)]]

    def distances(self, reference: np.ndarray, metric: Distance) -> np.ndarray:
        """From ``reference``, the originals or what is ``intact``: ``[K, Q, M]``; NaN for sets of no concern."""
        found = metric(self.anew, reference)
        values = np.full((len(found), len(self.original), self.sets), np.nan)
        values[:, :, list(self.concern)] = found.transpose(0, 2, 1)
        return values

    def under(self, sets: np.ndarray) -> np.ndarray:
        """Each query under the first seed's model without its set: ``[Q] -> [Q, ...]``."""
        places = [list(self.concern).index(number) for number in sets]
        return self.anew[0, places, np.arange(len(sets))]


def _embed(embedding: Embedding, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    vectors = embedding.embed(Images(flat, np.arange(len(flat)), np.full(len(flat), -1)), device)
    return vectors.reshape(*pixels.shape[:-3], -1)
