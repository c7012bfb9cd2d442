"""The files that ``task=attribute`` writes: the images, for each query those that matter most, and self-influences."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.ranking import both_ends
from experiments.metrics.replicates import errors_and_band, membership

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
    sides = both_ends(values, top)
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
        write_lines(paths[-1], COLUMNS if noise is None else (*COLUMNS, *NOISE_COLUMNS), lines)
    return paths


def noise_cells(score: float, error: float, band: float) -> tuple[str, int]:
    """The cells of the first two of NOISE_COLUMNS: the standard error of a score, and whether its interval contains 0."""
    return f"{error:.4g}", int(abs(score) <= band)


class _Noise:
    """The cells of NOISE_COLUMNS."""

    def __init__(self, cross: np.ndarray, top: int, bootstrap: Bootstrap):
        self.errors, self.band = errors_and_band(cross)
        largest, smallest = membership(cross, top, bootstrap)
        self.probability: dict[str, np.ndarray] = {"proponent": largest, "opponent": smallest}

    def cells(self, side: str, row: int, position: int, score: float) -> tuple[object, ...]:
        """The cells of the training image at ``position`` among the proponents or opponents (``side``) of the query in ``row``."""
        cells = noise_cells(score, self.errors[row, position], self.band[row, position])
        return *cells, f"{self.probability[side][row, position]:.3f}"


def write_images(path: Path, images: Images) -> None:
    """Write a CSV of images in the order of the rows or columns of scores: position, id, name and label."""
    write_lines(path, ("position", "index", "name", "label"), [_image(images, position) for position in range(len(images))])


def write_self_influence(path: Path, influence: np.ndarray, train: Images) -> None:
    """Write a CSV of all training images by descending self-influence."""
    order = np.argsort(-influence, kind="stable").tolist()
    lines = [(rank, *_image(train, position), f"{influence[position]:.8g}") for rank, position in enumerate(order, 1)]
    write_lines(path, ("rank", "position", "index", "name", "label", "self_influence"), lines)


def _image(images: Images, position: int) -> tuple[int, int, str, int]:
    """Position, id, name and label."""
    return position, int(images.index[position]), images.name(position), int(images.label[position])


def write_lines(path: Path, columns: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Write a CSV with a line of ``columns`` and one for each of ``lines``."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(lines)
