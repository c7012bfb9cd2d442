"""The exact Gauss-Newton matrix of a small model, as a curvature and as the reference for approximations.

``H = 1/(N K) Σ_{n,k} Jᵀ (2 w_t / d) J`` over the given draws, where w_t is the weight of the process and J the Jacobian ``[d, P]``
of the network's output with respect to all parameters, including norm layers. H is the Hessian of the mean training loss without
the curvature of the network. J is computed pixel by pixel, in d passes per draw.

The P parameters are in the order of per-example gradients: layer after layer, each joint block [W | b] row by row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.curvature.basis import EIGH_COPIES, Basis, eigh
from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.curvature.sums import SumShard, merged, merging_bytes
from attribution.double_precision import double_device
from attribution.execution import Execution, ranges
from attribution.gradients.per_example import LayerGradients, PerExampleGradients
from attribution.images import ImageSet
from attribution.images.draws import Draws, DrawScheme
from attribution.measurements import Inputs, Measure
from attribution.measurements.base import per_draw
from attribution.models.trained import Trained
from attribution.nodes import Artifact, Cost, Get, Node, execution

SHARED = (
    "attribution.curvature.basis",
    "attribution.curvature.pseudo_gradients",
    "attribution.curvature.sums",
    "attribution.gradients.inner_products",
    "attribution.gradients.network_cache",
    "attribution.measurements.base",
)

MAX_PARAMETERS = 5000
"""The largest number of parameters: the matrix takes 200 MB and its eigendecomposition a minute or two."""

WHOLE = "all parameters"
"""The name of the basis's only block."""


@dataclass(frozen=True, kw_only=True)
class ExactGGN:
    """The dense Gauss-Newton matrix over ``draws`` of every training example, in float64, for at most 5000 parameters."""

    NAME = "ExactGGN"
    VERSION = 1

    draws: DrawScheme
    execution: Execution = execution(default=Execution())

    def __post_init__(self):
        self.draws.refuse_lists("a curvature")
        self.draws.refuse_sides("n is the number of draws of every training image")

    def basis(self, trained: Trained, train: ImageSet, flips: bool = False) -> "Node[DenseBasis]":
        """The eigenbasis of the matrix at the trained model.

        Raises:
            ValueError: too many parameters.
        """
        if trained.parameter_count > MAX_PARAMETERS:
            raise ValueError(
                f"the exact curvature of {trained.parameter_count} parameters: the dense matrix is for at most {MAX_PARAMETERS}; "
                "choose K-FAC or EK-FAC, or a smaller model"
            )
        return DenseGGN(self.draws, trained, train, flips, self.execution)


