"""Artifacts that are a few NumPy arrays and nothing else."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np

from attribution.nodes import Artifact


@dataclass(frozen=True, eq=False)
class Arrays(Artifact):
    """Subclasses are dataclasses whose fields are arrays: each is a file of its name."""

    MAPPED: ClassVar[Literal["r"] | None] = None
    """ "r" where the arrays may be too large to read whole."""

    def save(self, folder: Path) -> None:
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**{field.name: np.load(folder / f"{field.name}.npy", mmap_mode=cls.MAPPED) for field in fields(cls)})
