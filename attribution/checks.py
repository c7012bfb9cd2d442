"""Checks of settings: a ValueError names the setting as the command line has it. True is no number."""

import math
from collections.abc import Callable, Sequence
from typing import Any


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError: no whole number of at least ``least`` (and at most ``most``)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"within {least}..{most}"
        raise ValueError(f"{name}={value}: must be a whole number, {allowed}")


def number(name: str, value: Any, least: float, below: float = math.inf, most: float | None = None) -> None:
    """Raises ValueError: no number of at least ``least`` and below ``below`` (and at most ``most``)."""
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if not numeric or not least <= value < below or (most is not None and value > most):
        end = f" and below {below:g}" if below < math.inf else ""
        allowed = f"at least {least:g}{end}" if most is None else f"within {least:g}..{most:g}"
        raise ValueError(f"{name}={value}: must be a number, {allowed}")


def listed(name: str, values: Any, check: Callable[[str, Any], None]) -> None:
    """``check(name[i], value)`` of each of ``values``. Raises ValueError: no list, an empty one, or what ``check`` refuses."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ValueError(f"{name}={values}: must be a list of at least one value")
    for i, value in enumerate(values):
        check(f"{name}[{i}]", value)
