"""Files about groups of training images: their scores, which are sums over their images, and what is in them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.groups import indicators
from experiments.metrics.replicates import errors_and_band
from experiments.report.score_files import NOISE_COLUMNS, noise_cells, write_lines

COLUMNS = ("query", "query_name", "rank", "group", "images", "score", "mean_score")


def write_groups(folder: Path, scores: Scores, queries: Images, groups: Mapping[str, np.ndarray]) -> Path:
    """Write ``groups.csv``: for each query of scores ``[Q, N]`` all groups, the largest score first; return its path.

    ``score`` is the sum over the images of a group, which predicts the effect of training on all of them; ``mean_score`` the mean.
    With replicates of draws: the ``standard_error`` of the sum, and ``within_noise``, 1 if its 95 % interval contains 0. Errors of
    images in a group are not independent; they are those of sums in each group of draws.
    """
    members = indicators(groups, scores.values.shape[1])
    sums = np.asarray(scores.values, np.float64) @ members.T
    cross = None if scores.cross is None else np.asarray(scores.cross, np.float64) @ members.T
    errors, band = (None, None) if cross is None else errors_and_band(cross)
    path, lines = folder / "groups.csv", []
    names, sizes = list(groups), members.sum(1).astype(int)
    for row, query in enumerate(scores.query_index):
        for rank, group in enumerate(np.argsort(-sums[row], kind="stable").tolist(), 1):
            score, size = sums[row, group], int(sizes[group])
            line = [query, queries.name(row), rank, names[group], size, f"{score:.8g}", f"{score / size:.8g}"]
            if errors is not None and band is not None:
                line += noise_cells(score, errors[row, group], band[row, group])
            lines.append(line)
    write_lines(path, COLUMNS if errors is None else (*COLUMNS, *NOISE_COLUMNS[:2]), lines)
    return path


def write_members(folder: Path, train: Images, groups: Mapping[str, np.ndarray]) -> Path:
    """Write ``images_of_groups.csv``, a line for each image of a group, which can be given as groups again; return its path."""
    lines = [[train.index[row], train.name(row), group] for group, rows in groups.items() for row in rows.tolist()]
    path = folder / "images_of_groups.csv"
    write_lines(path, ("id", "name", "group"), lines)
    return path
