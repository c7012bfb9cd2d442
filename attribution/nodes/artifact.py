"""What nodes compute: artifacts that write themselves to a folder and read themselves back."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self


class Artifact(ABC):
    """The result of a node. Files are safetensors, npy or json; large ones are read lazily."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the artifact into ``folder``, which exists."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read an artifact that ``save`` wrote."""
