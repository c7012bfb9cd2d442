"""The scores that an estimator computes, and how they are stored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from attribution.images.bins import ALL
from attribution.nodes import Artifact


@dataclass(frozen=True, eq=False)
class Scores(Artifact):
    """τ[.., q, i]: how much training on example i lowers the cost of query q. Positive scores are proponents.

    ``values`` float32 ``[.., Q, N]``: the leading axes are the swept values that ``axes`` names, in order (damping, draws).
    ``query_index [Q]`` and ``train_index [N]``: the ids of rows and columns in their sources. ``halves`` float32 ``[2, Q, N]``: the
    scores from each half of the query draws, over all bins of timesteps. Their agreement is the reliability of ``values``. Only
    some estimators provide them. ``cross`` float32 ``[.., R, S, Q, N]``: the scores from group r of a query's draws and group s of
    a training image's, whose mean is ``values``; S is 1 if training images have no groups. None: there are no replicates.
    """

    values: np.ndarray
    query_index: np.ndarray
    train_index: np.ndarray
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    halves: np.ndarray | None = None
    cross: np.ndarray | None = None

    def at(self, **axes: Any) -> "Scores":
        """Return the scores at one value of each swept axis, ``[Q, N]``.

        Raises:
            ValueError: the value of an axis is missing, or was not computed.
        """
        position = []
        for name, values in self.axes.items():
            if axes.get(name) not in list(values):
                raise ValueError(
                    f"there are no scores at {name}={axes.get(name)} (a damping may be too small for the curvature): "
                    f"choose one of {list(values)}"
                )
            position.append(list(values).index(axes[name]))
        whole = all(value == ALL for name, value in axes.items() if name.endswith("_bin"))
        cross = None if self.cross is None else self.cross[tuple(position)]
        return Scores(self.values[tuple(position)], self.query_index, self.train_index, {}, self.halves if whole else None, cross)

    def save(self, folder: Path) -> None:
        np.save(folder / "scores.npy", self.values)
        np.save(folder / "query_index.npy", self.query_index)
        np.save(folder / "train_index.npy", self.train_index)
        if self.halves is not None:
            np.save(folder / "halves.npy", self.halves)
        if self.cross is not None:
            np.save(folder / "cross.npy", self.cross)
        (folder / "axes.json").write_text(json.dumps({name: list(values) for name, values in self.axes.items()}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the scores in a folder of the store, or of ``task=attribute``. Arrays are memory-mapped."""
        folder = Path(folder)

        def read(name: str) -> np.ndarray:
            return np.load(folder / f"{name}.npy", mmap_mode="r")

        return cls(
            read("scores"),
            read("query_index"),
            read("train_index"),
            json.loads((folder / "axes.json").read_text()),
            *(read(name) if (folder / f"{name}.npy").exists() else None for name in ("halves", "cross")),
        )
