"""Attribution to a part of a model's parameters: the others count as constants."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from attribution.checks import FieldError
from attribution.models.trained import Trained
from attribution.nodes import Get
from attribution.training.record import Recorded

SHARED = ("attribution.models.trained", "attribution.training.record")

_SHOWN = 4
"""The number of names in a message."""


class Parameters(ABC):
    """Which parameters of a model are attributed to."""

    @abstractmethod
    def of(self, trained: Trained) -> Trained:
        """``trained``, of which only these parameters have gradients.

        Raises:
            FieldError: none of its trainable parameters is chosen.
        """


@dataclass(frozen=True)
class All(Parameters):
    """All trainable parameters."""

    def of(self, trained: Trained) -> Trained:
        return trained


@dataclass(frozen=True)
class Matching(Parameters):
    """The trainable parameters with a part of their name that matches the regular expression ``pattern``."""

    pattern: str

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise FieldError(self, "pattern", f"is not a regular expression ({error})") from error

    def of(self, trained: Trained) -> Trained:
        names = [name for name, p in trained.outline.named_parameters() if p.requires_grad]
        chosen = [name for name in names if re.search(self.pattern, name)]
        if not chosen:
            ends = ", ".join([*names[:_SHOWN], *(["..."] if len(names) > 2 * _SHOWN else []), *names[_SHOWN:][-_SHOWN:]])
            raise FieldError(self, "pattern", f"matches none of the {len(names)} trainable parameters: {ends}")
        if chosen == names:
            return trained
        model, objective = Partly(trained.model, self.pattern), trained.objective
        if isinstance(trained, Recorded):
            return SelectedRecorded(model=model, objective=objective, trained=trained, pattern=self.pattern)
        return Selected(model=model, objective=objective, trained=trained, pattern=self.pattern)


ALL = All()


@dataclass(frozen=True)
class Partly:
    """The constructor of a network in which only the parameters that match ``pattern`` require gradients."""

    NAME = "Partly"
    VERSION = 1

    model: Callable[[], nn.Module]
    pattern: str

    def __call__(self) -> nn.Module:
        return frozen(self.model(), self.pattern)


def frozen(network: nn.Module, pattern: str) -> nn.Module:
    """``network``, of whose trainable parameters those that do not match ``pattern`` no longer require gradients."""
    for name, p in network.named_parameters():
        p.requires_grad_(p.requires_grad and re.search(pattern, name) is not None)
    return network


@dataclass(frozen=True, kw_only=True)
class Selected(Trained[Any]):
    """``trained`` with the gradients of the parameters that match ``pattern``. It is not trained or stored again."""

    NAME = "Selected"
    VERSION = 1
    TITLE = "a part of the parameters"
    STORED = False

    trained: Trained
    pattern: str

    @property
    def GIVEN(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.trained.GIVEN

    def notes(self, replayed: bool) -> list[str]:
        return self.trained.notes(replayed)

    def member(self, i: int) -> Trained:
        return Matching(self.pattern).of(self.trained.member(i))

    def network(self, get: Get, step: int | None = None) -> nn.Module:
        return frozen(self.trained.network(get, step), self.pattern)

    def compute(self, get: Get) -> Any:
        """The result of the training."""
        return get(self.trained)


@dataclass(frozen=True, kw_only=True)
class SelectedRecorded(Selected, Recorded):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The same for a model with checkpoints."""

    NAME = "SelectedRecorded"
    VERSION = 1
    TITLE = "a part of the parameters"

    trained: Recorded

    @property
    def VISITS(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.trained.VISITS

    def check_checkpoints(self, wanted: int | str | Sequence[int], owner: Any, visited: bool = False) -> None:
        self.trained.check_checkpoints(wanted, owner, visited)

    def check_learning_rates(self, owner: Any, field: str) -> None:
        self.trained.check_learning_rates(owner, field)


def unselected(trained: Trained) -> Trained:
    """The model of which ``trained`` may be a part."""
    return trained.trained if isinstance(trained, Selected) else trained
