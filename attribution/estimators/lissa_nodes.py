"""The shards of LiSSA's scores: inverse-curvature products of some queries, and their products with ranges of training examples."""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.execution import ranges
from attribution.gradients.engine import engine
from attribution.gradients.inner_products import dot
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images import Images, ImageSet
from attribution.images.draws import Draws
from attribution.nodes import Arrays, Artifact, Cost, Get, JointNode, Node, key
from attribution.training import Recorded

SHARED = (
    "attribution.gradients.engine",
    "attribution.gradients.inner_products",
)

if TYPE_CHECKING:
    from attribution.estimators.lissa import LiSSA

FLOAT = 4
SLACK = 1e-3
"""For rounding, in what a recursion that does not grow cannot exceed."""


@dataclass(frozen=True, eq=False)
class InverseProducts(Artifact):
    """``(H + λI)⁻¹ v_q``: layer name → ``[Q, rows, columns]``."""

    sides: LayerGradients

    def save(self, folder: Path) -> None:
        save_file({name: block.contiguous() for name, block in self.sides.items()}, folder / "products.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_file(folder / "products.safetensors"))


@dataclass(frozen=True)
class LissaQueries(JointNode[InverseProducts]):
    """The side of the queries ``rows[0]..rows[1]-1``. ``queries``: what the measurement is of.

    Up to ``query_batch`` queries of each pool share the mini-batches and their passes.
    """

    NAME = "LissaQueries"
    VERSION = 1
    TITLE = "inverse-curvature products of the queries"
    ARTIFACT = InverseProducts
    TRANSIENT = True

    estimator: "LiSSA"
    record: Recorded
    train: ImageSet
    queries: Node
    rows: tuple[int, int]

    def together(self) -> Hashable:
        how = self.estimator
        recursion = (how.product, how.damping, how.scale, how.depth, how.repeats, how.batch_size, how.draws, how.flips)
        return key(self.record, self.train, *recursion, self.rows[0] // how.query_batch)

    def cost(self) -> Cost:
        how, queries = self.estimator, self.rows[1] - self.rows[0]
        size = FLOAT * queries * self.record.parameter_count
        recursion = how.repeats * how.depth * how.batch_size * how.product.passes(queries)
        return Cost(passes=queries * how.draws.count + recursion, memory=5 * size, disk=size)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[InverseProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, how = nodes[0], nodes[0].estimator
        per_example = engine(first.record, None, how.execution, get)
        gradients = [node._gradients(per_example, get) for node in nodes]
        v = {layer: torch.cat([some[layer] for some in gradients]) for layer in gradients[0]}
        products = inverse_products(how, per_example, first.record, get(first.train), v)
        parts = {layer: block.cpu().split([node.rows[1] - node.rows[0] for node in nodes]) for layer, block in products.items()}
        return [InverseProducts({layer: blocks[i] for layer, blocks in parts.items()}) for i in range(len(nodes))]

    def _gradients(self, per_example: PerExampleGradients, get: Get) -> LayerGradients:
        """v: the gradients of the measurement, mean over its draws."""
        how, rows, images = self.estimator, slice(*self.rows), get(self.queries)
        device = how.execution.torch_device()
        draws = how.draws.draw("query", images.ids(rows).to(device), self.record.process.T)
        return per_example.capture(how.measurement, images.x0(rows).to(device), draws, images.conditions(rows)).mean()


def inverse_products(
    how: "LiSSA", per_example: PerExampleGradients, record: Recorded, train: Images, v: LayerGradients
) -> LayerGradients:
    """``r_j = v + (I - (H_batch + λI)/σ) r_{j-1}``, r_0 = v; the mean of r_J/σ over the repeats, for all v ``[Q, ..]`` at once.

    Raises:
        FloatingPointError: r grows beyond (j + 1) ‖v‖, which a recursion whose every step shrinks cannot.
    """
    total = {layer: torch.zeros_like(block) for layer, block in v.items()}
    length = norms(v)
    for repeat in range(how.repeats):
        r = v
        for j, (x0, draws, condition) in enumerate(batches(how, record, train, repeat), 1):
            Hr = how.product(per_example, record.objective, x0, draws, r, condition)
            r = {layer: v[layer] + r[layer] - (Hr[layer] + how.damping * r[layer]) / how.scale for layer in v}
            if not (norms(r) <= (1 + SLACK) * (j + 1) * length).all():
                raise FloatingPointError(
                    f"LiSSA grows without bound (step {j} of repeat {repeat + 1}): a batch's curvature has eigenvalues above "
                    f"2 estimator.scale = {2 * how.scale:g} or below -estimator.damping = {-how.damping:g}; "
                    "raise estimator.scale, estimator.damping or estimator.batch_size"
                )
        for layer, block in r.items():
            total[layer] += block / (how.scale * how.repeats)
    return total


def batches(how: "LiSSA", record: Recorded, train: Images, repeat: int) -> Iterator[tuple[Tensor, Draws, Tensor | None]]:
    """``depth`` mini-batches of the N·K draws of the training set, in a new random order each time that all were used.

    Whatever the order of the training images.
    """
    device, K = how.execution.torch_device(), how.draws.count
    by_id = np.argsort(train.index)
    random = np.random.default_rng([how.draws.seed, repeat, 0x11554])
    left = np.empty(0, np.int64)
    for _ in range(how.depth):
        if len(left) < how.batch_size:
            left = np.concatenate([left, random.permutation(len(train) * K)])
        taken, left = left[: how.batch_size], left[how.batch_size :]
        example, number = by_id[taken // K], torch.from_numpy(taken % K).to(device)
        draws = how.draws.draw("curvature", train.ids(example).to(device), record.process.T, how.flips)
        column = number.unsqueeze(1)
        condition = train.conditions(example)
        condition = None if condition is None else condition.to(device)
        yield train.x0(example).to(device), draws.map(lambda tensor, column=column: tensor.gather(1, column)), condition


def norms(vectors: LayerGradients) -> Tensor:
    """‖v_q‖ over all layers, ``[Q]``."""
    return torch.stack([block.flatten(1).norm(dim=1) for block in vectors.values()]).norm(dim=0)


@dataclass(frozen=True, eq=False)
class LissaProducts(Arrays):
    """τ for a range of training examples, float32 ``[Q, n]``."""

    values: np.ndarray


@dataclass(frozen=True)
class LissaShard(JointNode[LissaProducts]):
    """The training examples ``rows[0]..rows[1]-1`` for all queries. Settings of the recursion share the pass."""

    NAME = "LissaShard"
    VERSION = 1
    TITLE = "LiSSA scores of the training images"
    ARTIFACT = LissaProducts
    TRANSIENT = True

    estimator: "LiSSA"
    record: Recorded
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]

    def together(self) -> Hashable:
        return key(self.record, self.train, self.rows, self.estimator.draws, self.estimator.flips)

    def cost(self) -> Cost:
        examples, how = self.rows[1] - self.rows[0], self.estimator
        held = self.queries.count + 2 * how.execution.examples_at_once(self.record.parameter_count)
        return Cost(passes=examples * how.draws.count, memory=FLOAT * held * self.record.parameter_count)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[LissaProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, how = nodes[0], nodes[0].estimator
        device, images = how.execution.torch_device(), get(first.train)
        per_example = engine(first.record, None, how.execution, get)
        queries = [get.many(query_nodes(node.estimator, node.record, node.train, node.queries)) for node in nodes]
        blocks: list[list[Tensor]] = [[] for _ in nodes]
        for start, stop in ranges(*first.rows, how.execution.examples_at_once(first.record.parameter_count)):
            rows = slice(start, stop)
            draws = how.draws.draw("attribution", images.ids(rows).to(device), first.record.process.T, how.flips)
            x0, condition = images.x0(rows).to(device), images.conditions(rows)
            gradients = per_example.capture(first.record.objective, x0, draws, condition).mean()
            for products, sides in zip(blocks, queries, strict=True):
                products.append(torch.cat([dot(side.sides, gradients) for side in sides]).cpu())
        return [LissaProducts(torch.cat(products, 1).float().numpy()) for products in blocks]


def query_nodes(how: "LiSSA", record: Recorded, train: ImageSet, queries: ImageSet) -> list[LissaQueries]:
    """The queries' side of an estimator, in their order; no shard lies in two batches of queries."""
    size = math.gcd(how.query_batch, min(how.execution.query_shard, how.query_batch))
    subject = how.measurement.subject(queries)
    return [LissaQueries(how, record, train, subject, rows) for rows in ranges(0, queries.count, size)]
