"""EK-FAC: K-FAC's eigenvectors with eigenvalues refitted (George et al. 2018, "Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis", §3.1).

``Λ[o, i] = 1/(N K) Σ_{n,k} (Q_Bᵀ g_{n,k} Q_A)²[o, i]``: the second moments, in this basis, of the pseudo-gradients g of single
draws, summed over positions. The draws and their v are those of the factors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.curvature.basis import Basis, KroneckerBasis, flatten, unflatten
from attribution.curvature.factors import AllFactors, add_to, blocks
from attribution.curvature.kfac import KFACBasis, KroneckerCurvature, basis_cost
from attribution.curvature.pseudo_gradients import KroneckerLayer
from attribution.execution import FLOAT64_BYTES
from attribution.gradients import hooks
from attribution.gradients.layers import STEP, pieces
from attribution.images import ImageSet
from attribution.nodes import Artifact, Cost, Get, Node
from attribution.training import Recorded

SHARED = ("attribution.curvature.kfac",)


@dataclass(frozen=True, kw_only=True)
class EKFAC(KroneckerCurvature):
    """H_layer ≈ (Q_B ⊗ Q_A) diag(Λ) (Q_B ⊗ Q_A)ᵀ, the best approximation of this form for the given eigenvectors."""

    NAME = "EKFAC"
    VERSION = 1

    def basis(self, trained: Recorded, train: ImageSet, flips: bool = False) -> Node[Basis]:
        return EKFACBasis(KFACBasis(AllFactors(self.pseudo_gradients(trained, train, flips), self.sharing)))


@dataclass(frozen=True, eq=False)
class SquareSums(Artifact):
    """For each layer the sum of squares ``squares [out, in (+1)]`` over inputs and their number ``counts [1]``, float64."""

    squares: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        save_file(flatten(squares=self.squares, counts=self.counts), folder / "moments.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**unflatten(load_file(folder / "moments.safetensors")))


@dataclass(frozen=True)
class MomentShard(Node[SquareSums]):
    """The sums over the training examples ``rows[0]..rows[1]-1``."""

    NAME = "MomentShard"
    VERSION = 1
    TITLE = "EK-FAC moments, in shards"
    ARTIFACT = SquareSums
    TRANSIENT = True

    basis: KFACBasis
    rows: tuple[int, int]

    def cost(self) -> Cost:
        pseudo = self.basis.factors.pseudo
        size = FLOAT64_BYTES * sum(out * columns for out, columns in blocks(pseudo.trained))
        return Cost(passes=(self.rows[1] - self.rows[0]) * pseudo.draws.count, memory=size, disk=size)

    def compute(self, get: Get) -> SquareSums:
        pseudo, basis = self.basis.factors.pseudo, cast(KroneckerBasis, get(self.basis))
        device = pseudo.execution.torch_device()
        squares: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        vectors = {layer: (basis.QA[layer].to(device), basis.QB[layer].to(device)) for layer in basis.layers}

        def add(name: str, calls: list[hooks.Call]) -> None:
            add_to(squares, name, rotated_squares(calls, *vectors[name]))
            add_to(counts, name, torch.tensor([len(calls[0].input)]))

        pseudo.run(get, self.rows, add)
        return SquareSums({name: value.cpu() for name, value in squares.items()}, counts)


@dataclass(frozen=True)
class EKFACBasis(Node[Basis]):
    """The eigenvectors of ``kfac`` with the second moments as eigenvalues."""

    NAME = "EKFACBasis"
    VERSION = 1
    TITLE = "EK-FAC eigenvalues"
    ARTIFACT = KroneckerBasis

    kfac: KFACBasis

    def parts(self, get: Get) -> list[MomentShard]:
        return [MomentShard(self.kfac, rows) for rows in self.kfac.factors.pseudo.shards]

    def cost(self) -> Cost:
        pseudo = self.kfac.factors.pseudo
        basis = basis_cost(pseudo.trained)
        return Cost(passes=pseudo.train.count * pseudo.draws.count, memory=basis.memory, disk=basis.disk)

    def compute(self, get: Get) -> KroneckerBasis:
        basis = cast(KroneckerBasis, get(self.kfac))
        squares: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        for shard in get.many(self.parts(get)):
            for name in shard.squares:
                add_to(squares, name, shard.squares[name].clone())
                add_to(counts, name, shard.counts[name].clone())
        values = {name: squares[name] / counts[name] for name in basis.layers}
        for name, moments in values.items():
            if not moments.isfinite().all():
                raise FloatingPointError(f"the EK-FAC eigenvalues of layer {name} are not finite: did training diverge?")
        return KroneckerBasis(basis.QA, basis.QB, values)


def rotated_squares(calls: list[hooks.Call], QA: Tensor, QB: Tensor) -> Tensor:
    """Σ (Q_Bᵀ g Q_A)² over the inputs of a pass, where g is the gradient of one input, summed over positions and calls.

    The products with Q_A dominate the cost, so they run over the rows of g or over the positions, whichever are fewer.
    """
    layer, (out, columns) = cast(KroneckerLayer, calls[0].layer), calls[0].layer.block
    R = cast(Tensor, calls[0].gradient)[0].numel() // out
    total: Any = 0
    for inputs in pieces(len(calls[0].input), max(1, STEP // (columns * max(out, R)))):
        sides = [(call.input[inputs], cast(Tensor, call.gradient)[inputs]) for call in calls]
        QA, QB = QA.to(sides[0][1]), QB.to(sides[0][1])
        if len(calls) == 1 and out > R:
            a, b = layer.positions(*sides[0])
            a, b = a @ QA, b @ QB
            squares = b[:, 0].square().T @ a[:, 0].square() if R == 1 else torch.bmm(b.mT, a).square_().sum(0)
        else:
            g: Any = sum(call.layer.contract(*side, 1) for call, side in zip(calls, sides, strict=True))
            squares = (QB.mT @ (g @ QA)).square_().sum(0)
        total = total + squares
    return total
