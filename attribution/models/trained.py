"""A trained model, of which nothing but the final parameters need be known: what measurements and samplers work on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attribution.diffusion import NoiseSchedule
from attribution.measurements import Loss, Measure
from attribution.nodes import Artifact, Get, Node

PARAMETERS = "parameters.safetensors"


class Trainee(Artifact):
    """What is left of a training."""

    @abstractmethod
    def final_parameters(self) -> dict[str, Tensor]:
        """Parameters and buffers that the trained model is used with: averaged, if training kept an average."""


@dataclass(frozen=True, eq=False)
class FinalParameters(Trainee):
    """``folder / parameters.safetensors``, read when asked for."""

    folder: Path

    def final_parameters(self) -> dict[str, Tensor]:
        return load_file(self.folder / PARAMETERS)

    def save(self, folder: Path) -> None:
        """Nothing to do: training writes the file where it stays, in its node's workspace."""
        if folder != self.folder:
            raise ValueError(f"the parameters lie in {self.folder}, not in {folder}")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(folder)


T = TypeVar("T", bound=Trainee)


@dataclass(frozen=True)
class Trained(Node[T], ABC):
    """A model that can be had. ``model()`` builds the untrained network."""

    model: Callable[[], nn.Module]
    schedule: NoiseSchedule

    @property
    def objective(self) -> Measure:
        """What training minimised, per draw."""
        return Loss(self.schedule)

    @cached_property
    def parameter_count(self) -> int:
        """Trainable parameters of the network."""
        with torch.device("meta"):
            return sum(p.numel() for p in self.model().parameters() if p.requires_grad)

    def network(self, get: Get) -> nn.Module:
        """The trained network in eval mode."""
        return with_parameters(self.model(), get(self).final_parameters()).eval()


def with_parameters(network: nn.Module, parameters: Mapping[str, Tensor]) -> nn.Module:
    """``network`` with these ``parameters``, in float64 if they are."""
    if any(tensor.dtype == torch.float64 for tensor in parameters.values()):
        network = network.double()
    network.load_state_dict(parameters)
    return network
