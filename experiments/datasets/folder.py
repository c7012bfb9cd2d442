"""A folder of image files of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.checks import FieldError
from attribution.images import Images
from experiments.datasets.errors import DataError
from experiments.datasets.image_files import KINDS, ImageFiles, find_images, listed, natural, note
from experiments.datasets.image_reader import Crop, Framing, Resize, read_images
from experiments.datasets.selection import random_order
from experiments.datasets.source import Source, Splits

SHARED = ("experiments.datasets.image_reader", "experiments.datasets.selection")

TRAIN, VALIDATION = "train", "validation"
VALIDATION_SHARE = 10
"""One in so many images is held out if nothing says how many."""
NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """The image files in ``root`` and its subfolders, as images of ``channels`` × ``size``; the largest value of a pixel is 255.

    If ``root`` has the folders ``train`` and ``validation``, these are the splits. Otherwise a random order by ``seed`` has the
    training images at one end and the validation images at the other. ``n_train`` and ``n_validation`` are numbers of images
    (None: all; in a random split, a tenth of the images for validation and the others for training).

    The label of an image is the number of its folder in the split (in natural order, from 0), or -1 outside such folders. Names
    are paths in the split, and ids are positions in the natural order of the names. :func:`read_images` says what becomes of
    rotated, transparent, gray and other images, and :class:`Framing` what ``resize`` and ``crop`` do.
    """

    NAME = "Folder"
    VERSION = 1

    channels: int = 3
    size: int | Sequence[int]
    flips: bool = False
    resize: Resize = "none"
    crop: Crop = "none"
    n_train: int | None = None
    n_validation: int | None = None
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.channels not in (1, 3):
            raise FieldError(self, "channels", "must be 1 (gray) or 3 (RGB)")
        sides = self.size if isinstance(self.size, Sequence) else (self.size,)
        if len(sides) > 2 or not sides or min(sides) < 1:
            raise FieldError(self, "size", "must be a number of pixels, or [height, width]")

    def read(self) -> Splits:
        if self.root is None:
            raise DataError("data.root is missing: set it to the folder of the images")
        given = [name for name in (TRAIN, VALIDATION) if (self.folder / name).is_dir()]
        if len(given) == 1:
            missing = VALIDATION if given == [TRAIN] else TRAIN
            raise DataError(
                f"data.root={self.root} has a folder {given[0]} but no folder {missing}: add one, or set "
                f"data.root={self.folder / given[0]} for a random split"
            )
        files = find_images(self.folder, f"data.root={self.root}")
        if given:
            pools = _pools(files)
            chosen = [self._first(pool, f"n_{name}") for name, pool in pools.items()]
            return self._images(files, list(pools.values()), chosen, depth=1)
        pool = np.arange(len(files.paths))
        return self._images(files, [pool, pool], self._ends(len(pool)), depth=0)

    def _first(self, pool: np.ndarray, setting: str) -> np.ndarray:
        """Positions of as many random images of a pool as ``setting`` says, or of all."""
        n = getattr(self, setting)
        if n is not None and not 1 <= n <= len(pool):
            raise DataError(f"data.{setting}={n}: must be 1 to {len(pool)}, the number of images in the folder, or null for all")
        return np.sort(random_order(self.seed, "folder", np.arange(len(pool)))[:n])

    def _ends(self, count: int) -> list[np.ndarray]:
        """Positions of the training images, at the beginning of a random order, and of the validation images, at its end."""
        held_out = max(1, count // VALIDATION_SHARE) if self.n_validation is None else self.n_validation
        n = count - held_out if self.n_train is None else self.n_train
        if min(n, held_out) < 1 or n + held_out > count:
            raise DataError(
                f"data.n_train={n} and data.n_validation={held_out} of the {count} images in {self.folder}: both must be at least "
                f"1, and together at most {count}"
            )
        order = random_order(self.seed, "folder", np.arange(count))
        return [np.sort(order[:n]), np.sort(order[-held_out:])]

    def _images(self, files: ImageFiles, pools: Sequence[np.ndarray], chosen: Sequence[np.ndarray], depth: int) -> Splits:
        """Read the images at the ``chosen`` positions of each pool; folders at ``depth`` are their classes."""
        kinds = [name.split("/")[depth] if name.count("/") > depth else None for name in files.names]
        ordered = sorted({kind for kind in kinds if kind is not None}, key=lambda kind: natural(Path(kind)))
        number = {None: NO_LABEL} | {kind: i for i, kind in enumerate(ordered)}
        rows = np.concatenate([pool[positions] for pool, positions in zip(pools, chosen, strict=True)]).tolist()
        label = np.array([number[kinds[row]] for row in rows])
        names = np.array([files.names[row] for row in rows], np.str_)
        pixels = read_images(files, rows, Framing(self.shape, self.resize, self.crop), "data")
        n = len(chosen[0])
        parts = zip(chosen, (slice(n), slice(n, None)), strict=True)
        return Splits(*(Images(pixels[part], index, label[part], names=names[part]) for index, part in parts))


def _pools(files: ImageFiles) -> dict[str, np.ndarray]:
    """Positions of the files in the folders of the training and of the validation images."""
    tops = np.array([name.partition("/")[0] if "/" in name else "" for name in files.names])
    if others := [files.names[row] for row in np.flatnonzero((tops != TRAIN) & (tops != VALIDATION)).tolist()]:
        note(f"left out of {files.folder}, outside of {TRAIN} and {VALIDATION}: {listed(others)}")
    pools = {name: np.flatnonzero(tops == name) for name in (TRAIN, VALIDATION)}
    if empty := [name for name, pool in pools.items() if not len(pool)]:
        raise DataError(f"data.root={files.folder}: the folder {empty[0]} holds no image files ({', '.join(KINDS)})")
    return pools
