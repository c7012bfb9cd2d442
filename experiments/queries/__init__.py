"""Choices of the images to explain (``queries=``)."""

from experiments.queries.base import Queries
from experiments.queries.by_source import GeneratedOfEach, HeldOutOfEach
from experiments.queries.folder import Folder, ImageFolder
from experiments.queries.generated import Generated
from experiments.queries.none import NoQueries
from experiments.queries.splits import Training, Validation

__all__ = [
    "Folder",
    "Generated",
    "GeneratedOfEach",
    "HeldOutOfEach",
    "ImageFolder",
    "NoQueries",
    "Queries",
    "Training",
    "Validation",
]
