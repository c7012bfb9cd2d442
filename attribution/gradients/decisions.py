"""Which tensors of an operation with a parameter have one row for each input of a pass."""

from collections.abc import Hashable
from itertools import product
from typing import ClassVar

Sizes = tuple[int, ...]
"""The first dimensions of the tensors of an operation."""

Decision = tuple[int | None, ...]
"""The same for passes of any size: None stands for the number of inputs."""


class Decisions:
    """Which first dimensions are the number of inputs, by comparison of passes over different numbers of inputs.

    In a single pass, a constant of as many rows looks like a tensor of the batch. The first passes, until ``closed`` is set, are
    one over ``INPUTS`` inputs and those that are compared with autograd. Later passes follow them.
    """

    INPUTS: ClassVar[int] = 5
    """Larger than the number of inputs that are compared with autograd."""

    def __init__(self):
        self._seen: dict[Hashable, dict[int, set[Sizes]]] = {}
        self._known: dict[Hashable, list[Decision]] = {}
        self.closed = False

    @property
    def empty(self) -> bool:
        """Whether no pass has had an operation yet."""
        return not self._seen

    def decide(self, operation: tuple[str, *tuple[Hashable, ...]], sizes: Sizes, inputs: int, names: frozenset[str]) -> list[bool]:
        """Return which of ``sizes`` are the number of inputs.

        ``operation`` is what identifies the operation in passes of any size; its name comes first.

        Raises:
            RuntimeError: there is more than one possibility, or the first passes had no such operation; the message names the
                parameters.
        """
        if not self.closed:
            self._seen.setdefault(operation, {}).setdefault(inputs, set()).add(sizes)
        elif operation not in self._known:
            self._known[operation] = self._possible(operation)
        possible = self._known[operation] if self.closed else self._possible(operation)
        fits = [decision for decision in possible if _at(decision, inputs) == sizes]
        if inputs in sizes and inputs > 1 and self.closed and operation not in self._seen:
            raise RuntimeError(
                f"{', '.join(sorted(names))}: {operation[0]} was not among the operations of the first passes, which are compared "
                "with autograd: use the parameter in the same operations for all inputs, with a factor of 0 where it has no effect"
            )
        # The first pass has nothing to compare with, and at a single input any decision is right if the output has one row.
        if len(fits) > 1 and inputs > 1 and len(self._seen[operation]) > 1:
            raise RuntimeError(
                f"{', '.join(sorted(names))}: in a pass over {inputs} network inputs, {operation[0]} does not show which "
                "tensors have one row for each input, because another dimension has the same size: choose another batch size"
            )
        if len(fits) == 1:
            return [size is None for size in fits[0]]
        return [size == inputs for size in sizes]

    def _possible(self, operation: Hashable) -> list[Decision]:
        """The decisions that fit to some call of ``operation`` in each of the first passes that had it."""
        passes = self._seen.get(operation, {})
        candidates = {
            decision
            for inputs, calls in passes.items()
            for sizes in calls
            for decision in product(*((None, size) if size == inputs else (size,) for size in sizes))
        }
        return [one for one in candidates if all(_at(one, inputs) in calls for inputs, calls in passes.items())]


def _at(decision: Decision, inputs: int) -> Sizes:
    return tuple(inputs if size is None else size for size in decision)
