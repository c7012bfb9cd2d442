"""EK-FAC: K-FAC's eigenvectors with eigenvalues refitted (George et al. 2018, "Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis", §3.1).

``Λ[o, i] = 1/(N K) Σ_{n,k} (Q_Bᵀ g_{n,k} Q_A)²[o, i]``: the second moments, in this basis, of the pseudo-gradients g of single
draws, summed over positions. The draws and their v are those of the factors.

Eigenvectors are defined only up to a rotation where eigenvalues of a factor are equal, and rounding decides which ones a solver
returns. With ``sharing="reduce"`` this matters: a factor has a null space where inputs average out or output gradients add up to 0
over positions (the keys of attention, a layer before a GroupNorm, fewer draws than dimensions), but g has components in it. Λ is
therefore averaged over directions whose eigenvalues agree up to rounding, which makes H independent of their choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.curvature.basis import Basis, KroneckerBasis, flatten, unflatten
from attribution.curvature.factors import AllFactors, add_to, blocks, tensor_sums
from attribution.curvature.kfac import KFACBasis, KroneckerCurvature
from attribution.curvature.moments import position_sums
from attribution.curvature.pseudo_gradients import KroneckerLayer, PseudoGradients
from attribution.curvature.sums import SumShard, merged, merging_bytes
from attribution.double_precision import double
from attribution.execution import FLOAT64_BYTES
from attribution.gradients import hooks
from attribution.gradients.layers import pieces, step
from attribution.images import ImageSet
from attribution.models.trained import Trained
from attribution.nodes import Artifact, Cost, Get, Node, added

SHARED = ("attribution.curvature.kfac", "attribution.curvature.sums")

PASS_WEIGHT = 3.0
"""The time of a pass with moments over that of a plain one, as ``task=speed`` measured it on two networks."""
ROUNDING = 100
"""The rounding error of a network's activations and their gradients, in units of the precision of its numbers."""


@dataclass(frozen=True, kw_only=True)
class EKFAC(KroneckerCurvature):
    """H_layer ≈ (Q_B ⊗ Q_A) diag(Λ) (Q_B ⊗ Q_A)ᵀ, the best approximation of this form for the given eigenvectors."""

    NAME = "EKFAC"
    VERSION = 2

    def basis(self, trained: Trained, train: ImageSet, flips: bool = False) -> Node[Basis]:
        return EKFACBasis(KFACBasis(AllFactors(self.pseudo_gradients(trained, train, flips), self.sharing)))

    def checkpoint_basis(self, trained: Trained, steps: Sequence[int], train: ImageSet, flips: bool = False) -> Node[Basis]:
        return EKFACBasis(KFACBasis(self.checkpoint_factors(trained, steps, train, flips)))


