"""What a page lets its reader explore: for every query the top training images of each estimator, as JSON values."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import numpy as np

from attribution.images import Images
from experiments.metrics.ranking import both_ends
from experiments.report.attributions import Attributions
from experiments.report.page import thumbnails

TOP = 16
"""The largest number of proponents, and of opponents, of a query on the page."""
SCORES, ENTRIES, IMAGE_BYTES = 10_000_000, 200_000, 4_000_000
"""Limits of a page: scores of one estimator that are ranked, training images listed for queries, and bytes of thumbnails."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """Positions of training images, best first: proponents and opponents ``[C, k]`` of the first C queries."""

    label: str
    proponents: np.ndarray
    opponents: np.ndarray


@dataclass(frozen=True, eq=False)
class Ranked:
    """The rankings of one kind of queries, and the estimators that have none because a score is not finite."""

    attributions: Attributions
    rankings: Sequence[Ranking]
    not_finite: Sequence[str]

    @property
    def count(self) -> int:
        """C, the number of ranked queries."""
        return len(self.rankings[0].proponents) if self.rankings else 0


def ranked(attributions: Attributions, kinds: int = 1) -> Ranked:
    """Rank the training images for the first queries, as many as the limits of a page with so many ``kinds`` allow."""
    N, estimators = len(attributions.train), max(1, len(attributions.scores))
    k = min(TOP, N)
    count = min(len(attributions.queries), max(1, SCORES // N), max(1, ENTRIES // (kinds * estimators * 2 * k)))
    rankings, not_finite = [], []
    for label, scores in attributions.scores.items():
        scores = np.asarray(scores[:count])
        if np.isfinite(scores).all():
            rankings.append(Ranking(label, *both_ends(scores, k).values()))
        else:
            not_finite.append(label)
    return Ranked(attributions, rankings, not_finite)


@dataclass
class Shown:
    """The training images of a page, each once, in the order in which they were added."""

    places: dict[tuple[int, int], int] = field(default_factory=dict)
    sets: dict[int, Images] = field(default_factory=dict)

    def place(self, train: Images, position: int) -> int:
        """The place of an image on the page; it is added if it is new."""
        self.sets[id(train)] = train
        return self.places.setdefault((id(train), int(position)), len(self.places))

    def of(self, train: Images) -> list[int]:
        """The positions of the images of ``train`` that are on the page."""
        return [position for owner, position in self.places if owner == id(train)]

    def described(self) -> list[dict[str, Any]]:
        """Id, name, label and thumbnail of every image."""
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for owner, train in self.sets.items():
            positions = self.of(train)
            folder = thumbnails.TRAIN if thumbnails.is_reduced(train) else None
            found |= {(owner, p): d for p, d in zip(positions, descriptions(train, positions, folder), strict=True)}
        return [found[key] for key in self.places]


def explorer(sets: Sequence[Ranked], shown: Shown) -> dict[str, Any]:
    """The queries of every kind with their proponents and opponents by place in ``shown``, which gets the images.

    Each kind of queries has: ``name``; ``count``, the number of all queries; ``queries``; ``estimators``, each with its ``label``,
    places of ``proponents`` and ``opponents`` ``[C][k]``, and their scores ``up`` and ``down`` ``[C][k]``. With replicates of
    draws, ``up_noise`` and ``down_noise`` are 1 where a score is within its noise.
    """
    kinds = [_kind(of_kind, shown, IMAGE_BYTES // len(sets)) for of_kind in sets if of_kind.rankings]
    return {"kinds": kinds, "train": shown.described()}


def _kind(of_kind: Ranked, shown: Shown, room: int) -> dict[str, Any]:
    attributions, train = of_kind.attributions, of_kind.attributions.train
    count = _queries_that_fit(of_kind, room)
    estimators = []
    for ranking in of_kind.rankings:
        scores = np.asarray(attributions.scores[ranking.label][:count], dtype=np.float64)
        entry: dict[str, Any] = {"label": ranking.label}
        for side, values, positions in (("proponents", "up", ranking.proponents), ("opponents", "down", ranking.opponents)):
            positions = positions[:count]
            entry[side] = [[shown.place(train, position) for position in line] for line in positions.tolist()]
            chosen = np.take_along_axis(scores, positions, 1)
            entry[values] = [[_rounded(s) for s in line] for line in chosen.tolist()]
            if (noise := attributions.noise.get(ranking.label)) is not None:
                entry[f"{values}_noise"] = (np.abs(chosen) <= np.take_along_axis(noise[:count], positions, 1)).astype(int).tolist()
        estimators.append(entry)
    queries = descriptions(attributions.queries, range(count), thumbnails.folder_of(attributions.kind))
    return {"name": attributions.kind, "count": len(attributions.queries), "queries": queries, "estimators": estimators}


def _queries_that_fit(of_kind: Ranked, room: int) -> int:
    """The number of queries, at least 1, with training images that take at most about ``room`` bytes."""
    train = of_kind.attributions.train
    sample = np.unique(np.linspace(0, len(train) - 1, 8).round().astype(int)).tolist()
    size = sum(map(len, thumbnails.thumbnails(train, sample))) / len(sample)
    positions: set[int] = set()
    for row in range(of_kind.count):
        for ranking in of_kind.rankings:
            positions |= {*ranking.proponents[row].tolist(), *ranking.opponents[row].tolist()}
        if row and len(positions) * size > room:
            return row
    return of_kind.count


def descriptions(images: Images, rows: Sequence[int], folder: str | None) -> list[dict[str, Any]]:
    """Id, name, label and thumbnail of the images in ``rows``; with ``folder``, also the file in full size."""
    found = []
    for row, uri in zip(rows, thumbnails.thumbnails(images, rows), strict=True):
        description: dict[str, Any] = {"id": int(images.index[row]), "image": uri}
        if (name := images.name(row)) != str(images.index[row]):
            description["name"] = name
        if (label := int(images.label[row])) >= 0:
            description["label"] = label
        if folder is not None:
            description["file"] = f"{quote(folder)}/{images.index[row]}.png"
        found.append(description)
    return found


def _rounded(score: float) -> float:
    """A score with six digits."""
    return float(f"{score:.6g}")
