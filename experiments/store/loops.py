"""The loops that this process is in, for the message of an interrupted run. This module is imported before all others."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class _Loop:
    title: str
    total: int | None
    done: int = 0

    def __str__(self) -> str:
        share = "" if self.total is None else f"/{self.total}"
        return f"{self.title} ({self.done}{share})" if self.total != 1 else self.title


_open: list[_Loop] = []


def innermost() -> str:
    """Return the title of the innermost loop and how far it is, or the empty string."""
    return str(_open[-1]) if _open else ""


def noted(iterable: Iterable[T], title: str, total: int | None) -> Iterator[T]:
    """Yield the items of ``iterable``, and note the loop until it ends."""
    loop = _Loop(title, total)
    _open.append(loop)
    try:
        for item in iterable:
            yield item
            loop.done += 1
    finally:
        _open.remove(loop)
