"""Baselines that use no model: similarities of pixels or of the embeddings of an encoder, and random scores."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.estimators.sharded import ShardedScores
from attribution.execution import FLOAT32_BYTES
from attribution.images import Images, ImageSet, philox
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node

SHARED = ("attribution.estimators.sharded", "attribution.images.philox")


class Embedding(ABC):
    """Maps images to vectors. Subclasses are frozen dataclasses; their fields are their identity."""

    def check(self) -> None:
        """Raises ValueError: something that it needs is missing."""
        return

    @abstractmethod
    def embed(self, images: Images, device: torch.device) -> np.ndarray:
        """Return one vector per image, ``[n, d]`` float32."""


@dataclass(frozen=True)
class Pixels(Embedding):
    """The pixels, in [-1, 1]."""

    NAME = "Pixels"
    VERSION = 1

    def embed(self, images: Images, device: torch.device) -> np.ndarray:
        return images.x0().flatten(1).numpy()


@dataclass(frozen=True, kw_only=True)
class EmbeddingSimilarity(Estimator):
    """``⟨e(q), e(z)⟩``, or the cosine, of embeddings e."""

    NAME = "EmbeddingSimilarity"
    VERSION = 1

    GRADIENTS = False

    embedding: Embedding
    cosine: bool

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        self.embedding.check()
        return EmbeddingScores(self, train, queries)


@dataclass(frozen=True)
class EmbeddingScores(ShardedScores):
    """The scores ``[Q, N]``."""

    NAME = "EmbeddingScores"
    VERSION = 1
    TITLE = "embedding similarities"

    estimator: EmbeddingSimilarity

    def cost(self) -> Cost:
        return Cost(disk=FLOAT32_BYTES * self.pairs)

    def compute(self, get: Get) -> Scores:
        embedding, device = self.estimator.embedding, self.estimator.execution.torch_device()
        q, z = (embedding.embed(get(images), device).astype(np.float64) for images in (self.queries, self.train))
        if self.estimator.cosine:
            q, z = (e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), np.finfo(np.float64).tiny) for e in (q, z))
        return self.assembled(q @ z.T, get)


@dataclass(frozen=True, kw_only=True)
class Random(Estimator):
    """Independent scores, uniform in [-1, 1): the lower reference of benchmarks. A function of (seed, query id, training id)."""

    NAME = "Random"
    VERSION = 1
    GRADIENTS = False

    seed: int = 0

    def scores_of_model(self, trained: Trained, train: ImageSet, queries: ImageSet) -> Node[Scores]:
        return RandomScores(self, train, queries)


@dataclass(frozen=True)
class RandomScores(ShardedScores):
    """The scores ``[Q, N]``."""

    NAME = "RandomScores"
    VERSION = 1
    TITLE = "random scores"

    estimator: Random

    def compute(self, get: Get) -> Scores:
        query, example = (torch.from_numpy(np.array(get(images).index)) for images in (self.queries, self.train))
        zero = torch.zeros(1, dtype=torch.int64)
        words, *_ = philox.philox(*philox.key(self.estimator.seed, "random scores"), (query[:, None], example, zero, zero))
        return self.assembled((words.double() / 2**31 - 1).float().numpy(), get)
