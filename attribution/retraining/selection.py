"""The training examples of a model, with their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from attribution.nodes import class_identity, digest


@dataclass(frozen=True, eq=False)
class Selection:
    """``rows`` of a training set, int64 ``[n]`` ascending, with ``weights`` float64 ``[n]``; None means that all weights are 1.

    Training minimizes the mean over ``rows`` of weight × loss. A row of weight 0 still takes a place in its batch and counts in the
    mean's denominator; a row that is left out does neither. Identity is the content: weights that are all 1 equal None.

    Raises:
        ValueError: no row, a repeated or negative row, or weights that are negative, not finite or not one per row.
    """

    NAME = "Selection"
    VERSION = 1

    rows: np.ndarray
    weights: np.ndarray | None = None

    def __post_init__(self):
        rows = np.asarray(self.rows)
        if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu" or rows.min() < 0:
            raise ValueError(
                f"a selection needs a list of at least one row (whole numbers from 0), not {rows.dtype} of shape {rows.shape}"
            )
        order = np.argsort(rows, kind="stable")
        rows = rows[order].astype(np.int64)
        if repeated := rows[1:][rows[1:] == rows[:-1]].tolist():
            raise ValueError(f"a selection has row {repeated[0]} twice: give it a weight of 2 instead")
        object.__setattr__(self, "rows", rows)
        if self.weights is None:
            return
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.shape != rows.shape or not np.isfinite(weights).all() or weights.min() < 0:
            raise ValueError(f"a selection of {len(rows)} rows needs as many weights, finite and not negative")
        if not weights.any():
            raise ValueError("a selection needs at least one weight above 0")
        object.__setattr__(self, "weights", None if (weights == 1).all() else weights[order])

    @classmethod
    def of(cls, mask: Sequence[bool] | np.ndarray) -> Self:
        """The rows where ``mask [N]`` is true.

        Raises:
            ValueError: ``mask`` is not one boolean per row, or all of them are false.
        """
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.ndim != 1:
            raise ValueError(
                f"a mask needs one boolean per row, not {mask.dtype} of shape {mask.shape}; give rows to Selection itself"
            )
        return cls(np.flatnonzero(mask))

    @classmethod
    def without(cls, rows: Sequence[int] | np.ndarray, count: int) -> Self:
        """All of ``count`` rows except ``rows``.

        Raises:
            ValueError: a row is given twice or is not within 0..count-1, or no row is left.
        """
        rows = np.asarray(rows)
        if len(rows) and (rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= count or len(np.unique(rows)) < len(rows)):
            raise ValueError(f"rows to leave out must be different whole numbers in 0..{count - 1}")
        return cls(np.delete(np.arange(count), rows.astype(np.int64)))

    @classmethod
    def weighted(cls, weights: Sequence[float] | np.ndarray) -> Self:
        """All rows with ``weights [N]``: 0.5 counts an example half, 0.99 approximates a derivative."""
        return cls(np.arange(len(weights)), np.asarray(weights))

    def __len__(self) -> int:
        return len(self.rows)

    def weights_of(self, positions: np.ndarray) -> np.ndarray:
        """The weights of ``rows[positions]``, float64."""
        return np.ones(len(positions)) if self.weights is None else self.weights[positions]

    def description(self) -> dict[str, Any]:
        return {
            **class_identity(type(self)),
            "count": len(self),
            "rows": digest(self.rows),
            "weights": None if self.weights is None else digest(self.weights),
        }
