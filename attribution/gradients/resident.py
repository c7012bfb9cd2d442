"""Gradients of queries that stay on the device while one block of training examples after another is multiplied with them."""

from collections.abc import Sequence
from typing import Any, Protocol, Self
from weakref import WeakKeyDictionary

import torch

from attribution.gradients.per_example import PerExampleGradients
from attribution.nodes import Get, Node

SHARED = ("attribution.gradients.per_example",)


class Movable(Protocol):
    """An artifact of tensors."""

    def to(self, device: torch.device) -> Self: ...


_resident: WeakKeyDictionary[PerExampleGradients, tuple[list[str], list[Any]]] = WeakKeyDictionary()
"""The artifacts that were asked for last, as long as the network that they are used with is in memory."""


def batches_within(blocks: Sequence[Node], limit: float) -> list[list[int]]:
    """Divide blocks, in order, into as few batches as possible whose sizes (the disk of their cost) add up to at most ``limit``.

    Returns the positions of the blocks in each batch, at least one.
    """
    batches: list[list[int]] = []
    held = 0.0
    for position, block in enumerate(blocks):
        size = block.cost().disk
        if not batches or held + size > limit:
            batches.append([])
            held = 0.0
        batches[-1].append(position)
        held += size
    return batches


def resident(per_example: PerExampleGradients, blocks: Sequence[Node[Any]], get: Get) -> list[Any]:
    """Return the artifacts of ``blocks`` on the device of a network. They stay there for the next call with the same blocks."""
    names = [block.fingerprint for block in blocks]
    before, artifacts = _resident.get(per_example, ([], []))
    if before != names:
        _resident.pop(per_example, None)
        del artifacts  # frees the memory before the next ones are loaded
        device = per_example.parameters[0].device
        artifacts = [get(block).to(device) for block in blocks]
        _resident[per_example] = names, artifacts
    return artifacts
