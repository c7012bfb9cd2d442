"""Trained LoRA adapters in a file, without the network that they adapt."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from attribution.checks import FieldError
from attribution.models.given import Weights
from attribution.models.lora import LoRA
from attribution.models.weights import WeightsFile

SHARED = ("attribution.models.given", "attribution.models.lora", "attribution.models.weights")

_OLDER = {".lora.down.": ".lora_A.", ".lora.up.": ".lora_B."}
"""Names in files of older versions of diffusers, and their present ones."""
_DEFAULT = ".default."
"""What peft adds to the names of adapters in a network; their names in files lack it."""


@dataclass(frozen=True)
class AdapterWeights(Weights):
    """The frozen network of ``model`` with the adapters in ``file``, as peft (``save_pretrained``) or diffusers
    (``save_lora_weights``) wrote it.

    Names in the file are those of the modules, after an optional prefix such as ``unet.`` or ``base_model.model.``.

    Raises (in ``tensors``):
        FieldError: the file lacks an adapter of the network, has others, or has them in another rank.
    """

    file: WeightsFile
    model: LoRA

    def tensors(self) -> dict[str, Tensor]:
        state = self.model().state_dict()
        return {**state, **self._adapters(state)}

    def _adapters(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {_present(name): tensor for name, tensor in adapters_in(self.file).items()}
        wanted = {name.replace(_DEFAULT, "."): name for name in state if is_adapter(name)}
        first = next(iter(wanted))
        prefixes = [name.removesuffix(first) for name in found if name == first or name.endswith(f".{first}")]
        prefix = next((prefix for prefix in prefixes if prefix.startswith(self.file.prefix)), "")
        lacking = [name for name in wanted if prefix + name not in found]
        if lacking:
            raise FieldError(self.file, "path", f"has no adapter {lacking[0]}: choose the model.targets that it was trained with")
        further = [name for name in found if name.startswith(prefix) and name.removeprefix(prefix) not in wanted]
        if further:
            raise FieldError(self.file, "path", f"also has {further[0]}: add its module to model.targets, as in training")
        adapters = {full: found[prefix + name] for name, full in wanted.items()}
        for name, tensor in adapters.items():
            if tensor.shape != state[name].shape:
                there, here = list(tensor.shape), list(state[name].shape)
                message = f"has {name} of the shape {there}, but the network has {here}: set model.rank to that of training"
                raise FieldError(self.file, "path", message)
        return adapters


def adapters_in(file: WeightsFile) -> dict[str, Tensor]:
    """The adapters among the tensors of ``file``, whatever their prefix.

    Raises:
        ValueError: there is no such file, or it has no tensors.
    """
    return {name: tensor for name, tensor in WeightsFile(file.path).tensors().items() if is_adapter(_present(name))}


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def _present(name: str) -> str:
    for older, present in _OLDER.items():
        name = name.replace(older, present)
    return name
