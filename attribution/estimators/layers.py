"""Which layers scores are sums over.

Inner products of gradients are sums over layers, and so are all scores that are made of them layer by layer: those of gradient
similarities, of estimators that replay training, and of influence functions whose curvature is block diagonal. ``layers`` of these
estimators chooses some of them (``OnlyLayers``), or learns weights of groups of them (``layer_weights``).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from attribution.checks import FieldError

V = TypeVar("V")

_SHOWN = 8
"""The number of names in a message."""


class Layers(ABC):
    """The layers that scores are sums over. Names are those of per-example gradients: of modules, or of bare parameters."""

    @abstractmethod
    def part(self, of_layers: Mapping[str, V]) -> dict[str, V]:
        """Return the entries of the layers whose gradients are multiplied."""

    def size(self, shapes: Mapping[str, tuple[int, int]]) -> int:
        """The number of parameters whose gradients are multiplied, of layers of these ``shapes``."""
        return sum(rows * columns for rows, columns in self.part(shapes).values())


@dataclass(frozen=True)
class AllLayers(Layers):
    """All layers, with weight 1."""

    NAME = "AllLayers"
    VERSION = 1

    def part(self, of_layers: Mapping[str, V]) -> dict[str, V]:
        return dict(of_layers)


@dataclass(frozen=True)
class OnlyLayers(Layers):
    """The layers of these ``names``. Over a partition of the layers, such scores add up to those of all layers."""

    NAME = "OnlyLayers"
    VERSION = 1

    names: Sequence[str]

    def __post_init__(self):
        if isinstance(self.names, str) or not isinstance(self.names, Sequence) or not self.names:
            raise FieldError(self, "names", "must be a list of at least one name of a layer")

    def part(self, of_layers: Mapping[str, V]) -> dict[str, V]:
        return {name: value for name, value in of_layers.items() if name in self.names}


def check_layers(owner: Any, known: Sequence[str]) -> None:
    """Check the field ``layers`` of an estimator that covers the layers ``known``.

    Raises:
        FieldError: it is not one of the classes here, or names a layer that the estimator does not cover.
    """
    if not isinstance(owner.layers, Layers):
        raise FieldError(owner, "layers", "give AllLayers(), OnlyLayers(names) or LayerWeights()")
    if isinstance(owner.layers, OnlyLayers) and (unknown := [name for name in owner.layers.names if name not in known]):
        shown = [*known[:_SHOWN], *(["..."] if len(known) > _SHOWN else [])]
        raise FieldError(
            owner.layers, "names", f"{unknown[0]} is none of the {len(known)} layers that scores cover: {', '.join(shown)}"
        )


def refuse_layers(estimator: Any, what: str) -> None:
    """Raise :class:`FieldError` unless the scores of ``estimator`` are sums over all layers with weight 1, which ``what`` needs."""
    if not isinstance(getattr(estimator, "layers", AllLayers()), AllLayers):
        raise FieldError(estimator, "layers", f"{what} is of all layers with weight 1: choose all")
