"""Rules for the checkpoints that training keeps, and the selection of those that an estimator uses.

A checkpoint is named by its step: the number of optimizer steps taken before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attribution.checks import FieldError, whole


@dataclass(frozen=True)
class CheckpointRule(ABC):
    """A rule for the steps at which training records a checkpoint; the last step is always one of them."""

    @abstractmethod
    def candidates(self, steps: int, steps_per_epoch: int) -> list[int]:
        """The steps to record during training."""

    def keep(self, candidates: Sequence[int], losses: np.ndarray) -> list[int]:
        """The recorded steps to keep after training, given the loss of every step ``[steps]``."""
        return list(candidates)

    def most(self, candidates: Sequence[int]) -> int:
        """The largest number of steps that ``keep`` returns."""
        return len(candidates)


@dataclass(frozen=True)
class EverySteps(CheckpointRule):
    """A checkpoint every ``every`` steps."""

    NAME = "EverySteps"
    VERSION = 1

    every: int

    def __post_init__(self):
        whole(self, "every", least=1)

    def candidates(self, steps: int, steps_per_epoch: int) -> list[int]:
        return _within(range(self.every, steps + 1, self.every), steps)


@dataclass(frozen=True)
class EveryEpochs(CheckpointRule):
    """A checkpoint every ``every`` epochs."""

    NAME = "EveryEpochs"
    VERSION = 1

    every: int = 1

    def __post_init__(self):
        whole(self, "every", least=1)

    def candidates(self, steps: int, steps_per_epoch: int) -> list[int]:
        every = self.every * steps_per_epoch
        return _within(range(every, steps + 1, every), steps)


@dataclass(frozen=True)
class AtSteps(CheckpointRule):
    """A checkpoint at each of the given ``steps``."""

    NAME = "AtSteps"
    VERSION = 1

    steps: Sequence[int]

    def candidates(self, steps: int, steps_per_epoch: int) -> list[int]:
        if outside := [s for s in self.steps if not 1 <= s <= steps]:
            raise FieldError(self, "steps", f"training takes steps 1..{steps}, without {outside}: choose from these")
        return _within(self.steps, steps)


@dataclass(frozen=True)
class SteadyDecline(CheckpointRule):
    """``count`` of the checkpoints taken every ``every`` steps, spread over the steady decline of the loss (ReTrac F.2)."""

    NAME = "SteadyDecline"
    VERSION = 1

    count: int
    every: int

    def __post_init__(self):
        whole(self, "count", least=1)
        whole(self, "every", least=1)

    def candidates(self, steps: int, steps_per_epoch: int) -> list[int]:
        candidates = EverySteps(self.every).candidates(steps, steps_per_epoch)
        if len(candidates) < self.count:
            raise FieldError(self, "count", f"{steps} steps have {len(candidates)} candidates: lower count or every={self.every}")
        return candidates

    def keep(self, candidates: Sequence[int], losses: np.ndarray) -> list[int]:
        return _within(spread_over_decline(candidates, losses, self.count), len(losses))

    def most(self, candidates: Sequence[int]) -> int:
        return min(self.count + 1, len(candidates))  # the last step is kept besides those of the decline


def steady_decline(losses: np.ndarray, start: float = 0.5, stop: float = 0.98) -> tuple[int, int]:
    """The first and last step of the steady decline of the loss ``[steps]``.

    ReTrac F.2 requires "consistent learning and a steady decline in loss", neither the unstable beginning nor convergence, but
    gives no rule. The rule here is ours: smooth the logarithm of the loss (block means over 1/50 of the training, then the running
    minimum); the decline is steady between the fractions ``start`` and ``stop`` of the total decline.
    """
    block = max(1, len(losses) // 50)
    means = np.log([chunk.mean() for chunk in np.array_split(losses, max(1, len(losses) // block))])
    level = np.minimum.accumulate(means)
    fraction = (level[0] - level) / max(level[0] - level[-1], 1e-12)
    first, last = np.searchsorted(fraction, start), np.searchsorted(fraction, stop)
    return int(first * block) + 1, min(int((last + 1) * block), len(losses))


def spread_over_decline(recorded: Sequence[int], losses: np.ndarray, count: int) -> list[int]:
    """``count`` of the ``recorded`` steps, evenly spread over those in the steady decline, or over all if these are too few.

    Over all as well if the losses are unknown (none are given).
    """
    first, last = steady_decline(losses) if len(losses) else (0, 0)
    steady = [step for step in recorded if first <= step <= last]
    candidates = steady if len(steady) >= count else list(recorded)
    return [candidates[i] for i in np.linspace(0, len(candidates) - 1, count).round().astype(int)]


def select(wanted: int | str | Sequence[int], recorded: Sequence[int], losses: np.ndarray, owner: Any = None) -> list[int]:
    """The steps that an estimator's ``checkpoints`` setting selects.

    Args:
        wanted: "all", "last", a number of checkpoints (spread over the steady decline of the loss), or a list of recorded steps.
        recorded: the steps at which training recorded a checkpoint, ascending.
        losses: the loss of every training step ``[steps]``.
        owner: the object whose field ``checkpoints`` is ``wanted``, for errors.

    Raises:
        ValueError: a step that was not recorded, more checkpoints than were recorded, or an unknown word.
    """
    check_selection(wanted, recorded, len(recorded), owner, "recorded")
    if isinstance(wanted, int):
        return spread_over_decline(recorded, losses, wanted)
    if isinstance(wanted, str):
        return list(recorded) if wanted == "all" else [recorded[-1]]
    return sorted(set(wanted))


def check_selection(
    wanted: int | str | Sequence[int], steps: Sequence[int], most: int, owner: Any = None, verb: str = "will record"
) -> None:
    """Check what ``select`` is asked for, as far as it is known before training.

    Args:
        wanted: as in ``select``.
        steps: the steps at which training may record a checkpoint, ascending.
        most: the largest number of checkpoints that it records.
        owner: the object whose field ``checkpoints`` is ``wanted``, for errors.
        verb: "will record" or "recorded".

    Raises:
        ValueError: a step that is not recorded, more checkpoints than are recorded, or an unknown word.
    """
    shown = ", ".join(map(str, steps if len(steps) <= _SHOWN else [*steps[: _SHOWN - 2], "...", steps[-1]]))
    if isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 1:
        if wanted > most:
            raise _refused(owner, wanted, f"training {verb} {most} checkpoints ({shown}): request fewer, or record more")
    elif isinstance(wanted, Sequence) and not isinstance(wanted, str) and wanted:
        if absent := sorted(set(wanted) - set(steps)):
            raise _refused(owner, wanted, f"no checkpoint at step {absent}; training {verb} {shown}")
    elif wanted not in ("all", "last"):
        raise _refused(owner, wanted, "choose all, last, a number of at least 1, or a list of at least one step")


def check_visited(
    wanted: int | str | Sequence[int], steps: Sequence[int], most: int, steps_per_epoch: int, owner: Any = None
) -> None:
    """Check, as far as it is known before training, that it has visited every example before the checkpoints of ``select``.

    Args:
        wanted: as in ``select``, and checked by ``check_selection``, as are ``steps`` and ``most``.
        steps: the steps at which training may record a checkpoint, ascending.
        most: the largest number of checkpoints that it records.
        steps_per_epoch: the steps in which training visits every example once.
        owner: the object whose field ``checkpoints`` is ``wanted``, for errors.

    Raises:
        ValueError: at least one of the checkpoints is too early.
    """
    late = [step for step in steps if step >= steps_per_epoch]
    if isinstance(wanted, int):
        early = wanted > len(late)
    elif isinstance(wanted, str):
        early = steps[-1] < steps_per_epoch or (wanted == "all" and most == len(steps) > len(late))
    else:
        early = min(wanted) < steps_per_epoch
    if early:
        shown = f"from step {steps_per_epoch} (one epoch) on training has visited every example"
        raise _refused(owner, wanted, f"{shown}: choose checkpoints from there on, or train longer")


_SHOWN = 20
"""The largest number of steps in a message."""


def _refused(owner: Any, wanted: int | str | Sequence[int], message: str) -> ValueError:
    if owner is None:
        return ValueError(f"checkpoints={wanted}: {message}")
    return FieldError(owner, "checkpoints", message, wanted)


def _within(candidates: Sequence[int] | range, steps: int) -> list[int]:
    return sorted({*candidates, steps})


def at_least(wanted: int | str | Sequence[int]) -> int:
    """A lower bound on the number of checkpoints that ``select`` returns, known before training."""
    if isinstance(wanted, int):
        return wanted
    return len(wanted) if isinstance(wanted, list | tuple) else 1
