"""The conditions of generated images: those of training images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attribution.images import ImageSet, philox
from attribution.images.conditions import is_class
from attribution.nodes import Get
from attribution.transfers import to_device
from experiments.datasets.conditions import Generated
from experiments.datasets.splitting import NO_LABEL

SHARED = ("attribution.images.conditions", "attribution.images.philox")


@dataclass(frozen=True)
class SampleConditions:
    """The conditions of generated images, taken from the training images ``train``.

    ``choice``: "in_turn", every class of the training set in turn, sample i the (i mod C)-th of C; or "training", that of a random
    training image, which is a function of the seed and i.
    """

    NAME = "SampleConditions"
    VERSION = 1

    train: ImageSet
    choice: Generated

    def rows(self, label: np.ndarray, index: np.ndarray, seed: int) -> np.ndarray:
        """The row of the training image whose condition each of the samples ``index [n]`` gets, given the labels ``[N]``."""
        if self.choice == "in_turn":
            _, first = np.unique(label, return_index=True)
            return first[index % len(first)]
        return np.array([philox.key(seed, "condition", int(i))[0] * len(label) >> 32 for i in index], np.int64)


def conditions_of(
    conditions: SampleConditions | None, index: np.ndarray, seed: int, get: Get
) -> tuple[np.ndarray | None, np.ndarray]:
    """The conditions ``[n, ...]`` of the samples ``index [n]``, and their labels ``[n]``, which are those of classes."""
    unlabeled = np.full(len(index), NO_LABEL)
    if conditions is None:
        return None, unlabeled
    train = get(conditions.train)
    rows = conditions.rows(np.asarray(train.label), index, seed)
    given = train.conditions(rows)
    assert given is not None
    return given.numpy(), given.numpy() if is_class(given) else unlabeled


def on_device(condition: np.ndarray | None, device: torch.device) -> Tensor | None:
    """``condition`` as a tensor on ``device``."""
    return None if condition is None else to_device(torch.from_numpy(condition), device)