@dataclass(frozen=True, eq=False)
class DenseBasis(Basis):
    """``H = vectors diag(eigenvalues) vectorsᵀ``, with float64 ``[P, P]`` and ``[P]``; one block of shape ``[1, P]``."""

    vectors: Tensor
    eigenvalues: Tensor

    @cached_property
    def values(self) -> Mapping[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return {WHOLE: self.eigenvalues.unsqueeze(0)}

    def to(self, device: torch.device) -> Self:
        return type(self)(self.vectors.to(double_device(device)), self.eigenvalues.to(double_device(device)))

    def rotations(self, gradients: LayerGradients) -> Iterator[tuple[str, Tensor]]:
        g = flat(gradients)
        yield WHOLE, (g @ self.vectors.to(g)).unsqueeze(-2)

    def solve(self, gradient: Tensor, damping: float) -> Tensor:
        """(H + λI)⁻¹ g for gradients ``[.., P]`` in the order of ``flat``."""
        vectors = self.vectors.to(gradient)
        return ((gradient @ vectors) / (self.eigenvalues.to(gradient) + damping)) @ vectors.T

    def matrix(self) -> Tensor:
        """H, ``[P, P]``."""
        return (self.vectors * self.eigenvalues) @ self.vectors.T

    def save(self, folder: Path) -> None:
        save_file({"vectors": self.vectors.contiguous(), "eigenvalues": self.eigenvalues}, folder / "ggn.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**load_file(folder / "ggn.safetensors"))


@dataclass(frozen=True, eq=False)
class Sum(Artifact):
    """``matrix [P, P]``: Σ Jᵀ (2 w_t / d) J over a range of examples and all their draws."""

    matrix: Tensor

    def save(self, folder: Path) -> None:
        save_file({"matrix": self.matrix}, folder / "sum.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_file(folder / "sum.safetensors")["matrix"])

    def __add__(self, other: Self) -> Self:
        return type(self)(self.matrix + other.matrix)


@dataclass(frozen=True)
class DenseShard(SumShard[Sum]):
    """The sum over the training examples ``rows[0]..rows[1]-1``."""

    NAME = "DenseShard"
    VERSION = 1
    TITLE = "exact Gauss-Newton matrix, in shards"
    ARTIFACT = Sum

    draws: DrawScheme
    trained: Trained
    train: ImageSet
    flips: bool
    rows: tuple[int, int]
    execution: Execution = execution(default=Execution())

    @property
    def unit(self) -> int:
        return self.execution.shard

    def cost(self) -> Cost:
        size = 8 * self.trained.parameter_count**2
        return Cost(passes=(self.rows[1] - self.rows[0]) * self.draws.count, memory=merging_bytes(size), disk=size)

    def compute_unit(self, get: Get) -> Sum:
        device, images = double_device(self.execution.torch_device()), get(self.train)
        network = self.trained.network(get).double().to(device)
        per_example = PerExampleGradients(network, self.execution.batch_size, self.execution.pass_bytes)
        total: Any = 0
        # A block holds the gradients of all its inputs for one pixel at a time.
        block = self.execution.examples_at_once(2 * self.trained.parameter_count * self.draws.count)
        for start, stop in ranges(*self.rows, block):
            rows = slice(start, stop)
            ids, dropout = images.ids(rows).to(device), self.trained.objective.condition_dropout
            draws = self.draws.draw("curvature", ids, self.trained.process.T, self.flips, dropout)
            measure, x0 = OutputPixels(self.trained.process), images.x0(rows).double().to(device)
            total = total + measure.gram(per_example, x0, draws, images.conditions(rows))
        return Sum(total.cpu())


@dataclass(frozen=True)
class OutputPixels(OutputProbe):
    """``√w_t`` times ``pixel`` j of the output: its gradient is ``√w_t`` times row j of the Jacobian."""

    NAME = "OutputPixels"
    VERSION = 1

    pixel: int = 0

    def inputs(self, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> Inputs:
        inputs = Measure.inputs(self, x0, draws, condition)
        v = torch.zeros_like(inputs.noise)
        v.flatten(1)[:, self.pixel] = self.process.weight(inputs.t, v.dtype).sqrt()
        return inputs._replace(noise=torch.cat([inputs.noise, v], dim=1))

    def gram(self, per_example: PerExampleGradients, x0: Tensor, draws: Draws, condition: Tensor | None = None) -> Tensor:
        """Σ Jᵀ (2 w_t / d) J over all draws of all examples, ``[P, P]``."""
        d, x0, condition = x0[0].numel(), x0.repeat_interleave(draws.count, 0), per_draw(condition, draws)
        total: Any = 0
        for pixel in range(d):
            captured = per_example.capture(type(self)(self.process, pixel), x0, draws.single(), condition)
            rows = flat(captured.mean())
            total = total + rows.T @ rows
        return total * (2 / d)


@dataclass(frozen=True)
class DenseGGN(Node[DenseBasis]):
    """The eigendecomposition of the matrix over all training examples."""

    NAME = "DenseGGN"
    VERSION = 1
    TITLE = "exact Gauss-Newton matrix"
    ARTIFACT = DenseBasis

    draws: DrawScheme
    trained: Trained
    train: ImageSet
    flips: bool
    execution: Execution = execution(default=Execution())

    def parts(self, get: Get) -> Sequence[DenseShard]:
        whole = DenseShard(self.draws, self.trained, self.train, self.flips, (0, self.train.count), self.execution)
        return whole.parts(get) or [whole]

    def cost(self) -> Cost:
        size = 8 * self.trained.parameter_count**2
        return Cost(
            passes=self.train.count * self.draws.count, cubes=self.trained.parameter_count**3, memory=EIGH_COPIES * size, disk=size
        )

    def compute(self, get: Get) -> DenseBasis:
        total = merged(self.parts(get), get)
        values, vectors = eigh(total.matrix / (self.train.count * self.draws.count), "the exact Gauss-Newton matrix")
        return DenseBasis(vectors, values)


def flat(gradients: LayerGradients) -> Tensor:
    """``[.., P]``: layer after layer, each block ``[.., rows, columns]`` row by row."""
    return torch.cat([block.flatten(-2) for block in gradients.values()], dim=-1)
