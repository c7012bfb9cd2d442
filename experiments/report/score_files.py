"""The files that ``task=attribute`` writes: for each query the training images that matter most, and self-influences."""

import csv
from pathlib import Path

import numpy as np

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.ranking import top_k

COLUMNS = ("query", "side", "rank", "position", "index", "label", "score")


def write_proponents(folder: Path, scores: Scores, train: Images, top: int) -> list[Path]:
    """Write ``query-ID.csv`` for each query of scores ``[Q, N]``, and return the paths.

    A file has the ``top`` proponents (largest scores first) and opponents (smallest first): ``position`` is the column of the
    scores, ``index`` the image's id in its data set.
    """
    values = np.asarray(scores.values)
    top = min(top, values.shape[1])
    sides = {"proponent": top_k(values, top), "opponent": top_k(-values, top)}
    paths = []
    for row, query in enumerate(scores.query_index):
        paths.append(folder / f"query-{query}.csv")
        with paths[-1].open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for side, places in sides.items():
                for rank, position in enumerate(places[row], 1):
                    index, label = int(train.index[position]), int(train.label[position])
                    writer.writerow([query, side, rank, position, index, label, f"{values[row, position]:.8g}"])
    return paths


def write_self_influence(path: Path, influence: np.ndarray, train: Images) -> None:
    """Write a CSV of all training images by descending self-influence."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["rank", "position", "index", "label", "self_influence"])
        for rank, position in enumerate(np.argsort(-influence, kind="stable"), 1):
            writer.writerow([rank, position, int(train.index[position]), int(train.label[position]), f"{influence[position]:.8g}"])
