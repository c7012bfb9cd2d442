"""How the gradients of several models are computed at a step: ``Together`` or ``Alone``.

Results differ in rounding only, but training carries rounding far: the mode is part of a model's identity.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribution.checks import whole
from attribution.measurements import Measure
from attribution.nodes import execution
from attribution.retraining.stacking import denoiser_with, stacked_losses

SHARED = ("attribution.retraining.stacking",)

State = Mapping[str, Tensor]
"""Tensors of M models by name, ``[M, ...]``."""


@dataclass(frozen=True)
class StackedBatch:
    """A batch of each of M models, padded to the longest: ``x0``, ``noise`` ``[M, B, C, H, W]``; ``t``, ``weight`` ``[M, B]``.

    A model's training loss is ``Σ_b weight · ℓ``: the weight of an example over the ``length`` of its own batch, 0 where padded.
    ``dropout_seeds`` and ``lengths``: one per model.
    """

    x0: Tensor
    t: Tensor
    noise: Tensor
    weight: Tensor
    lengths: Sequence[int]
    dropout_seeds: Sequence[int]


@dataclass(frozen=True)
class Mode(ABC):
    """``group``: most models trained side by side, held in memory at once; ``interval``: steps between two savings of progress."""

    group: int = execution(default=16)
    interval: int = execution(default=100)

    def __post_init__(self):
        for name in ("group", "interval"):
            whole(f"benchmark.mode.{name}", getattr(self, name), 1)

    @abstractmethod
    def prepare(self, network: nn.Module) -> None:
        """Puts the network into the mode in which it is trained.

        Raises:
            ValueError: this mode cannot train such a network.
        """

    @abstractmethod
    def gradients(
        self, network: nn.Module, parameters: State, constants: State, measure: Measure, batch: StackedBatch
    ) -> tuple[Tensor, Tensor]:
        """The loss of each model ``[M]`` and its gradient by its ``parameters``, in order and flat: ``[M, P]``.

        ``constants`` are the frozen parameters and buffers; ``network``, as ``prepare`` left it, lends its code only.
        """


@dataclass(frozen=True)
class Together(Mode):
    """All models in one pass, parameters stacked: for small networks, whose single passes cost as much Python as arithmetic.

    Networks without dropout only: stacked models would share one stream of random numbers, where ``fit`` seeds each model's own.
    """

    NAME = "Together"
    VERSION = 1

    def prepare(self, network: nn.Module) -> None:
        network.train()
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                if module.p > 0:
                    raise ValueError(
                        f"retraining@benchmark.mode=together cannot train with dropout ({name} has {module.p}): choose "
                        "retraining@benchmark.mode=alone, or set model.dropout=0"
                    )
                module.eval()  # vmap refuses even a dropout of nothing as random

    def gradients(
        self, network: nn.Module, parameters: State, constants: State, measure: Measure, batch: StackedBatch
    ) -> tuple[Tensor, Tensor]:
        leaves = _leaves(parameters)
        losses = stacked_losses(network, {**leaves, **constants}, measure, batch.x0, batch.t, batch.noise)
        losses = (batch.weight * losses).sum(1)
        # A model's loss depends on its own parameters alone: the gradient of the sum holds every model's own.
        return losses.detach(), torch.cat([g.reshape(len(g), -1) for g in _gradients(losses.sum(), leaves)], 1)


@dataclass(frozen=True)
class Alone(Mode):
    """One model after another: for large networks, which fill a device by themselves, and for dropout.

    The random numbers of a model's network begin at each step where those of ``fit`` do.
    """

    NAME = "Alone"
    VERSION = 1

    group: int = execution(default=1)

    def prepare(self, network: nn.Module) -> None:
        network.train()

    def gradients(
        self, network: nn.Module, parameters: State, constants: State, measure: Measure, batch: StackedBatch
    ) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for m, (length, dropout_seed) in enumerate(zip(batch.lengths, batch.dropout_seeds, strict=True)):
            leaves = _leaves({name: tensor[m] for name, tensor in parameters.items()})
            state = {**leaves, **{name: tensor[m] for name, tensor in constants.items()}}
            torch.manual_seed(dropout_seed)
            x0, t, noise, weight = (tensor[m, :length] for tensor in (batch.x0, batch.t, batch.noise, batch.weight))
            loss = (weight * measure(denoiser_with(network, state), x0, t, noise)).sum()
            losses.append(loss.detach())
            gradients.append(torch.cat([g.flatten() for g in _gradients(loss, leaves)]))
        return torch.stack(losses), torch.stack(gradients)


def _leaves(parameters: State) -> dict[str, Tensor]:
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def _gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> Sequence[Tensor]:
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    if unused := [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None]:
        raise ValueError(f"model: parameter {unused[0]} has no part in the training loss: freeze it (requires_grad=False)")
    return gradients
