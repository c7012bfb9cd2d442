"""Subsets of the training set that models are retrained on, as for the LDS (Park et al. 2023)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attribution.checks import FieldError, whole
from attribution.images import Images
from attribution.nodes import added
from attribution.retraining.selection import Selection


@dataclass(frozen=True, kw_only=True)
class Subsets(ABC):
    """M subsets. ``weight`` is the weight of the examples outside a subset: 0 removes them, a larger one reduces their weight."""

    weight: float = 0.0

    def __post_init__(self):
        if not 0 <= self.weight < 1:
            raise FieldError(self, "weight", "give the examples outside a subset a weight of at least 0 and below 1")

    @abstractmethod
    def masks(self, train: Images) -> np.ndarray:
        """True where a subset contains an example, ``[M, N]``."""

    def selections(self, train: Images) -> list[Selection]:
        """The selection that each model is trained on."""
        return self.selections_of(self.masks(train))

    def selections_of(self, masks: np.ndarray) -> list[Selection]:
        """The selection for each of ``masks [M, N]``, which are true where a model has an example."""
        if self.weight == 0:
            return [Selection.of(mask) for mask in masks]
        return [Selection.weighted(np.where(mask, 1.0, self.weight)) for mask in masks]

    def removed(self, train: Images) -> np.ndarray:
        """The weight that each example loses, ``[M, N]``."""
        return (1 - self.weight) * ~self.masks(train)


def check_variation(owner: Any, masks: np.ndarray) -> None:
    """Check that every subset of ``masks [M, N]`` keeps and leaves out something, and that subsets differ.

    Raises:
        FieldError: they do not; ``owner`` has the subsets in its field ``subsets``.
    """
    for kept, what in ((~masks.any(1), "no training image"), (masks.all(1), "every training image")):
        if subsets := np.flatnonzero(kept).tolist():
            raise FieldError(
                owner,
                "subsets",
                f"subset {subsets[0]} keeps {what}: remove it, or choose a fraction nearer to 0.5",
                f"{len(masks)} subsets",
            )
    if (masks == masks[0]).all():
        message = f"all {len(masks)} leave out the same images, so nothing varies: give different ones"
        raise FieldError(owner, "subsets", message, f"{len(masks)} subsets")


@dataclass(frozen=True, kw_only=True)
class RandomSubsets(Subsets):
    """``count`` random subsets of ``fraction`` of the examples; ``stratified``: the same fraction of every class."""

    NAME = "RandomSubsets"
    VERSION = 1

    count: int
    fraction: float = 0.5
    stratified: bool = False
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        whole(self, "count", least=2)
        if not 0 < self.fraction < 1:
            raise FieldError(self, "fraction", "must be between 0 and 1")

    def masks(self, train: Images) -> np.ndarray:
        random = np.random.default_rng([self.seed, 0x5B5E7])
        classes = (
            [np.flatnonzero(train.label == label) for label in np.unique(train.label)]
            if self.stratified
            else [np.arange(len(train))]
        )
        masks = np.zeros((self.count, len(train)), dtype=bool)
        for mask in masks:
            for rows in classes:
                share = self.fraction * len(rows)
                # Rounding at random keeps the only image of a class in half of all halves, instead of in none.
                kept = int(share) + (random.random() < share % 1) if self.stratified else round(share)
                mask[random.permutation(rows)[:kept]] = True
        return masks

    def selections(self, train: Images) -> list[Selection]:
        if self.weight == 0 and not self.masks(train).any(1).all():
            raise FieldError(self, "fraction", f"a subset of {len(train)} training images would be empty: raise it")
        return super().selections(train)


@dataclass(frozen=True, kw_only=True)
class VariedSubsets(Subsets):
    """``count`` random subsets of different sizes, evenly from the fraction ``least`` to ``most`` of the examples.

    The number of images that they leave out varies too, so that it predicts something.
    """

    NAME = "VariedSubsets"
    VERSION = 1

    count: int
    least: float = 0.3
    most: float = 0.7
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        whole(self, "count", least=2)
        for name in ("least", "most"):
            if not 0 < getattr(self, name) < 1:
                raise FieldError(self, name, "must be between 0 and 1")
        if self.least >= self.most:
            raise FieldError(self, "least", f"must be below the largest fraction, most={self.most}")

    def masks(self, train: Images) -> np.ndarray:
        random, N = np.random.default_rng([self.seed, 0x517E]), len(train)
        masks = np.zeros((self.count, N), dtype=bool)
        for mask, fraction in zip(masks, np.linspace(self.least, self.most, self.count), strict=True):
            mask[random.permutation(N)[: round(fraction * N)]] = True
        return masks


@dataclass(frozen=True, kw_only=True)
class PublishedSubsets(Subsets):
    """The first ``count`` subsets in ``path``: masks ``[M, N]``, or the positions ``[M, n]`` of their examples.

    The file is an npy file, or an npz file with the array ``key``. There, bytes ``[M, ⌈N/8⌉]`` are masks that ``numpy.packbits``
    packed.
    """

    NAME = "PublishedSubsets"
    VERSION = 1

    path: str
    key: str | None = added(default=None)
    count: int | None = None

    def masks(self, train: Images) -> np.ndarray:
        """Raises ValueError: the file does not exist, is damaged, or does not fit the training set."""
        name = f"benchmark.subsets.path={self.path} (or estimator.subsets)"
        if not Path(self.path).is_file():
            raise ValueError(f"{name}: no such file")
        try:
            table = self._table()[: self.count]
        except KeyError as error:
            raise ValueError(f"{name} has no array {self.key!r}: set the key to one of {error.args[0]}") from error
        except (OSError, ValueError, EOFError, IndexError, TypeError) as error:
            raise ValueError(f"{name} is not an npy file of numbers: save masks or positions with numpy.save") from error
        if self.key is not None and table.dtype == np.uint8 and table.shape[1:] == (-(-len(train) // 8),):
            table = np.unpackbits(table, axis=1, count=len(train)).astype(bool)
        if table.ndim != 2 or 0 in table.shape:
            raise ValueError(f"{name} holds an array of shape {list(table.shape)}: give at least one mask or list of positions")
        if table.dtype == bool and table.shape[1] == len(train):
            masks = table
        elif table.dtype.kind in "iu" and table.min() >= 0 and table.max() < len(train):
            masks = np.zeros((len(table), len(train)), dtype=bool)
            np.put_along_axis(masks, table, True, axis=1)
            if repeated := np.flatnonzero(masks.sum(1) < table.shape[1]).tolist():
                hint = "save masks as booleans, not as numbers" if table.max() <= 1 else "give each position of a subset once"
                raise ValueError(f"{name} holds positions, and subset {repeated[0]} has one of them twice: {hint}")
        else:
            raise ValueError(
                f"{name} holds {table.dtype} {list(table.shape)}: "
                f"give masks [M, {len(train)}] or positions [M, n] below {len(train)}"
            )
        if empty := np.flatnonzero(~masks.any(1)).tolist():
            raise ValueError(f"{name}: subsets {empty} keep no training image: remove them")
        return masks

    def _table(self) -> np.ndarray:
        """The array in the file. Raises KeyError with the keys of an npz file that lacks ``key``."""
        if self.key is None:
            return np.load(self.path, allow_pickle=False)
        with np.load(self.path, allow_pickle=False) as file:
            if self.key not in file:
                raise KeyError(sorted(file))
            return file[self.key]
