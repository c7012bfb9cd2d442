"""K-FAC: the Kronecker factors, eigendecomposed once (K-FAC influence, §3.1.2).

B ⊗ A = (Q_B ⊗ Q_A)(Λ_B ⊗ Λ_A)(Q_B ⊗ Q_A)ᵀ, so that any damping λ is exact: it gives 1/(λ_B λ_A + λ) in the eigenbasis.
``factors`` defines A and B, ``moments`` computes their sums over positions, and ``estimators.influence`` computes the scores.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from attribution.checks import FieldError
from attribution.curvature.basis import EIGH_COPIES, Basis, KroneckerBasis, eigh
from attribution.curvature.factors import AllFactors, CheckpointFactors, Sharing, blocks, factor_bytes, largest_factor
from attribution.curvature.pseudo_gradients import Fisher, PseudoGradients
from attribution.double_precision import double_device
from attribution.execution import FLOAT64_BYTES, Execution
from attribution.gradients.embedding import EmbeddingLayer
from attribution.gradients.layer_check import find_layers
from attribution.images import ImageSet
from attribution.images.draws import DrawScheme
from attribution.models.trained import Trained
from attribution.nodes import Cost, Get, Node, execution

SHARED = ("attribution.curvature.basis", "attribution.curvature.factors")


@dataclass(frozen=True, kw_only=True)
class KroneckerCurvature(ABC):
    """A curvature from ``draws`` of every training example.

    ``pseudo_gradients`` explains ``fisher``, and ``factors`` explains ``sharing``.
    """

    draws: DrawScheme
    fisher: Fisher = "mc"
    sharing: Sharing = "expand"
    execution: Execution = execution(default=Execution())

    def __post_init__(self):
        for name, choices in (("fisher", ("mc", "empirical")), ("sharing", ("expand", "reduce"))):
            if getattr(self, name) not in choices:
                raise FieldError(self, name, f"choose {' or '.join(choices)}")
        self.draws.refuse_lists("a curvature")
        self.draws.refuse_sides("n is the number of draws of every training image")

    @abstractmethod
    def basis(self, trained: Trained, train: ImageSet, flips: bool = False) -> Node[Basis]:
        """The eigenbasis of the training loss's curvature at the trained model.

        ``flips``: mirror images at random, as training did.

        Raises (when computed):
            ValueError: a grouped convolution, no Linear, Conv2d or Embedding layer, or ``sharing="reduce"`` with an Embedding.
            FloatingPointError: a factor that is not finite or not positive semidefinite; the message names the layer.
        """

    @abstractmethod
    def checkpoint_basis(self, trained: Trained, steps: Sequence[int], train: ImageSet, flips: bool = False) -> Node[Basis]:
        """The eigenbasis of the curvature averaged over checkpoints, each factor by itself; as ``basis`` otherwise.

        Raises:
            FieldError: as ``basis``.
        """

    def checkpoint_factors(self, trained: Trained, steps: Sequence[int], train: ImageSet, flips: bool) -> CheckpointFactors:
        """The factors of ``checkpoint_basis``."""
        pseudos = [self.pseudo_gradients(trained, train, flips, step) for step in steps]
        return CheckpointFactors(tuple(AllFactors(pseudo, self.sharing) for pseudo in pseudos))

    def pseudo_gradients(self, trained: Trained, train: ImageSet, flips: bool, step: int | None = None) -> PseudoGradients:
        """The pseudo-gradients whose second moments are the factors, at a checkpoint or (None) at the final model.

        Raises:
            FieldError: ``sharing="reduce"`` for a network with a trainable Embedding.
        """
        if self.sharing == "reduce":
            embeddings = [layer.name for _, layer in find_layers(trained.outline).values() if isinstance(layer, EmbeddingLayer)]
            if embeddings:
                refused = f"{', '.join(embeddings)} (Embedding) has Kronecker factors with sharing=expand only: choose that"
                raise FieldError(self, "sharing", refused)
        return PseudoGradients(
            trained=trained, train=train, draws=self.draws, fisher=self.fisher, flips=flips, step=step, execution=self.execution
        )


@dataclass(frozen=True, kw_only=True)
class KFAC(KroneckerCurvature):
    """H_layer ≈ B ⊗ A."""

    NAME = "KFAC"
    VERSION = 1

    def basis(self, trained: Trained, train: ImageSet, flips: bool = False) -> Node[Basis]:
        return KFACBasis(AllFactors(self.pseudo_gradients(trained, train, flips), self.sharing))

    def checkpoint_basis(self, trained: Trained, steps: Sequence[int], train: ImageSet, flips: bool = False) -> Node[Basis]:
        return KFACBasis(self.checkpoint_factors(trained, steps, train, flips))


@dataclass(frozen=True)
class KFACBasis(Node[Basis]):
    """The eigenvectors of both factors and the outer product of their eigenvalues."""

    NAME = "KFACBasis"
    VERSION = 1
    TITLE = "eigenvectors of the curvature factors"
    ARTIFACT = KroneckerBasis

    factors: AllFactors | CheckpointFactors

    def cost(self) -> Cost:
        trained = self.factors.pseudo.trained
        return decomposition_cost(trained, factor_bytes(trained))

    def compute(self, get: Get) -> KroneckerBasis:
        factors, device = get(self.factors), double_device(self.factors.pseudo.execution.torch_device())
        QA, QB, values = {}, {}, {}
        for layer in factors.A:
            A, B = factors.means(layer)
            in_values, in_vectors = eigh(A.to(device), f"the K-FAC factor A of layer {layer}")
            out_values, out_vectors = eigh(B.to(device), f"the K-FAC factor B of layer {layer}")
            QA[layer], QB[layer] = in_vectors.float().cpu(), out_vectors.float().cpu()
            values[layer] = torch.outer(out_values, in_values).cpu()
        return KroneckerBasis(QA, QB, values)


def decomposition_cost(trained: Trained, given: float) -> Cost:
    """The cost of an eigenbasis, with eigenvectors in float32 and eigenvalues in float64, computed from ``given`` bytes."""
    size = sum(4 * (out**2 + columns**2) + 8 * out * columns for out, columns in blocks(trained))
    cubes = sum(out**3 + columns**3 for out, columns in blocks(trained))
    return Cost(cubes=cubes, memory=given + size + EIGH_COPIES * FLOAT64_BYTES * largest_factor(trained), disk=size)
