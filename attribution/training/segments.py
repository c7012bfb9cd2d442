"""Segments of training: stretches of steps, in which parameters and learning rates are taken as constant."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.training.record import TrainingRecord

SHARED = ("attribution.training.record",)


@dataclass(frozen=True)
class Segment:
    """The training steps ``first``..``last`` - 1 (from 0), and the ``checkpoints`` that stand for them, by their steps."""

    NAME = "Segment"
    VERSION = 1

    first: int
    last: int
    checkpoints: tuple[int, ...]

    def summed_rates(self, record: TrainingRecord, clipped: bool = False) -> float:
        """η K: the sum of the learning rates of the segment's steps, with ``clipped`` times the factors of clipping.

        Raises:
            ValueError: parameter groups have different learning rates.
        """
        table = record.step_table
        inside = table[(table["step"] >= self.first) & (table["step"] < self.last)]
        _, firsts = np.unique(inside["step"], return_index=True)  # each process has a row
        rates = inside["learning_rate"][firsts]
        if (rates != rates[:, :1]).any():
            raise ValueError("parameter groups have different learning rates: use one learning rate for all parameters")
        return float((rates[:, 0] * (inside["clip_factor"][firsts] if clipped else 1)).sum())


def segments_of(recorded: Sequence[int], count: int, checkpoints: int) -> list[Segment]:
    """Divide training into ``count`` segments, and choose ``checkpoints`` recorded ones in each.

    The ``recorded`` steps, ascending and at least ``count · checkpoints``, are cut into groups of equal size (the first ones have
    one more if need be). A segment goes from the last step of the group before it to the last step of its own. Its checkpoints are
    those next to the centers of equal parts of the segment, where recorded steps are evenly spaced.
    """
    segments, first = [], 0
    for group in np.array_split(np.asarray(recorded), count):
        centers = (np.arange(checkpoints) + 0.5) * len(group) / checkpoints  # the n-th of the group ends its n-th interval
        segments.append(Segment(first, int(group[-1]), tuple(group[np.floor(centers + 0.5).astype(int) - 1].tolist())))
        first = int(group[-1])
    return segments
