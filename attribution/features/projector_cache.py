"""Projectors of the latest networks, kept because making one can take longer than using it."""

from attribution.gradients.per_example import PerExampleGradients
from attribution.nodes import key
from attribution.projection import Projection, Projector

MAX_PROJECTORS = 4
"""The largest number of projectors that are kept."""


def projector(projection: Projection, per_example: PerExampleGradients) -> Projector:
    """Return P for a network, from the cache if the layers, the device and the type are the same."""
    p = per_example.parameters[0]
    name = key(projection, sorted(per_example.blocks.items()), str(p.device), str(p.dtype))
    if name not in _projectors:
        if len(_projectors) >= MAX_PROJECTORS:
            _projectors.clear()
        _projectors[name] = projection.start(per_example.blocks, p.device)
    return _projectors[name]


_projectors: dict[str, Projector] = {}
