"""The size of artifacts in memory."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def held_bytes(value: Any) -> int:
    """Return the bytes of the tensors and arrays in ``value``: in the fields of dataclasses, in mappings, lists and tuples."""
    if isinstance(value, Tensor | np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(held_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(held_bytes, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(held_bytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0