@dataclass(frozen=True, eq=False)
class SquareSums(Artifact):
    """For each layer the sum of squares ``squares [out, in (+1)]`` over inputs and their number ``counts [1]``, float64.

    ``rounding [2]``: the sums over inputs of ``squared_rounding``.
    """

    squares: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    rounding: Mapping[str, Tensor]

    def save(self, folder: Path) -> None:
        save_file(flatten(squares=self.squares, counts=self.counts, rounding=self.rounding), folder / "moments.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**unflatten(load_file(folder / "moments.safetensors")))

    def __add__(self, other: Self) -> Self:
        return type(self)(
            tensor_sums(self.squares, other.squares),
            tensor_sums(self.counts, other.counts),
            tensor_sums(self.rounding, other.rounding),
        )


@dataclass(frozen=True)
class MomentShard(SumShard[SquareSums]):
    """The sums over the training examples ``rows[0]..rows[1]-1``."""

    NAME = "MomentShard"
    VERSION = 2
    TITLE = "EK-FAC moments, in shards"
    ARTIFACT = SquareSums

    basis: KFACBasis
    rows: tuple[int, int]
    checkpoint: int = added(default=0)

    @property
    def pseudo(self) -> PseudoGradients:
        """The pseudo-gradients, of one checkpoint if the basis has several."""
        return self.basis.factors.pseudos[self.checkpoint]

    @property
    def unit(self) -> int:
        return self.pseudo.execution.shard

    def cost(self) -> Cost:
        pseudo = self.pseudo
        size, rows = FLOAT64_BYTES * sum(out * columns for out, columns in blocks(pseudo.trained)), self.rows[1] - self.rows[0]
        memory = merging_bytes(size) if rows > self.unit else size + self.basis.cost().disk
        return Cost(passes=rows * pseudo.draws.count, pass_weight=PASS_WEIGHT, memory=memory, disk=size)

    def compute_unit(self, get: Get) -> SquareSums:
        pseudo, basis = self.pseudo, cast(KroneckerBasis, get(self.basis))
        device = pseudo.execution.torch_device()
        squares: dict[str, Tensor] = {}
        counts: dict[str, Tensor] = {}
        rounding: dict[str, Tensor] = {}
        vectors = {layer: (basis.QA[layer].to(device), basis.QB[layer].to(device)) for layer in basis.layers}

        def add(name: str, calls: list[hooks.Call]) -> None:
            add_to(squares, name, rotated_squares(calls, *vectors[name]))
            add_to(counts, name, torch.tensor([len(calls[0].input)]))
            add_to(rounding, name, squared_rounding(calls))

        pseudo.run(get, self.rows, add)
        on_host = ({name: value.cpu() for name, value in sums.items()} for sums in (squares, counts, rounding))
        return SquareSums(*on_host)


@dataclass(frozen=True)
class EKFACBasis(Node[Basis]):
    """The eigenvectors of ``kfac`` with the second moments as eigenvalues, averaged where eigenvalues of a factor are equal."""

    NAME = "EKFACBasis"
    VERSION = 2
    TITLE = "EK-FAC eigenvalues"
    ARTIFACT = KroneckerBasis

    kfac: KFACBasis

    def parts(self, get: Get) -> Sequence[MomentShard]:
        shards: list[MomentShard] = []
        for checkpoint, pseudo in enumerate(self.kfac.factors.pseudos):
            whole = MomentShard(self.kfac, (0, pseudo.train.count), checkpoint)
            shards += whole.parts(get) or [whole]
        return shards

    def cost(self) -> Cost:
        pseudo = self.kfac.factors.pseudo
        basis, passes = self.kfac.cost(), len(self.kfac.factors.pseudos) * pseudo.train.count * pseudo.draws.count
        averaging = 4 * sum(out**3 + columns**3 for out, columns in blocks(pseudo.trained))  # two float64 products for each factor
        return Cost(passes=passes, pass_weight=PASS_WEIGHT, products=averaging, memory=basis.memory, disk=basis.disk)

    def compute(self, get: Get) -> KroneckerBasis:
        basis, factors = cast(KroneckerBasis, get(self.kfac)), get(self.kfac.factors)
        sums = merged(self.parts(get), get)
        values = {}
        for name in basis.layers:
            A, B = factors.means(name)
            in_rounding, out_rounding = (sums.rounding[name] / sums.counts[name]).sqrt()
            in_weights = averaging_weights(A, basis.QA[name], float(in_rounding))
            out_weights = averaging_weights(B, basis.QB[name], float(out_rounding))
            values[name] = out_weights @ (sums.squares[name] / sums.counts[name]) @ in_weights.T
            if not values[name].isfinite().all():
                raise FloatingPointError(f"the EK-FAC eigenvalues of layer {name} are not finite: did training diverge?")
        return KroneckerBasis(basis.QA, basis.QB, values)


def averaging_weights(factor: Tensor, vectors: Tensor, rounding: float) -> Tensor:
    """Weights ``[n, n]`` that average over the eigenvectors of ``factor [n, n]`` with equal eigenvalues; rows sum to 1.

    The factor is a mean of a aᵀ. An error δ of the vectors a moves √λ by about δ, whatever λ is, so eigenvalues are compared by
    their roots: the weight of j for i is proportional to ``exp(-(√λ_i - √λ_j)² / 2 rounding²)``. Unlike groups of equal
    eigenvalues, these weights do not jump where two eigenvalues are nearly equal.
    """
    vectors = vectors.double()
    roots = ((factor.double() @ vectors) * vectors).sum(0).clamp(min=0).sqrt()  # the error of float32 vectors enters squared
    distances = (roots[:, None] - roots) / max(rounding, torch.finfo(torch.float64).tiny)
    weights = torch.exp(-(distances**2) / 2)
    return weights / weights.sum(1, keepdim=True)


def squared_rounding(calls: list[hooks.Call]) -> Tensor:
    """Bounds on the squared rounding error of a row of A and of B, summed over the inputs of a pass: float64 ``[2]``.

    The mean of a over R positions is known to a multiple of the precision times ``√(1/R Σ_r ‖a_r‖²)``, the sum of b to that times
    ``√(R Σ_r ‖b_r‖²)``, even where the terms cancel.
    """
    squares: Any = [0.0, 0.0]
    positions = 0
    for call in calls:
        gradient, a = cast(Tensor, call.gradient), call.input
        kind = torch.promote_types(gradient.dtype, torch.float32)
        squared = a.to(kind).square() if a.is_floating_point() else a  # one-hot inputs are their own squares
        a, b, R = position_sums(cast(KroneckerLayer, call.layer), squared, gradient.to(kind).square())
        sums = (double(a).sum(), double(b).sum())
        squares = [total + term for total, term in zip(squares, sums, strict=True)]
        positions += R
    precision = max(
        torch.finfo(cast(Tensor, calls[0].gradient).dtype).eps, torch.finfo(torch.float32).eps
    )  # eigenvectors are float32
    scale = (ROUNDING * precision) ** 2
    return scale * torch.stack([squares[0] / positions, squares[1] * positions])


def rotated_squares(calls: list[hooks.Call], QA: Tensor, QB: Tensor) -> Tensor:
    """Σ (Q_Bᵀ g Q_A)² over the inputs of a pass, where g is the gradient of one input, summed over positions and calls.

    The products with Q_A dominate the cost, so they run over the rows of g or over the positions, whichever are fewer.
    """
    layer, (out, columns) = cast(KroneckerLayer, calls[0].layer), calls[0].layer.block
    R = cast(Tensor, calls[0].gradient)[0].numel() // out
    total: Any = 0
    for inputs in pieces(len(calls[0].input), max(1, step(QA) // (columns * max(out, R)))):
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
