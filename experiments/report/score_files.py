"""The files that ``task=attribute`` writes: the images, for each query those that matter most, and self-influences."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.ranking import top_k

COLUMNS = ("query", "query_name", "side", "rank", "position", "index", "name", "label", "score")


def write_proponents(folder: Path, scores: Scores, queries: Images, train: Images, top: int) -> list[Path]:
    """Write ``query-ID.csv`` for each query of scores ``[Q, N]``, and return the paths.

    A file has the ``top`` proponents (largest scores first) and opponents (smallest first). ``query`` and ``query_name`` are the
    query's id and name; of a training image, ``position`` is the column of the scores, ``index`` the id in its data set.
    """
    values = np.asarray(scores.values)
    top = min(top, values.shape[1])
    sides = {"proponent": top_k(values, top), "opponent": top_k(-values, top)}
    paths = []
    for row, query in enumerate(scores.query_index):
        lines = [
            (query, queries.name(row), side, rank, *_image(train, int(position)), f"{values[row, position]:.8g}")
            for side, places in sides.items()
            for rank, position in enumerate(places[row], 1)
        ]
        paths.append(folder / f"query-{query}.csv")
        _write(paths[-1], COLUMNS, lines)
    return paths


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
