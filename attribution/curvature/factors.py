"""Kronecker factors of the Gauss-Newton matrix, layer by layer (Martens & Grosse 2015; Eschenhagen et al. 2023 for weight sharing).

For Linear and Conv2d layers, H_layer ≈ B ⊗ A on the joint block [W | b], where A comes from the layer's inputs a, with a constant 1
appended, and B from the pseudo-gradients b of its outputs. An Embedding is a Linear layer on one-hot inputs: its A is diagonal,
with the frequencies of its rows; "reduce", whose A is not diagonal, is refused for it. With N examples, K draws and R positions:

    expand   A = 1/(N K R) Σ_{n,k,r} a aᵀ       B = 1/(N K) Σ_{n,k,r} b bᵀ
    reduce   A = 1/(N K) Σ_{n,k} ā āᵀ           B = 1/(N K) Σ_{n,k} b̂ b̂ᵀ       ā the mean, b̂ the sum over positions

If a layer is called twice, or shares its weights with another layer, its positions are those of all calls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attribution.curvature.basis import flatten, unflatten
from attribution.curvature.moments import position_sums, second_moments
from attribution.curvature.pseudo_gradients import KroneckerLayer, PseudoGradients
from attribution.curvature.sums import SumShard, merged, merging_bytes
from attribution.double_precision import double
from attribution.execution import FLOAT32_BYTES, FLOAT64_BYTES
from attribution.gradients import hooks, layer_check
from attribution.models.trained import Trained
from attribution.nodes import Artifact, Cost, Get, Node

SHARED = (
    "attribution.curvature.basis",
    "attribution.curvature.moments",
    "attribution.curvature.pseudo_gradients",
    "attribution.curvature.sums",
)

MOMENT_COPIES = 8
"""The copies of a factor that its computation from one pass holds at a time, roughly: see ``moments.patch_moment``."""

Sharing = Literal["expand", "reduce"]
PASS_WEIGHT: Mapping[Sharing, float] = {"expand": 1.8, "reduce": 1.1}
"""The time of a pass with factors over that of a plain one, as ``task=speed`` measured it on two networks."""


@dataclass(frozen=True, eq=False)
class Factors(Artifact):
    """Sums over a range of training examples for each layer, in float64.

    ``A [in (+1), in (+1)]``, ``B [out, out]``, and ``counts [2]``: the numbers of rows in A and of inputs (N·K) in B.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]

    def means(self, layer: str) -> tuple[Tensor, Tensor]:
        """The means A and B of a layer, as defined above."""
        rows, inputs = self.counts[layer]
        return self.A[layer] / rows, self.B[layer] / inputs

    def save(self, folder: Path) -> None:
        save_file(flatten(A=self.A, B=self.B, counts=self.counts), folder / "factors.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**unflatten(load_file(folder / "factors.safetensors")))

    def __add__(self, other: Self) -> Self:
        return type(self)(tensor_sums(self.A, other.A), tensor_sums(self.B, other.B), tensor_sums(self.counts, other.counts))


class FactorSums:
    """A running sum of factors over passes; ``add`` is the ``on_layer`` of ``hooks.run``."""

    def __init__(self, sharing: Sharing):
        self.sharing = sharing
        self._sums: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}, "counts": {}}

    def add(self, name: str, calls: list[hooks.Call]) -> None:
        moments = _expanded(calls) if self.sharing == "expand" else _reduced(calls)
        for kind, value in zip(self._sums, moments, strict=True):
            add_to(self._sums[kind], name, value)

    def factors(self) -> Factors:
        """The current sums."""
        return Factors(**{kind: {name: value.cpu() for name, value in sums.items()} for kind, sums in self._sums.items()})


def _expanded(calls: list[hooks.Call]) -> tuple[Tensor, Tensor, Tensor]:
    A, B, positions = zip(*(second_moments(layer, a, b) for layer, a, b in _sides(calls)), strict=True)
    counts = torch.tensor([sum(positions), len(calls[0].input)], dtype=torch.float64)
    return _total(A), _total(B), counts


def _reduced(calls: list[hooks.Call]) -> tuple[Tensor, Tensor, Tensor]:
    a, b, positions = zip(*(position_sums(layer, a, b) for layer, a, b in _sides(calls)), strict=True)
    # There is only one row per input, and small eigenvalues matter, so these sums need float64.
    mean, total = double(_total(a)) / sum(positions), double(_total(b))
    return mean.T @ mean, total.T @ total, torch.tensor([len(mean), len(mean)], dtype=torch.float64)


def _sides(calls: list[hooks.Call]) -> list[tuple[KroneckerLayer, Tensor, Tensor]]:
    # Moments of half-precision tensors would overflow.
    return [(cast(KroneckerLayer, call.layer), _floating(call.input), _floating(cast(Tensor, call.gradient))) for call in calls]


