"""Weights in a file: a state dict, or a checkpoint of Lightning or another program that has one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attribution.checks import FieldError
from attribution.models.given import Weights

SHARED = ("attribution.models.given",)

_SHOWN = 3
"""How many names a message shows."""


@dataclass(frozen=True)
class WeightsFile(Weights):
    """The weights in the file at ``path``, half precision as float32.

    The names of tensors in nested dicts are joined by dots, as ``state_dict.conv.weight``. Those that begin with ``prefix`` count,
    without it; of them, if ``names`` is given, only these.
    """

    path: str
    prefix: str = ""
    names: tuple[str, ...] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """As ``Weights.tensors``.

        Raises:
            ValueError: there is no such file, or it has no tensors.
        """
        start = len(self.prefix)
        found = {name[start:]: tensor for name, tensor in _read(self.path).items() if name.startswith(self.prefix)}
        return found if self.names is None else {name: found[name] for name in self.names}

    def notes(self) -> list[str]:
        """The tensors under the prefix that are not of the network, nor of another copy of its weights, such as an average."""
        if self.names is None:
            return []
        found, names = _read(self.path), set(self.names)
        copies = [prefix for prefix in _prefixes(found, self.names[0]) if all(prefix + name in found for name in names)]
        known = {prefix + name for prefix in copies for name in names}
        more = [name for name in found if name.startswith(self.prefix) and name not in known]
        note = f"The file of the weights has {_some(more)}, which this network lacks: is it the right network?"
        return [note] if more else []

    def of_network(self, network: nn.Module) -> Self:
        """The weights of ``network`` among these, under the one prefix with which the file has them all.

        ``network`` may be on the meta device. A ``prefix`` that is given may be incomplete: ``ema`` finds ``ema.module.``.

        Raises:
            FieldError: the file cannot be read, there is no such prefix or several, or a tensor has another shape.
        """
        try:
            found = _read(self.path)
        except ValueError as error:
            raise FieldError(self, "path", str(error)) from error
        wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
        prefixes = [prefix for prefix in _prefixes(found, next(iter(wanted))) if all(prefix + name in found for name in wanted)]
        if not prefixes:
            raise FieldError(self, "path", f"has no weights of {type(network).__name__}: {_difference(wanted, found)}")
        shown = ", ".join(prefix or "none" for prefix in prefixes)
        given = [prefix for prefix in prefixes if prefix.startswith(self.prefix)]
        if not given:
            message = f"{self.path} has no weights of the network under the prefix {self.prefix}, but under {shown}"
            raise FieldError(self, "prefix", message)
        exact = [prefix for prefix in given if prefix == self.prefix]  # also the empty one
        if len(exact or given) > 1:
            message = f"{self.path} has weights of the network under several prefixes: set prefix to one of {shown}"
            raise FieldError(self, "prefix", message)
        (prefix,) = exact or given
        for name, shape in wanted.items():
            if found[prefix + name].shape != shape:
                there, here = (list(shape) for shape in (found[prefix + name].shape, shape))
                message = f"has {prefix}{name} of the shape {there}, but the network has {here}: choose the network it is of"
                raise FieldError(self, "path", message)
        return replace(self, prefix=prefix, names=tuple(sorted(wanted)))


def _prefixes(found: Mapping[str, Tensor], name: str) -> list[str]:
    """What precedes ``name`` in the names of tensors, up to a dot."""
    return [one.removesuffix(name) for one in found if one == name or one.endswith(f".{name}")]


def _difference(wanted: Mapping[str, Any], found: Mapping[str, Tensor]) -> str:
    """Names that the network has and the file lacks, in words."""
    closest = min(_prefixes(found, next(iter(wanted))) or [""], key=lambda p: sum(p + name not in found for name in wanted))
    lacking = [name for name in wanted if closest + name not in found]
    there = _some(list(found))
    return f"{_some(lacking)} of {len(wanted)} tensors are not in the file, which has {there}; choose the network it is of"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}" if names else "none"


def _read(path: str) -> dict[str, Tensor]:
    """All tensors of a file by name."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError("is not a file: give a .safetensors, .pt, .pth, .bin or .ckpt file with the weights")
    return _read_once(str(file), file.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_once(path: str, _changed: int) -> dict[str, Tensor]:
    try:
        content = load_file(path) if path.endswith(".safetensors") else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the file may be anything
        raise ValueError(
            f"cannot be read as weights only ({type(error).__name__}): write them with torch.save(network.state_dict(), PATH), or "
            "as safetensors"
        ) from error
    tensors = dict(_flat(content, ""))
    if not tensors:
        raise ValueError("has no tensors: write the weights with torch.save(network.state_dict(), PATH) or as safetensors")
    return tensors


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts, with their joined names; half precision as float32."""
    if isinstance(content, Tensor):
        half = content.dtype in (torch.float16, torch.bfloat16)
        yield prefix, content.detach().float() if half else content.detach()
    elif isinstance(content, Mapping):
        for name, part in content.items():
            yield from _flat(part, f"{prefix}.{name}" if prefix else str(name))
