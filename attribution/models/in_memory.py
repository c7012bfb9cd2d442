"""Models in memory: a network, and weights of it."""

import copy
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attribution.models.given import Weights
from attribution.models.weights import WeightsFile

SHARED = ("attribution.models.given",)

_HALF = (torch.float16, torch.bfloat16)
_names: "WeakKeyDictionary[nn.Module, str]" = WeakKeyDictionary()
"""What identifies each network in this process."""


@dataclass(frozen=True, eq=False)
class Copies:
    """The constructor of a network that makes copies of ``network`` on the CPU, half precision as float32.

    Its identity is that of the object within this process, because the code of anyone's network is unknown, of its modules as they
    print, and of the parameters that are trainable: these change in place.
    """

    NAME = "Copies"
    VERSION = 1

    network: nn.Module

    def __call__(self) -> nn.Module:
        copied = copy.deepcopy(self.network).to("meta" if torch.empty(0).device.type == "meta" else "cpu")
        return copied.float() if any(tensor.dtype in _HALF for tensor in copied.state_dict().values()) else copied

    def description(self) -> dict[str, Any]:
        """The name of the network in this process, its modules and its trainable parameters."""
        trainable = [name for name, parameter in self.network.named_parameters() if parameter.requires_grad]
        return {"network": _names.setdefault(self.network, uuid.uuid4().hex), "modules": str(self.network), "trainable": trainable}


@dataclass(frozen=True, eq=False)
class State(Weights):
    """A state dict in memory, half precision as float32."""

    state: Mapping[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        found = {name: tensor.detach().cpu() for name, tensor in self.state.items()}
        return {name: tensor.float() if tensor.dtype in _HALF else tensor for name, tensor in found.items()}


def weights_of(network: nn.Module, checkpoint: nn.Module | Mapping[str, Tensor] | str | Path) -> Weights:
    """Weights of ``network``: those of a module, of a state dict, or in a file (``WeightsFile``).

    Raises:
        ValueError: names or shapes differ from those of ``network``, or it is none of these.
    """
    if isinstance(checkpoint, str | Path):
        return WeightsFile(str(checkpoint)).of_network(network)
    checkpoint = getattr(checkpoint, "_orig_mod", checkpoint)  # of a compiled network
    state = checkpoint.state_dict() if isinstance(checkpoint, nn.Module) else checkpoint
    if not isinstance(state, Mapping):
        raise ValueError(f"a checkpoint has the type {type(state).__name__}: give a network, a state dict or a file")
    own = network.state_dict()
    wrong = [name for name in {**own, **state} if name not in own or name not in state or own[name].shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"a checkpoint differs from {type(network).__name__} in {', '.join(wrong[:3])}: give weights of this network"
        )
    return State(state)