def _floating(x: Tensor) -> Tensor:
    """Return ``x`` in at least single precision; the integers of an Embedding stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def _total(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(0) if len(tensors) > 1 else tensors[0]


def add_to(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """``sums[name] += value`` in float64."""
    sums[name] = sums[name].add_(value.to(sums[name].device)) if name in sums else double(value)


def tensor_sums(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum of two artifacts' tensors, name by name."""
    return {name: tensor + right[name] for name, tensor in left.items()}


@dataclass(frozen=True)
class FactorShard(SumShard[Factors]):
    """The sums over the training examples ``rows[0]..rows[1]-1``."""

    NAME = "FactorShard"
    VERSION = 2
    TITLE = "curvature factors, in shards"
    ARTIFACT = Factors

    pseudo: PseudoGradients
    sharing: Sharing
    rows: tuple[int, int]

    @property
    def unit(self) -> int:
        return self.pseudo.execution.shard

    def cost(self) -> Cost:
        size, rows = factor_bytes(self.pseudo.trained), self.rows[1] - self.rows[0]
        memory = (
            merging_bytes(size) if rows > self.unit else size + MOMENT_COPIES * FLOAT32_BYTES * largest_factor(self.pseudo.trained)
        )
        return Cost(passes=rows * self.pseudo.draws.count, pass_weight=PASS_WEIGHT[self.sharing], memory=memory, disk=size)

    def compute_unit(self, get: Get) -> Factors:
        sums = FactorSums(self.sharing)
        self.pseudo.run(get, self.rows, sums.add)
        return sums.factors()


@dataclass(frozen=True)
class AllFactors(Node[Factors]):
    """The sums over all training examples."""

    NAME = "AllFactors"
    VERSION = 2
    TITLE = "curvature factors"
    ARTIFACT = Factors

    pseudo: PseudoGradients
    sharing: Sharing

    @property
    def pseudos(self) -> tuple[PseudoGradients, ...]:
        """The pseudo-gradients whose second moments these are."""
        return (self.pseudo,)

    def parts(self, get: Get) -> Sequence[FactorShard]:
        return self._whole.parts(get) or [self._whole]

    def cost(self) -> Cost:
        return self._whole.cost()

    @property
    def _whole(self) -> FactorShard:
        return FactorShard(self.pseudo, self.sharing, (0, self.pseudo.train.count))

    def compute(self, get: Get) -> Factors:
        return merged(self.parts(get), get)


@dataclass(frozen=True)
class CheckpointFactors(Node[Factors]):
    """The sums over all training examples and several checkpoints, so that their means are means over checkpoints too."""

    NAME = "CheckpointFactors"
    VERSION = 1
    TITLE = "curvature factors of checkpoints"
    ARTIFACT = Factors

    checkpoints: tuple[AllFactors, ...]

    @property
    def pseudo(self) -> PseudoGradients:
        """The pseudo-gradients at the first checkpoint."""
        return self.checkpoints[0].pseudo

    @property
    def pseudos(self) -> tuple[PseudoGradients, ...]:
        """The pseudo-gradients at each checkpoint."""
        return tuple(factors.pseudo for factors in self.checkpoints)

    def cost(self) -> Cost:
        size = factor_bytes(self.pseudo.trained)
        return Cost(memory=merging_bytes(size), disk=size)

    def compute(self, get: Get) -> Factors:
        return merged(self.checkpoints, get)


def blocks(trained: Trained) -> list[tuple[int, int]]:
    """The shape (out, in (+1)) of every layer that has factors."""
    return list(_blocks_by_name(trained.outline).values())


def with_factors(trained: Trained) -> list[str]:
    """The names of the layers that have factors."""
    return list(_blocks_by_name(trained.outline))


@cache
def _blocks_by_name(outline: nn.Module) -> dict[str, tuple[int, int]]:
    layers = dict(layer_check.find_layers(outline).values())
    return {name: layer.block for name, layer in layers.items() if isinstance(layer, KroneckerLayer)}


def without_factors(trained: Trained) -> dict[str, int]:
    """The number of trainable parameters without factors by the class of their module; "bare parameters" without a formula."""
    found: dict[str, int] = {}
    for name, layer in layer_check.find_layers(trained.outline).values():
        if name == layer.name and not isinstance(layer, KroneckerLayer):
            kind = type(layer.module).__name__ if hasattr(layer, "module") else "bare parameters"
            found[kind] = found.get(kind, 0) + sum(p.numel() for p in layer.parameters.values())
    return found


def largest_factor(trained: Trained) -> int:
    """The number of values in the largest factor."""
    return max(max(out, columns) for out, columns in blocks(trained)) ** 2


def factor_bytes(trained: Trained) -> float:
    """The size of a model's factors in bytes."""
    return FLOAT64_BYTES * sum(out**2 + columns**2 for out, columns in blocks(trained))
