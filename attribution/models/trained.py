"""Trained models, known by at least their final parameters: the input of measurements and samplers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attribution.checks import FieldError
from attribution.diffusion import Process
from attribution.measurements import Measure
from attribution.nodes import Artifact, Get, Node, key

PARAMETERS = "parameters.safetensors"
ELSEWHERE = (
    "the model was trained elsewhere: scores and curvature are relative to the images that are given here, and retraining uses "
    "the recipe of this run"
)
_LONGEST = 300
"""The largest number of characters of another library's message."""


class TrainingResult(Artifact):
    """The result of a training run."""

    @abstractmethod
    def final_parameters(self) -> dict[str, Tensor]:
        """Parameters and buffers of the trained model: the averaged ones if training kept an average."""


@dataclass(frozen=True, eq=False)
class FinalParameters(TrainingResult):
    """The parameters in ``folder / parameters.safetensors``, read on demand."""

    folder: Path

    def final_parameters(self) -> dict[str, Tensor]:
        return load_file(self.folder / PARAMETERS)

    def save(self, folder: Path) -> None:
        """Do nothing: training writes the file to its final place, the workspace of its node."""
        if folder != self.folder:
            raise ValueError(f"the parameters are in {self.folder} and cannot be saved to {folder}")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(folder)


T = TypeVar("T", bound=TrainingResult)


@dataclass(frozen=True)
class Trained(Node[T], ABC):
    """A trained model. ``model()`` builds the untrained network; training minimized the mean of ``objective`` over draws."""

    GIVEN: ClassVar[bool] = False
    """Whether it was trained elsewhere."""

    model: Callable[[], nn.Module]
    objective: Measure

    @property
    def process(self) -> Process:
        """The forward process of training."""
        return self.objective.process

    @cached_property
    def outline(self) -> nn.Module:
        """The untrained network on the meta device: its layers and shapes, without memory for parameters.

        On the CPU if its constructor does not run on the meta device. Models with the same network share it.

        Raises:
            FieldError: ``model`` does not construct a network.
        """
        name = key(self.model)
        if name not in _outlines:
            _outlines[name] = self._outline()
        return _outlines[name]

    def _outline(self) -> nn.Module:
        try:
            with torch.device("meta"):
                network = self.model()
        except Exception:  # the constructor may be anyone's
            return untrained(self)
        return network if isinstance(network, nn.Module) else untrained(self)

    @cached_property
    def parameter_count(self) -> int:
        """The number of trainable parameters of the network."""
        return sum(p.numel() for p in self.outline.parameters() if p.requires_grad)

    def notes(self, replayed: bool) -> list[str]:
        """What readers of the results must know about the model. ``replayed``: the results replay its training."""
        return [ELSEWHERE] if self.GIVEN else []

    def member(self, i: int) -> "Trained":
        """Member ``i`` of an ensemble of training runs that differ in their seed; 0 is this one.

        Raises:
            ValueError: a model that cannot be trained again.
        """
        if i == 0:
            return self
        raise ValueError(f"{type(self).__name__} cannot be trained again with another seed: use one model only (models=1)")

    def network(self, get: Get, step: int | None = None) -> nn.Module:
        """The network in eval mode with the parameters after ``step`` training steps; None: with the final parameters.

        Raises:
            ValueError: a ``step`` of a model without a record of its training.
        """
        if step is not None:
            raise ValueError(f"{type(self).__name__} has no record of its training: only its final parameters are known")
        return with_parameters(self.model(), get(self).final_parameters()).eval()


_outlines: dict[str, nn.Module] = {}
"""Untrained networks by the identity of their constructor."""


def untrained(owner: Any) -> nn.Module:
    """The network that ``owner.model()`` constructs.

    Raises:
        FieldError: the constructor fails, or does not return an ``nn.Module``.
    """
    try:
        network = owner.model()
    except FieldError:
        raise
    except Exception as error:  # the constructor may be anyone's
        raise FieldError(owner, "model", f"the network cannot be constructed ({one_line(error)}): change its settings") from error
    if not isinstance(network, nn.Module):
        raise FieldError(owner, "model", f"constructs a {type(network).__name__}: choose a class of networks (torch.nn.Module)")
    return network


def one_line(error: Exception) -> str:
    """The class and the message of an error, shortened to one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:_LONGEST]}{'...' if len(message) > _LONGEST else ''}"


def with_parameters(network: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """Load ``parameters`` into ``network`` and return it, converted to float64 if they are float64."""
    if any(tensor.dtype == torch.float64 for tensor in parameters.values()):
        network = network.double()
    network.load_state_dict(parameters)
    return network
