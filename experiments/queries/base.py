"""The interface of a choice of images to explain."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from attribution.images import ImageSet
from experiments.models.experiment import Experiment


@dataclass(frozen=True, kw_only=True)
class Queries(ABC):
    """The images to explain, chosen once the experiment is known."""

    @abstractmethod
    def node(self, experiment: Experiment) -> ImageSet:
        """Return the node of the query images.

        Raises:
            ValueError: the settings do not fit the experiment, for example because they ask for more images than there are.
        """
