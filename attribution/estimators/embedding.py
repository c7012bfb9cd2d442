"""Similarity of the images themselves: raw pixels, or what an encoder makes of them; and scores at random."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.images import Images, ImageSet, philox
from attribution.nodes import Cost, Get, Node
from attribution.training import Recorded

SHARED = ("attribution.images.philox",)


class Embedding(ABC):
    """Vectors of images; frozen dataclasses, whose fields are their identity."""

    @abstractmethod
    def embed(self, images: Images, device: torch.device) -> np.ndarray:
        """``[n, d]`` float32."""


@dataclass(frozen=True)
class Pixels(Embedding):
    """The pixels, in [-1, 1]."""

    NAME = "Pixels"
    VERSION = 1

    def embed(self, images: Images, device: torch.device) -> np.ndarray:
        return images.x0().flatten(1).numpy()


@dataclass(frozen=True, kw_only=True)
class EmbeddingSimilarity(Estimator):
    """``⟨e(q), e(z)⟩``, or the cosine; no model is asked."""

    NAME = "EmbeddingSimilarity"
    VERSION = 1

    embedding: Embedding
    cosine: bool

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        return EmbeddingScores(self, train, queries)


@dataclass(frozen=True)
class EmbeddingScores(Node[Scores]):
    """All queries and training images."""

    NAME = "EmbeddingScores"
    VERSION = 1
    TITLE = "embedding similarities"
    ARTIFACT = Scores

    estimator: EmbeddingSimilarity
    train: ImageSet
    queries: ImageSet

    def cost(self) -> Cost:
        return Cost(disk=4 * self.queries.count * self.train.count)

    def compute(self, get: Get) -> Scores:
        how = self.estimator
        images = get(self.queries), get(self.train)
        q, z = (how.embedding.embed(side, how.execution.torch_device()).astype(np.float64) for side in images)
        if how.cosine:
            q, z = (e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), np.finfo(np.float64).tiny) for e in (q, z))
        return Scores((q @ z.T).astype(np.float32), np.array(images[0].index), np.array(images[1].index))


@dataclass(frozen=True, kw_only=True)
class Random(Estimator):
    """Independent scores, uniform in [-1, 1), a function of (seed, query id, training id): the floor of every benchmark."""

    NAME = "Random"
    VERSION = 1

    seed: int = 0

    def scores(self, record: Recorded, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        return RandomScores(self, train, queries)


@dataclass(frozen=True)
class RandomScores(Node[Scores]):
    """All queries and training images."""

    NAME = "RandomScores"
    VERSION = 1
    TITLE = "random scores"
    ARTIFACT = Scores

    estimator: Random
    train: ImageSet
    queries: ImageSet

    def compute(self, get: Get) -> Scores:
        queries, train = get(self.queries), get(self.train)
        ids = [torch.from_numpy(np.array(side.index)) for side in (queries, train)]
        zero = torch.zeros(1, dtype=torch.int64)
        words, *_ = philox.philox(*philox.key(self.estimator.seed, "random scores"), (ids[0][:, None], ids[1], zero, zero))
        return Scores((words.double() / 2**31 - 1).float().numpy(), np.array(queries.index), np.array(train.index))
