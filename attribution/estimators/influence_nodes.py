"""The shards of influence scores: the queries' side, and its products with ranges of training examples.

What is held of the queries during a pass are their coefficients in the curvature's basis, whitened by

    s = √(Λ + REFERENCE),        τ = Σ (q̃ / s) · z̃ · s / (Λ + λ)

and compressed. No damping enters them. Whitened they are all of one size, so that the error that compression makes in each of them
weighs alike in the scores, where the coefficients themselves differ by orders of magnitude [ours]. The paper compresses the
preconditioned gradient: s = Λ + REFERENCE (``compression.preconditioned``).
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.curvature.basis import Basis, by_kind, named
from attribution.execution import ranges
from attribution.gradients.compression import Compression
from attribution.gradients.engine import engine
from attribution.gradients.inner_products import finite
from attribution.gradients.layers import STEP, pieces
from attribution.gradients.per_example import Captured, LayerGradients, PerExampleGradients
from attribution.images import ImageSet
from attribution.images.bins import bin_of
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Measure
from attribution.nodes import Arrays, Artifact, Cost, Get, JointNode, Node, key
from attribution.training import Recorded

SHARED = ("attribution.gradients.engine", "attribution.gradients.inner_products", "attribution.images.bins")

if TYPE_CHECKING:
    from attribution.estimators.influence import KFACInfluence

FLOAT = 4
REFERENCE = 1e-8
"""The default damping: below it, small eigenvalues are not told apart when coefficients are compressed."""

GRID = tuple(10.0**e for e in range(-12, 0))
"""Dampings that every score artifact holds: a sweep over these costs one pass."""

MeanOf = Callable[[Captured, Draws], LayerGradients]


@dataclass(frozen=True, eq=False)
class QueryCoefficients(Artifact):
    """``parts``: part → layer → tensor ``[P, bins, Q, ..]`` for P prefixes of the draws, made by ``estimator.compression``."""

    parts: dict[str, dict[str, Tensor]]

    def save(self, folder: Path) -> None:
        save_file(named(**self.parts), folder / "coefficients.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(by_kind(load_file(folder / "coefficients.safetensors")))

    def of(self, layer: str) -> dict[str, Tensor]:
        """The parts of one layer."""
        return {part: tensors[layer] for part, tensors in self.parts.items() if layer in tensors}


@dataclass(frozen=True)
class InfluenceQueries(JointNode[QueryCoefficients]):
    """The side of the queries ``rows[0]..rows[1]-1``. ``queries``: what the measurement is of.

    Curvatures and compressions share the gradients.
    """

    NAME = "InfluenceQueries"
    VERSION = 2
    TITLE = "gradients of the queries"
    ARTIFACT = QueryCoefficients
    TRANSIENT = True

    estimator: "KFACInfluence"
    record: Recorded
    train: ImageSet
    queries: Node
    rows: tuple[int, int]

    def cost(self) -> Cost:
        queries = self.rows[1] - self.rows[0]
        size = queries * self.estimator.query_bytes(self.record)
        return Cost(passes=queries * self.estimator.draws.count, memory=3 * size, disk=size)

    def together(self) -> Hashable:
        how = self.estimator
        return key(self.record, self.train, self.queries, self.rows, how.measurement, how.draws, how.balance_of("query"))

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[QueryCoefficients]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, how, rows = nodes[0], nodes[0].estimator, slice(*nodes[0].rows)
        device, images = how.execution.torch_device(), get(first.queries)
        draws = how.draws.draw("query", images.ids(rows).to(device), first.record.process.T)
        per_example = engine(first.record, None, how.execution, get)
        mean_of = how.mean_of("query", first.record, first.train, get)
        x0, condition = images.x0(rows).to(device), images.conditions(rows)
        means = prefix_means(per_example, how.measurement, x0, draws, how.draws, mean_of, condition)
        return [node._coefficients(means, get, device) for node in nodes]

    def _coefficients(self, means: Sequence[LayerGradients], get: Get, device: torch.device) -> QueryCoefficients:
        how = self.estimator
        basis = get(how.curvature.basis(self.record, self.train, how.flips)).to(device)
        rotated = [basis.rotate(mean) for mean in means]
        parts: dict[str, dict[str, Tensor]] = {}
        for layer, values in basis.values.items():
            scaled = torch.stack([mean[layer].double() for mean in rotated]) / scaling(values, how.compression)
            for part, tensor in how.compression.compress(scaled).items():
                parts.setdefault(part, {})[layer] = tensor.cpu()
        return QueryCoefficients(parts)


@dataclass(frozen=True, eq=False)
class InfluenceProducts(Arrays):
    """τ for a range of training examples: dampings, prefixes, query bins, training bins; float32 ``[D, P, bins, bins, Q, n]``."""

    values: np.ndarray


@dataclass(frozen=True)
class InfluenceShard(JointNode[InfluenceProducts]):
    """The training examples ``rows[0]..rows[1]-1`` under all queries and all stored dampings."""

    NAME = "InfluenceShard"
    VERSION = 2
    TITLE = "influence of the training images"
    ARTIFACT = InfluenceProducts
    TRANSIENT = True

    estimator: "KFACInfluence"
    dampings: tuple[float, ...]
    record: Recorded
    train: ImageSet
    queries: ImageSet
    rows: tuple[int, int]

    def together(self) -> Hashable:
        how = self.estimator
        return key(self.record, self.train, self.rows, how.draws, how.flips, how.balance_of("train"), how.query_batch)

    def cost(self) -> Cost:
        how, batches = self.estimator, -(-self.queries.count // self.estimator.query_batch)
        held = min(self.queries.count, how.query_batch) * how.query_bytes(self.record)
        products = FLOAT * len(self.dampings) * len(how.draws.prefixes) * how.draws.bins**2 * self.queries.count
        return Cost(
            passes=batches * (self.rows[1] - self.rows[0]) * how.draws.count,
            memory=held + 3 * self._block * how.query_bytes(self.record) + 2 * products * (self.rows[1] - self.rows[0]),
        )

    @property
    def _block(self) -> int:
        """How many training examples' gradients are held at a time."""
        how = self.estimator
        return how.execution.examples_at_once(len(how.draws.prefixes) * how.draws.bins * self.record.parameter_count)

    @classmethod
    def compute_together(cls, nodes: Sequence[Self], get: Get) -> list[InfluenceProducts]:  # pyright: ignore[reportIncompatibleMethodOverride]
        first, how = nodes[0], nodes[0].estimator
        device = how.execution.torch_device()
        for node in nodes:
            refuse_unstable(get(_basis(node)), node.dampings)
        per_example = engine(first.record, None, how.execution, get)
        images, mean_of = get(first.train), how.mean_of("train", first.record, first.train, get)
        products: list[list[np.ndarray]] = [[] for _ in nodes]
        for batch in _batches(nodes, how.query_batch):
            held = [_held(nodes[number], queries, get, device) for number, queries in batch]
            origins = [_basis(nodes[number]).fingerprint for number, _ in batch]
            for start, stop in ranges(*first.rows, first._block):
                rows = slice(start, stop)
                draws = how.draws.draw("attribution", images.ids(rows).to(device), first.record.process.T, how.flips)
                x0, condition = images.x0(rows).to(device), images.conditions(rows)
                means = prefix_means(per_example, first.record.objective, x0, draws, how.draws, mean_of, condition)
                for prefix, mean in enumerate(means):
                    rotated: dict[str, LayerGradients] = {}
                    for some, origin in zip(held, origins, strict=True):
                        if origin not in rotated:
                            rotated[origin] = some.basis.rotate(mean)
                        some.add(prefix, rotated[origin])
            for (number, _), some in zip(batch, held, strict=True):
                products[number].append(some.products())
        return [InfluenceProducts(np.concatenate(batches, axis=4)) for batches in products]


