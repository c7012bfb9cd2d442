"""Groups of training images: classes, folders, clusters of near-duplicates, or those in a CSV file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from attribution.images import Images
from experiments.metrics.duplicates import clusters

GROUP, MEMBERS = "group", ("id", "name")
"""The columns of a file of groups: the group, and one that says which image it is of."""
LABEL, FOLDER, DUPLICATES = "label", "folder", "duplicates"
CHOICES = f"{LABEL}, {FOLDER}, {DUPLICATES} or a CSV file that exists"


class GroupError(ValueError):
    """Groups that the training images do not have; ``distance`` says whether another distance would help."""

    def __init__(self, message: str, distance: bool = False):
        self.distance = distance
        super().__init__(message)


def groups_of(train: Images, by: str, distance: float) -> dict[str, np.ndarray]:
    """The rows of the training images in each group.

    ``by``: "label", the class; "folder", that of the names (``artist/1.png``); "duplicates", clusters of near-duplicates, which are
    chains of images whose neighbors have a root-mean-square difference of at most ``distance``, a share of the range of pixels, and
    are named after their first image; or a CSV file with the columns ``group`` and ``id`` or ``name``, with a line for each image
    of a group. An image without a near-duplicate, or without a line, is in no group. With a file, an image may be in several.

    Raises:
        GroupError: no such file, columns, images, classes, folders or near-duplicates.
    """
    if by == LABEL:
        if (np.asarray(train.label) < 0).any():
            raise GroupError("not every training image has a class: give a CSV file with the columns group and id, or name")
        return _by_key([str(label) for label in np.asarray(train.label).tolist()])
    if by == FOLDER:
        folders = [str(PurePosixPath(train.name(row)).parent) for row in range(len(train))]
        if len(set(folders)) < 2:
            raise GroupError(
                f"the names of all training images have the same folder ({folders[0]}): group by label or by a CSV file"
            )
        return _by_key(folders)
    return _near_duplicates(train, distance) if by == DUPLICATES else _from_file(train, Path(by))


def summary(groups: Mapping[str, np.ndarray], by: str, distance: float, count: int) -> str:
    """What the groups of ``count`` training images are, in a line."""
    sizes, grouped = [len(rows) for rows in groups.values()], len(np.unique(np.concatenate(list(groups.values()))))
    what = f"clusters of near-duplicates, which differ by at most {distance:g} of the range of pixels" if by == DUPLICATES else by
    each = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{sizes[0]}"
    return f"{len(groups)} groups ({what}) of {each} images each, {grouped:,} of {count:,} training images together"


def _by_key(keys: Sequence[str]) -> dict[str, np.ndarray]:
    of_images = np.array(keys)
    return {key: np.flatnonzero(of_images == key) for key in sorted(set(keys), key=lambda key: (len(key), key))}


def _near_duplicates(train: Images, distance: float) -> dict[str, np.ndarray]:
    found, complete = clusters(train, distance)
    if not complete:
        raise GroupError("too many pairs of training images may be as near: lower it", distance=True)
    if not found:
        raise GroupError("no two training images are as near: raise it, or choose other groups", distance=True)
    names = [train.name(int(rows[0])) for rows in found]
    if len(set(names)) < len(names):
        names = [str(train.index[rows[0]]) for rows in found]
    return dict(zip(names, found, strict=True))


def _from_file(train: Images, path: Path) -> dict[str, np.ndarray]:
    try:
        if not path.expanduser().is_file():
            raise GroupError(f"choose {CHOICES}")
        with path.expanduser().open(encoding="utf-8-sig", newline="") as text:
            table = csv.DictReader(text, skipinitialspace=True)
            columns = [name.strip() for name in table.fieldnames or ()]
            table.fieldnames = columns
            lines = [(table.line_num, line) for line in table]
    except (OSError, RuntimeError) as error:  # such as an unknown home directory, or a name that is too long
        raise GroupError(f"choose {CHOICES} ({error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise GroupError(f"it cannot be read as CSV in UTF-8 ({error}): save it as such") from error
    if not columns:
        raise GroupError("the file is empty: give a line with the columns group and id, or name, and one for each image of a group")
    by = next((name for name in MEMBERS if name in columns), None)
    if GROUP not in columns or by is None:
        raise GroupError(
            f"the file has the columns {', '.join(map(repr, columns))}: give group and id, or name, separated by commas"
        )
    if by == "name" and len({train.name(row) for row in range(len(train))}) < len(train):
        raise GroupError("several training images have the same name: give their ids (train.csv, beside the scores, lists them)")
    places = {str(train.index[row]) if by == "id" else train.name(row): row for row in range(len(train))}
    found: dict[str, list[int]] = {}
    for number, line in lines:
        image, group = (line[by] or "").strip(), (line[GROUP] or "").strip()
        if not group or image not in places:
            what = "has no group" if not group else f"names the image {image!r}, which is not a training image"
            raise GroupError(f"line {number} {what}: repair it")
        found.setdefault(group, []).append(places[image])
    if not found:
        raise GroupError("the file has no lines: give one for each image of a group")
    return {group: np.unique(rows) for group, rows in found.items()}
