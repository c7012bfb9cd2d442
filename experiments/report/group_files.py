"""Groups of training images as units of attribution: their scores are sums over their images."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.replicates import errors_and_band
from experiments.report.score_files import NOISE_COLUMNS, noise_cells, write_lines

GROUP, MEMBERS = "group", ("id", "name")
"""The columns of a file of groups: the group, and one that says which image it is of."""
COLUMNS = ("query", "query_name", "rank", "group", "images", "score", "mean_score")


class GroupError(ValueError):
    """Groups that the training images do not have."""


def groups_of(train: Images, by: str) -> dict[str, np.ndarray]:
    """The rows of the training images in each group.

    ``by``: "label", the class; "folder", that of the names (``artist/1.png``); or a CSV file with the columns ``group`` and ``id``
    or ``name``, with a line for each image of a group. Images without a line are in no group, and an image may be in several.

    Raises:
        GroupError: no such file, columns, images, classes or folders.
    """
    if by == "label":
        if (np.asarray(train.label) < 0).any():
            raise GroupError("not every training image has a class: give a CSV file with the columns group and id, or name")
        keys = [str(label) for label in np.asarray(train.label).tolist()]
    elif by == "folder":
        keys = [str(PurePosixPath(train.name(row)).parent) for row in range(len(train))]
        if len(set(keys)) < 2:
            raise GroupError(f"the names of all training images have the same folder ({keys[0]}): group by label or by a CSV file")
    else:
        return _from_file(train, Path(by).expanduser())
    of_images = np.array(keys)
    return {key: np.flatnonzero(of_images == key) for key in sorted(set(keys), key=lambda key: (len(key), key))}


def write_groups(folder: Path, scores: Scores, queries: Images, groups: Mapping[str, np.ndarray]) -> Path:
    """Write ``groups.csv``: for each query of scores ``[Q, N]`` all groups, the largest score first; return its path.

    ``score`` is the sum over the images of a group, which predicts the effect of training on all of them; ``mean_score`` the mean.
    With replicates of draws: the ``standard_error`` of the sum, and ``within_noise``, 1 if its 95 % interval contains 0. Errors of
    images in a group are not independent; they are those of sums in each group of draws.
    """
    members = np.stack([np.isin(np.arange(scores.values.shape[1]), rows) for rows in groups.values()]).astype(np.float64)
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


def _from_file(train: Images, path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise GroupError("choose label, folder or a CSV file that exists")
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            table = csv.DictReader(text, skipinitialspace=True)
            columns: Sequence[str] = table.fieldnames or ()
            lines = list(table)
    except (UnicodeDecodeError, csv.Error) as error:
        raise GroupError(f"it is not a CSV file in UTF-8 ({error}): save it as one") from error
    by = next((name for name in MEMBERS if name in columns), None)
    if GROUP not in columns or by is None:
        raise GroupError(
            f"the file has the columns {', '.join(columns) or 'of nothing'}: give group and id, or name, separated by commas"
        )
    if by == "name" and len({train.name(row) for row in range(len(train))}) < len(train):
        raise GroupError("several training images have the same name: give their ids (train.csv, beside the scores, lists them)")
    places = {str(train.index[row]) if by == "id" else train.name(row): row for row in range(len(train))}
    found: dict[str, list[int]] = {}
    for number, line in enumerate(lines, 2):
        image, group = (line[by] or "").strip(), (line[GROUP] or "").strip()
        if not group or image not in places:
            what = "has no group" if not group else f"names the image {image!r}, which is not a training image"
            raise GroupError(f"line {number} {what}: repair it")
        found.setdefault(group, []).append(places[image])
    if not found:
        raise GroupError("the file has no lines: give one for each image of a group")
    return {group: np.unique(rows) for group, rows in found.items()}