def _basis(node: InfluenceShard) -> Node[Basis]:
    return node.estimator.curvature.basis(node.record, node.train, node.estimator.flips)


def _held(node: InfluenceShard, queries: Sequence[InfluenceQueries], get: Get, device: torch.device) -> "HeldQueries":
    basis, found = get(_basis(node)).to(device), get.many(queries)
    coefficients = {
        layer: {part: torch.cat([side.of(layer)[part] for side in found], 2).to(device) for part in found[0].of(layer)}
        for layer in basis.layers
    }
    return HeldQueries(basis, coefficients, node.dampings, node.estimator.compression)


class HeldQueries:
    """Some queries, waiting for blocks of training gradients.

    ``coefficients``: layer → part → tensor ``[P, bins, Q, ..]``, scaled (``scaling``) and compressed.
    """

    def __init__(
        self,
        basis: Basis,
        coefficients: Mapping[str, Mapping[str, Tensor]],
        dampings: Sequence[float],
        compression: Compression,
    ):
        self.basis, self.coefficients, self.compression = basis, coefficients, compression
        first = next(iter(next(iter(coefficients.values())).values()))
        self.dampings = torch.tensor(dampings, dtype=torch.float64, device=first.device).unsqueeze(1)
        self.blocks: list[list[Tensor]] = [[] for _ in first]

    def add(self, prefix: int, rotated: LayerGradients) -> None:
        """One GEMM a layer: the coefficients under every damping, with the rotated gradients ``[bins, B, out, in]``."""
        total: Any = 0
        for layer, values in self.basis.values.items():
            q, z = self._restored(prefix, layer).to(rotated[layer]), rotated[layer]
            total = total + self._products(values.flatten(), q.flatten(-2).flatten(0, 1), z.flatten(-2).flatten(0, 1))
        if not torch.isfinite(total).all():  # only then all of them at once, uncompressed
            finite(total, {layer: self._restored(prefix, layer) for layer in self.basis.layers}, rotated)
        bins, B = next(iter(rotated.values())).shape[:2]
        # [D, query bin, Q, train bin, B] to [D, query bin, train bin, Q, B]
        self.blocks[prefix].append(total.view(len(self.dampings), bins, -1, bins, B).transpose(2, 3).cpu())

    def _restored(self, prefix: int, layer: str) -> Tensor:
        parts = {part: tensor[prefix] for part, tensor in self.coefficients[layer].items()}
        return self.compression.restore(parts, self.basis.values[layer].shape)

    def _products(self, values: Tensor, q: Tensor, z: Tensor) -> Tensor:
        """``Σ q z s / (Λ + λ)`` for q ``[Q, n]``, z ``[B, n]`` and Λ ``[n]``: ``[D · Q, B]``."""
        total: Any = 0
        for some in pieces(len(values), max(1, 8 * STEP // (len(self.dampings) * len(q)))):
            scale = scaling(values[some], self.compression) / (values[some] + self.dampings)
            total = total + (q[:, some] * scale.to(q).unsqueeze(1)).flatten(0, 1) @ z[:, some].T
        return total

    def products(self) -> np.ndarray:
        """``[D, P, bins, bins, Q, n]`` float32."""
        return torch.stack([torch.cat(blocks, 4) for blocks in self.blocks], 1).float().numpy()


def refuse_unstable(basis: Basis, dampings: Sequence[float]) -> None:
    """Raises FloatingPointError: a damping that was asked for, not one of the grid, is too small; names the layer."""
    for damping in set(dampings) - set(GRID):
        if (layer := unstable_layer(basis, damping)) is not None:
            low, high = float(basis.values[layer].min()), float(basis.values[layer].max())
            raise FloatingPointError(
                f"estimator.damping={damping:g} is too small for layer {layer}, whose eigenvalues go from {low:.2g} to {high:.2g}: "
                "raise it"
            )


def unstable_layer(basis: Basis, damping: float) -> str | None:
    """The first layer in which ``1/(Λ + damping)`` blows rounding up to the size of scores, if there is one.

    Both gradients are known to float32's rounding ε of their norms, so that a direction of Λ = 0 has an error of about
    ε² ‖q‖ ‖z‖ / λ, beside scores of about ‖q‖ ‖z‖ / Λ_max.
    """
    epsilon = torch.finfo(torch.float32).eps
    for layer, values in basis.values.items():
        if values.min() + damping <= epsilon**2 * values.max():
            return layer
    return None


def scaling(values: Tensor, compression: Compression) -> Tensor:
    """s: what coefficients in the basis are divided by before they are compressed."""
    return (values + REFERENCE) if compression.preconditioned else (values + REFERENCE).sqrt()


def query_nodes(how: "KFACInfluence", record: Recorded, train: ImageSet, queries: ImageSet) -> list[InfluenceQueries]:
    """The queries' side of an estimator, in their order."""
    blocks = ranges(0, queries.count, min(how.execution.query_shard, how.query_batch))
    return [InfluenceQueries(how, record, train, how.measurement.subject(queries), rows) for rows in blocks]


def _batches(nodes: Sequence[InfluenceShard], most: int) -> Iterator[list[tuple[int, list[InfluenceQueries]]]]:
    """The query sides of all nodes, by node, in batches of at most ``most`` queries."""
    batch: dict[int, list[InfluenceQueries]] = {}
    held = 0
    for number, node in enumerate(nodes):
        for side in query_nodes(node.estimator, node.record, node.train, node.queries):
            count = side.rows[1] - side.rows[0]
            if held + count > most:
                yield list(batch.items())
                batch, held = {}, 0
            batch.setdefault(number, []).append(side)
            held += count
    yield list(batch.items())


def prefix_means(
    per_example: PerExampleGradients,
    measure: Measure,
    x0: Tensor,
    draws: Draws,
    scheme: DrawScheme,
    mean_of: MeanOf,
    condition: Tensor | None = None,
) -> list[LayerGradients]:
    """For each prefix k of the draws (ascending) the sum over bins' draws / k, ``[bins, B, out, in]``; each draw is taken once."""
    total: LayerGradients = {}
    means = []
    for start, stop in zip([0, *scheme.prefixes], scheme.prefixes, strict=False):
        some = draws.columns(slice(start, stop))
        for layer, gradient in _by_bin(per_example, measure, x0, some, scheme.bins, mean_of, condition).items():
            total[layer] = total.get(layer, 0) + (stop - start) * gradient
        means.append({layer: gradient / stop for layer, gradient in total.items()})
    return means


def _by_bin(
    per_example: PerExampleGradients,
    measure: Measure,
    x0: Tensor,
    draws: Draws,
    bins: int,
    mean_of: MeanOf,
    condition: Tensor | None,
) -> LayerGradients:
    if bins == 1:
        return {layer: g.unsqueeze(0) for layer, g in mean_of(per_example.capture(measure, x0, draws, condition), draws).items()}
    total: LayerGradients = {}
    # Pass by pass: what one brings out serves all bins.
    for rows in ranges(0, len(draws), max(1, per_example.batch_size // draws.count)):
        for columns in ranges(0, draws.count, per_example.batch_size):
            some = draws.rows(slice(*rows)).columns(slice(*columns))
            condition_of_rows = None if condition is None else condition[slice(*rows)]
            captured = per_example.capture(measure, x0[slice(*rows)], some, condition_of_rows)
            captured.hold()
            bin_ = bin_of(measure.timesteps(some), bins, measure.process.T)
            for b in range(bins):
                for layer, g in mean_of(captured.where(bin_ == b), some).items():
                    if layer not in total:
                        total[layer] = g.new_zeros(bins, len(draws), *g.shape[1:])
                    total[layer][b, slice(*rows)] += (some.count / draws.count) * g
    return total
