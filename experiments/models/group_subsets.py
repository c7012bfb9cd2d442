"""Subsets that keep or leave out whole groups of training images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attribution.checks import FieldError, number, whole
from attribution.images import Images
from experiments.datasets.groups import DUPLICATES, GroupError, groups_of
from experiments.metrics.groups import indicators
from experiments.models.subsets import Subsets

SHARED = ("experiments.datasets.groups", "experiments.metrics.duplicates", "experiments.metrics.groups")

LEAST = 3
"""The fewest groups with a correlation over groups."""


@dataclass(frozen=True, kw_only=True)
class GroupSubsets(Subsets):
    """``count`` different random subsets, each of the fraction ``kept`` of the groups.

    ``groups`` and ``distance`` define the groups (``experiments.datasets.groups``), each of which is in one piece. Images without a
    near-duplicate are in no cluster and in every subset; other groups together have all images.
    """

    NAME = "GroupSubsets"
    VERSION = 1

    groups: str
    distance: float
    count: int
    kept: float = 0.5
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        number(self, "distance", least=0, most=1)
        whole(self, "count", least=2)
        if not 0 < self.kept < 1:
            raise FieldError(self, "kept", "must be between 0 and 1")

    def groups_in(self, train: Images) -> dict[str, np.ndarray]:
        """The rows of each group.

        Raises:
            FieldError: there are no such groups, fewer than three, one of all images, an image in several groups or in none.
        """
        try:
            groups = groups_of(train, self.groups, self.distance)
        except GroupError as error:
            raise FieldError(self, "distance" if error.distance else "groups", str(error)) from error
        self._check(groups, train)
        return groups

    def kept_groups(self, groups: int) -> np.ndarray:
        """True where a subset keeps one of so many ``groups``, bool ``[M, G]``. The first subsets of more are the same.

        Raises:
            FieldError: every group would be kept, or none, or there are fewer different subsets than ``count``.
        """
        kept = round(self.kept * groups)
        if not 0 < kept < groups:
            raise FieldError(
                self, "kept", f"that is {kept} of {groups} groups: at least one must be kept, and at least one left out"
            )
        if (most := math.comb(groups, kept)) < self.count:
            message = f"there are only {most} different subsets of {kept} of {groups} groups: give at most {most}"
            raise FieldError(self, "count", message)
        random, subsets = np.random.default_rng([self.seed, 0x6E0]), {}
        while len(subsets) < self.count:
            subsets[tuple(sorted(random.permutation(groups)[:kept].tolist()))] = None
        masks = np.zeros((self.count, groups), bool)
        for mask, chosen in zip(masks, subsets, strict=True):
            mask[list(chosen)] = True
        return masks

    def masks(self, train: Images) -> np.ndarray:
        groups = self.groups_in(train)
        return with_groups(self.kept_groups(len(groups)), groups, len(train))

    def _check(self, groups: Mapping[str, np.ndarray], train: Images) -> None:
        times = indicators(groups, len(train)).sum(0)
        everything = next((name for name, rows in groups.items() if len(rows) == len(train)), None)
        clustered = self.groups == DUPLICATES
        decided_by = "distance" if clustered else "groups"
        if everything is not None:
            what = "lower it" if clustered else "divide them into more groups"
            message = f"group {everything} has all training images, and nothing would be left without it: {what}"
            raise FieldError(self, decided_by, message)
        if len(groups) < LEAST:
            what = "raise it" if clustered else "divide the images into more groups"
            message = f"a correlation over groups needs at least {LEAST}, but the training images have {len(groups)}: {what}"
            raise FieldError(self, decided_by, message)
        if (several := np.flatnonzero(times > 1)).size:
            message = (
                f"{several.size} training images are in several groups (such as {train.name(int(several[0]))}): give each one group"
            )
            raise FieldError(self, "groups", message)
        if not clustered and (absent := np.flatnonzero(times == 0)).size:
            message = (
                f"{absent.size} training images are in no group (such as {train.name(int(absent[0]))}): give each a group, for "
                f"example one for all others"
            )
            raise FieldError(self, "groups", message)


def with_groups(kept: np.ndarray, groups: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """True where a subset has an image, ``[M, N]``; it lacks those of groups that ``kept [M, G]`` is false for, and no others."""
    return (~kept).astype(np.float64) @ indicators(groups, count) == 0


def circular_orders(groups: int, count: int, seed: int) -> np.ndarray:
    """``count`` random circular orders of the groups, ``[count, G]``. An order does not depend on ``count``."""
    return np.stack([np.random.default_rng([seed, 0x5A1E, circle]).permutation(groups) for circle in range(count)])
