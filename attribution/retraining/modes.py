"""The modes in which a step computes the gradients of several models: ``Together`` or ``Alone``; ``Auto`` chooses one of them.

Their results differ only by rounding, but training amplifies rounding, so the mode is part of a model's identity. ``Auto``
therefore follows a rule that does not depend on the machine.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attribution.checks import FieldError, number, whole
from attribution.diffusion import denoiser
from attribution.measurements import Inputs, Measure
from attribution.nodes import execution
from attribution.precision import MIXABLE, autocast
from attribution.retraining.stacked_forward import stacked_losses
from attribution.training.recipe import Recipe

SHARED = ("attribution.diffusion.denoiser", "attribution.retraining.stacked_forward")

PRECISIONS = (*MIXABLE, "64-true")
"""The precisions in which models can be retrained."""

State = Mapping[str, Tensor]
"""Tensors of M models by name, ``[M, ...]``."""


@dataclass(frozen=True)
class StackedBatch:
    """One batch for each of M models, padded to the longest; ``inputs`` of the objective and ``weight`` are ``[M, B, ...]``.

    The training loss of a model is ``Σ_b weight · ℓ``, where ``weight`` is the example's weight divided by the ``length`` of the
    model's batch, and 0 for padding. ``dropout_seeds`` and ``lengths`` have one value per model.
    """

    inputs: Inputs
    weight: Tensor
    lengths: Sequence[int]
    dropout_seeds: Sequence[int]


@dataclass(frozen=True)
class Mode(ABC):
    """A way to train several models: at most ``group`` at once in memory, saving progress every ``save_seconds`` of work."""

    group: int = execution(default=16)
    save_seconds: float = execution(default=60.0)

    def __post_init__(self):
        whole(self, "group", least=1)
        number(self, "save_seconds", least=0)

    def choose(self, network: nn.Module, shape: Sequence[int], recipe: Recipe) -> "Mode":
        """Return the mode in which such networks are trained by ``recipe`` on images of ``shape`` (C, H, W): this one."""
        return self

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        """Put the network into the mode for training by ``recipe``.

        Raises:
            ValueError: a network or a recipe that this mode cannot train.
        """
        if recipe.precision not in PRECISIONS:
            raise FieldError(recipe, "precision", f"models are retrained in one of {', '.join(PRECISIONS)}: choose one of these")
        network.train()

    @abstractmethod
    def gradients(
        self, network: nn.Module, parameters: State, constants: State, measure: Measure, batch: StackedBatch, recipe: Recipe
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each model ``[M]`` and its gradient with respect to its ``parameters``, flat and in order: ``[M, P]``.

        ``constants`` are the frozen parameters and buffers. Only the code of ``network``, after ``prepare``, is used, not its
        parameters. ``recipe`` says in which precision and memory format.
        """


@dataclass(frozen=True)
class Together(Mode):
    """All models in one pass with stacked parameters: for small networks, where Python takes as long as the arithmetic of a pass.

    Only for networks without dropout: stacked models would share one stream of random numbers, but ``fit`` seeds one per model.
    """

    NAME = "Together"
    VERSION = 1

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        super().prepare(network, recipe)
        if recipe.compiler is not None:
            raise FieldError(recipe, "compiler", "models cannot be compiled together: train each alone, or set this to null")
        for name, module in network.named_modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                if module.p > 0:
                    raise ValueError(
                        f"models cannot be trained together with dropout ({name} has {module.p}): train each alone, or turn it off"
                    )
                module.eval()  # vmap refuses dropout as random even if its probability is 0

    def gradients(
        self, network: nn.Module, parameters: State, constants: State, measure: Measure, batch: StackedBatch, recipe: Recipe
    ) -> tuple[Tensor, Tensor]:
        leaves = _leaves(parameters, recipe)
        with autocast(recipe.precision, batch.weight.device):
            losses = stacked_losses(network, {**leaves, **constants}, measure, batch.inputs)
        losses = (batch.weight * losses).sum(1)
        # Each model's loss depends only on that model's parameters, so the gradient of the sum contains the gradient of each.
        return losses.detach(), torch.cat([g.reshape(len(g), -1) for g in _gradients(losses.sum(), leaves)], 1)


