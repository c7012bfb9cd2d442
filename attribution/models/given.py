"""Models trained elsewhere, known by their final parameters."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attribution.models.trained import PARAMETERS, FinalParameters, Trained, TrainingResult
from attribution.nodes import Cost, Get, digest

SHARED = ("attribution.models.trained",)


class Weights(ABC):
    """Parameters and buffers from outside the store. Their content is their identity, not the place where they lie."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name.

        Raises:
            ValueError: they cannot be read.
        """

    def notes(self) -> list[str]:
        """What readers of the results must know about the weights."""
        return []

    def description(self) -> dict[str, Any]:
        """The digest of all tensors."""
        return {"weights": self.content}

    @cached_property
    def content(self) -> dict[str, str]:
        """The digest of each tensor."""
        return digests(self.tensors())

    def copy(self, path: Path) -> None:
        """Write them to a file, whose folder is made.

        Raises:
            ValueError: they are not those that the run began with.
        """
        tensors = self.tensors()
        if digests(tensors) != self.content:
            raise ValueError("the given weights changed since the run began: start the run again")
        path.parent.mkdir(exist_ok=True)
        save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path)


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The digest of each tensor by name."""
    return {name: digest(tensor.numpy()) for name, tensor in sorted(tensors.items())}


@dataclass(frozen=True, eq=False)
class InitialParameters(TrainingResult):
    """Parameters and buffers in memory."""

    parameters: dict[str, Tensor]

    def final_parameters(self) -> dict[str, Tensor]:
        return self.parameters

    def save(self, folder: Path) -> None:
        save_file(self.parameters, folder / PARAMETERS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(load_file(folder / PARAMETERS))


@dataclass(frozen=True, kw_only=True)
class UntrainedModel(Trained[InitialParameters]):
    """The network with the parameters of its constructor, for comparisons with a trained one. They are not stored."""

    NAME = "UntrainedModel"
    VERSION = 1
    TITLE = "an untrained network"
    STORED = False
    ARTIFACT = InitialParameters

    seed: int = 0

    def compute(self, get: Get) -> InitialParameters:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return InitialParameters({name: tensor.clone() for name, tensor in self.model().state_dict().items()})


@dataclass(frozen=True, kw_only=True)
class GivenModel(Trained[FinalParameters]):
    """A model with given ``weights``. ``objective`` is the loss that its training minimized, as far as that is known.

    The store keeps a copy of the parameters.
    """

    NAME = "GivenModel"
    VERSION = 1
    TITLE = "the given model"
    ARTIFACT = FinalParameters
    GIVEN = True

    weights: Weights

    def notes(self, replayed: bool) -> list[str]:
        return [*super().notes(replayed), *self.weights.notes()]

    def cost(self) -> Cost:
        return Cost(disk=sum(tensor.nbytes for tensor in self.outline.state_dict().values()))

    def compute(self, get: Get) -> FinalParameters:
        folder = get.workspace(self)
        self.weights.copy(folder / PARAMETERS)
        return FinalParameters(folder)
