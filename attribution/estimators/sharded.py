"""Base classes of scores that are computed in blocks.

``ShardedScores`` are the scores of all queries and all training examples. Gradient methods cut them into two kinds of parts, which
are computed by any number of workers and deleted once the scores are stored:

- a ``QueryBlock`` holds one side of the inner products, for a range of the queries;
- a ``TrainingBlock`` holds the products of queries with a range of the training examples;
- a ``QueryBatch`` joins the products of as many queries as may lie on disk at a time, and thereby frees their query blocks.

Each method defines its own subclasses. The classes here know of an estimator only what ``ShardedEstimator`` declares.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.estimators.base import Estimator
from attribution.estimators.scores import Scores
from attribution.execution import ranges
from attribution.gradients.per_example import LayerGradients
from attribution.images import ImageSet
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure
from attribution.models.trained import Trained
from attribution.nodes import Arrays, Artifact, Get, JointNode, Node
from attribution.transfers import to_device

SHARED = ("attribution.estimators.base", "attribution.estimators.scores")

A = TypeVar("A")


@dataclass(frozen=True, kw_only=True)
class ShardedEstimator(Estimator, ABC):
    """An estimator whose scores are inner products of the queries' gradients with the training examples'.

    ``measurement``: the function that is differentiated for the queries. ``draws``: the draws of every query, and, where the method
    chooses them, of every training image.
    """

    measurement: Measure
    draws: DrawScheme


@dataclass(frozen=True, eq=False)
class QueryVectors(Artifact):
    """One vector per query, cut into layers: ``layers`` maps layer name → ``[.., Q, out, in]``."""

    layers: LayerGradients

    def save(self, folder: Path) -> None:
        save_file({layer: tensor.contiguous() for layer, tensor in self.layers.items()}, folder / "vectors.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_file(folder / "vectors.safetensors"))

    def to(self, device: torch.device) -> Self:
        """The same vectors on a device."""
        return type(self)({layer: tensor.to(device) for layer, tensor in self.layers.items()})


@dataclass(frozen=True, eq=False)
class BlockProducts(Arrays):
    """Products of Q queries with n training examples: ``values`` float32 ``[.., Q, n]``."""

    values: np.ndarray


@dataclass(frozen=True)
class QueryBlock(JointNode[A]):
    """The side of the queries ``rows[0]..rows[1]-1``. ``queries`` is the node that the measurement is evaluated on."""

    TRANSIENT = True

    estimator: ShardedEstimator
    trained: Trained
    queries: Node
    rows: tuple[int, int]

    @property
    def count(self) -> int:
        """The number of queries in this block."""
        return self.rows[1] - self.rows[0]

    def inputs(self, get: Get) -> tuple[Tensor, Draws, Tensor | None]:
        """The queries ``[Q, C, H, W]``, their draws ``[Q, K]``, both on the device, and their conditions."""
        device, images, rows = self.estimator.execution.torch_device(), get(self.queries), slice(*self.rows)
        draws = self.estimator.draws.side("query").draw("query", to_device(images.ids(rows), device), self.trained.process.T)
        return to_device(images.x0(rows), device), draws, images.conditions(rows)


@dataclass(frozen=True)
class _Products(Node[BlockProducts]):
    """The products of a range of the queries with a range of the training examples; ``rows`` is one of the two."""

    ARTIFACT = BlockProducts
    TRANSIENT = True

    estimator: ShardedEstimator
    trained: Trained
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]


@dataclass(frozen=True)
class TrainingBlock(_Products, JointNode[BlockProducts]):
    """The products of queries with the training examples ``rows[0]..rows[1]-1``."""

    @property
    def count(self) -> int:
        """The number of training examples in this block."""
        return self.rows[1] - self.rows[0]

    @property
    def _examples_at_once(self) -> int:
        """The number of training examples whose gradients are held at a time."""
        return min(self.count, self.estimator.execution.examples_at_once(self.trained.parameter_count))

    @abstractmethod
    def query_blocks(self) -> Sequence[QueryBlock]:
        """The blocks that hold the queries' side, in the order of the queries. They are the same for all training blocks."""


@dataclass(frozen=True)
class QueryBatch(_Products):
    """The products of the queries ``rows[0]..rows[1]-1`` with all training examples, whose query sides lie on disk together."""

    @abstractmethod
    def training_block(self, rows: tuple[int, int]) -> TrainingBlock:
        """The products of these queries with the training examples ``rows[0]..rows[1]-1``."""

    @property
    def training_blocks(self) -> list[TrainingBlock]:
        """The products with all training examples, in their order."""
        return [self.training_block(rows) for rows in ranges(0, self.train.count, self.estimator.execution.shard)]

    def parts(self, get: Get) -> list[Node]:
        return with_query_blocks(self.training_blocks)

    def compute(self, get: Get) -> BlockProducts:
        return BlockProducts(np.concatenate([block.values for block in get.many(self.training_blocks)], axis=-1))


@dataclass(frozen=True)
class ShardedScores(Node[Scores]):
    """The scores of all queries and all training examples, ``[.., Q, N]``."""

    ARTIFACT = Scores

    estimator: Estimator
    train: ImageSet
    queries: ImageSet

    @property
    def pairs(self) -> int:
        """The number of pairs of a query and a training example, Q·N."""
        return self.queries.count * self.train.count

    def assembled(
        self, values: np.ndarray, get: Get, axes: Mapping[str, Sequence[Any]] | None = None, halves: np.ndarray | None = None
    ) -> Scores:
        """Return ``values [.., Q, N]`` as scores, with the ids of the queries and of the training examples."""
        query_index, train_index = (np.array(get(images).index) for images in (self.queries, self.train))
        return Scores(values.astype(np.float32, copy=False), query_index, train_index, axes or {}, halves)


def joined(nodes: int, places: Sequence[int], products: Sequence[Sequence[Tensor]]) -> list[BlockProducts]:
    """Join the products of query blocks, each in pieces over training examples ``[.., Q, n]``.

    ``places``: the position of the node, of so many ``nodes``, to which each query block belongs.
    """
    of_nodes: list[list[Tensor]] = [[] for _ in range(nodes)]
    for place, pieces in zip(places, products, strict=True):
        of_nodes[place].append(torch.cat(list(pieces), dim=-1))
    return [BlockProducts(torch.cat(of_node, dim=-2).float().numpy()) for of_node in of_nodes]


def with_query_blocks(blocks: Sequence[TrainingBlock]) -> list[Node]:
    """Return the query blocks that ``blocks`` share, followed by ``blocks``."""
    return [*(blocks[0].query_blocks() if blocks else ()), *blocks]


def with_all_queries(batches: Iterable[BlockProducts]) -> np.ndarray:
    """Return the products of consecutive batches of queries as one array ``[.., Q, N]``."""
    return np.concatenate([batch.values for batch in batches], axis=-2)