@dataclass(frozen=True)
class Alone(Mode):
    """One model after another: for large networks, each of which uses a whole device, and for dropout.

    At each step the random numbers of a model's network start from the same seed as in ``fit``.
    """

    NAME = "Alone"
    VERSION = 1

    group: int = execution(default=1)

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        super().prepare(network, recipe)
        if recipe.compiler is not None:
            network.compile(backend=recipe.compiler)

    def gradients(
        self, network: nn.Module, parameters: State, constants: State, measure: Measure, batch: StackedBatch, recipe: Recipe
    ) -> tuple[Tensor, Tensor]:
        losses = []
        gradients = torch.empty(len(batch.lengths), _size(parameters), dtype=batch.weight.dtype, device=batch.weight.device)
        for m, (length, dropout_seed) in enumerate(zip(batch.lengths, batch.dropout_seeds, strict=True)):
            leaves = _leaves({name: tensor[m] for name, tensor in parameters.items()}, recipe)
            state = {**leaves, **{name: tensor[m] for name, tensor in constants.items()}}
            torch.manual_seed(dropout_seed)
            with autocast(recipe.precision, batch.weight.device):
                costs = measure(denoiser(network, state), *batch.inputs.rows(m).rows(slice(length)))
            loss = (batch.weight[m, :length] * costs).sum()
            losses.append(loss.detach())
            torch.cat([g.flatten() for g in _gradients(loss, leaves)], out=gradients[m])
        return torch.stack(losses), gradients


LARGEST = 8e9
"""The largest product of parameters, pixels and batch size for which models are trained together.

The arithmetic of a step grows with it, and what training together saves does not (docs/speed.md)."""


@dataclass(frozen=True)
class Auto(Mode):
    """``Together`` for small networks without dropout that are not compiled, ``Alone`` for others.

    ``group`` is that of ``Together``. The choice depends on the network, the size of its images and the recipe alone. The chosen
    mode, and not this class, enters the identity of a model.
    """

    NAME = "Auto"
    VERSION = 1

    def choose(self, network: nn.Module, shape: Sequence[int], recipe: Recipe) -> Mode:
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in network.modules())
        large = parameters * math.prod(shape[1:]) * recipe.batch_size > LARGEST
        if large or dropout or recipe.compiler is not None:
            return Alone(save_seconds=self.save_seconds)
        return Together(group=self.group, save_seconds=self.save_seconds)

    def prepare(self, network: nn.Module, recipe: Recipe) -> None:
        raise TypeError("Auto only chooses a mode: call choose, and train in the mode that it returns")

    def gradients(
        self, network: nn.Module, parameters: State, constants: State, measure: Measure, batch: StackedBatch, recipe: Recipe
    ) -> tuple[Tensor, Tensor]:
        raise TypeError("Auto only chooses a mode: call choose, and train in the mode that it returns")


def _size(parameters: State) -> int:
    """P, the number of parameters of a model."""
    return sum(tensor[0].numel() for tensor in parameters.values())


def _leaves(parameters: State, recipe: Recipe) -> dict[str, Tensor]:
    values = (_channels_last(tensor) if recipe.channels_last else tensor for tensor in parameters.values())
    return {name: value.detach().requires_grad_() for name, value in zip(parameters, values, strict=True)}


def _channels_last(weight: Tensor) -> Tensor:
    """The weight of a convolution, or those of M models as one weight ``[M · out, in, height, width]``, in this memory format."""
    if weight.dim() not in (4, 5):
        return weight
    flat = weight.flatten(0, -4).contiguous(memory_format=torch.channels_last)
    return flat.view(weight.shape)


def _gradients(loss: Tensor, leaves: Mapping[str, Tensor]) -> Sequence[Tensor]:
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    if unused := [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is None]:
        raise ValueError(f"model: the training loss does not depend on parameter {unused[0]}: freeze it (requires_grad=False)")
    return gradients
