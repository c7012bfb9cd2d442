"""Checks of the fields of a class: errors name the class and the field, and keep the object."""

import math
from collections.abc import Callable, Sequence
from typing import Any

_UNSET = object()
LARGEST = 2**31 - 1
"""The largest count. Training records store steps as 32-bit integers."""
MAY_BE_INFINITE = "may be infinite"
"""Metadata for ``Annotated[float, MAY_BE_INFINITE]``: a field that can be infinite. Other numbers must be finite."""


class FieldError(ValueError):
    """A value that a field of an object cannot have.

    Args:
        owner: The object, with its fields as far as they are set.
        field: The field's name; ``k[2]`` for an element of a list.
        message: What is wrong and how to fix it, in a form that continues "depth=0: ".
        value: The refused value, for what ``owner`` holds under another name; by default it is read from ``owner``.
    """

    def __init__(self, owner: Any, field: str, message: str, value: Any = _UNSET) -> None:
        self.owner, self.field, self.message = owner, field, message
        self.value = _read(owner, field) if value is _UNSET else value
        super().__init__(owner, field, message, self.value)

    def __str__(self) -> str:
        return f"{type(self.owner).__name__}.{self.field}={self.value}: {self.message}"


def whole(owner: Any, field: str, least: int, most: int | None = None) -> None:
    """Raise :class:`FieldError` unless the field is a whole number of at least ``least`` and at most ``most`` (``LARGEST``)."""
    value = _read(owner, field)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= (LARGEST if most is None else most):
        large = isinstance(value, int) and value > LARGEST
        allowed = f"at least {least}" if most is None and not large else f"within {least}..{LARGEST if most is None else most}"
        raise FieldError(owner, field, f"must be a whole number, {allowed}")


def number(owner: Any, field: str, least: float, below: float = math.inf, most: float | None = None) -> None:
    """Raise :class:`FieldError` unless the field is a number of at least ``least``, below ``below`` (and at most ``most``)."""
    value = _read(owner, field)
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not least <= value < below or (most is not None and value > most):
        end = f" and below {below:g}" if below < math.inf else ""
        allowed = f"at least {least:g}{end}" if most is None else f"within {least:g}..{most:g}"
        raise FieldError(owner, field, f"must be a number, {allowed}")


def positive(owner: Any, field: str) -> None:
    """Raise :class:`FieldError` unless the field is a number above 0."""
    number(owner, field, least=0)
    if _read(owner, field) == 0:
        raise FieldError(owner, field, "must be above 0")


def listed(owner: Any, field: str, check: Callable[[Any, str], None]) -> None:
    """Raise :class:`FieldError` unless the field is a list of at least one value and ``check(owner, "field[i]")`` takes each."""
    values = _read(owner, field)
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise FieldError(owner, field, "must be a list of at least one value")
    for i in range(len(values)):
        check(owner, f"{field}[{i}]")


def _read(owner: Any, field: str) -> Any:
    name, _, index = field.removesuffix("]").partition("[")
    value = getattr(owner, name)
    return value[int(index)] if index else value
