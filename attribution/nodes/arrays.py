"""Artifacts that consist of a few NumPy arrays."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np

from attribution.nodes.artifact import Artifact


@dataclass(frozen=True, eq=False)
class Arrays(Artifact):
    """Base class of dataclasses whose fields are arrays. Each array is stored in ``<field>.npy``."""

    MAPPED: ClassVar[Literal["r"] | None] = None
    """ "r" maps the files into memory instead of reading them: for arrays that may be large."""

    def save(self, folder: Path) -> None:
        for field in fields(self):
            np.save(folder / f"{field.name}.npy", getattr(self, field.name))

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**{field.name: np.load(folder / f"{field.name}.npy", mmap_mode=cls.MAPPED) for field in fields(cls)})
