"""Artifacts that consist of a few NumPy arrays."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np

from attribution.nodes.artifact import Artifact


@dataclass(frozen=True, eq=False)
class Arrays(Artifact):
    """Base class of dataclasses whose fields are arrays, or None where that is the default. Each is stored in ``<field>.npy``."""

    MAPPED: ClassVar[Literal["r"] | None] = None
    """ "r" maps the files into memory instead of reading them: for arrays that may be large."""

    def save(self, folder: Path) -> None:
        for field in fields(self):
            if (array := getattr(self, field.name)) is not None:
                np.save(folder / f"{field.name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Self:
        stored = [f.name for f in fields(cls) if f.default is not None or (folder / f"{f.name}.npy").exists()]
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode=cls.MAPPED) for name in stored})
