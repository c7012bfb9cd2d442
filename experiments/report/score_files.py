"""The files that ``task=attribute`` writes: the images, for each query those that matter most, and self-influences."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.ranking import top_k
from experiments.metrics.replicates import membership, noise_band, standard_errors

COLUMNS = ("query", "query_name", "side", "rank", "position", "index", "name", "label", "score")
NOISE_COLUMNS = ("standard_error", "within_noise", "probability")
"""Further columns of scores with replicates of draws."""


def write_proponents(
    folder: Path, scores: Scores, queries: Images, train: Images, top: int, bootstrap: Bootstrap | None = None
) -> list[Path]:
    """Write ``query-ID.csv`` for each query of scores ``[Q, N]``, and return the paths.

    A file has the ``top`` proponents (largest scores first) and opponents (smallest first). ``query`` and ``query_name`` are the
    query's id and name; of a training image, ``position`` is the column of the scores, ``index`` the id in its data set.
    With replicates of draws: the ``standard_error`` of the score; ``within_noise``, 1 if its 95 % interval contains 0; and the
    ``probability`` that the image is among the ``top`` of its side, from resamples of the draws by ``bootstrap``.
    """
    values = np.asarray(scores.values)
    top = min(top, values.shape[1])
    sides = {"proponent": top_k(values, top), "opponent": top_k(-values, top)}
    noise = None if scores.cross is None else _Noise(np.asarray(scores.cross), top, bootstrap or Bootstrap())
    paths = []
    for row, query in enumerate(scores.query_index):
        lines = [
            (
                *(query, queries.name(row), side, rank, *_image(train, int(position)), f"{values[row, position]:.8g}"),
                *(() if noise is None else noise.cells(side, row, int(position), values[row, position])),
            )
            for side, places in sides.items()
            for rank, position in enumerate(places[row], 1)
        ]
        paths.append(folder / f"query-{query}.csv")
        _write(paths[-1], COLUMNS if noise is None else (*COLUMNS, *NOISE_COLUMNS), lines)
    return paths


class _Noise:
    """The cells of NOISE_COLUMNS."""

    def __init__(self, cross: np.ndarray, top: int, bootstrap: Bootstrap):
        self.errors, self.band = standard_errors(cross), noise_band(cross)
        self.probability = {"proponent": membership(cross, top, bootstrap), "opponent": membership(-cross, top, bootstrap)}

    def cells(self, side: str, row: int, position: int, score: float) -> tuple[object, ...]:
        """Of a training image in the list of one side of the query in ``row``."""
        within = int(abs(score) <= self.band[row, position])
        return f"{self.errors[row, position]:.4g}", within, f"{self.probability[side][row, position]:.3f}"


def write_images(path: Path, images: Images) -> None:
    """Write a CSV of images in the order of the rows or columns of scores: position, id, name and label."""
    _write(path, ("position", "index", "name", "label"), [_image(images, position) for position in range(len(images))])


def write_self_influence(path: Path, influence: np.ndarray, train: Images) -> None:
    """Write a CSV of all training images by descending self-influence."""
    order = np.argsort(-influence, kind="stable").tolist()
    lines = [(rank, *_image(train, position), f"{influence[position]:.8g}") for rank, position in enumerate(order, 1)]
    _write(path, ("rank", "position", "index", "name", "label", "self_influence"), lines)


def _image(images: Images, position: int) -> tuple[int, int, str, int]:
    """Position, id, name and label."""
    return position, int(images.index[position]), images.name(position), int(images.label[position])


def _write(path: Path, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(lines)
