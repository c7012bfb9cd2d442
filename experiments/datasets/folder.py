"""A folder of image files of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.checks import FieldError
from attribution.images import Images
from attribution.nodes import execution
from experiments.datasets.errors import DataError
from experiments.datasets.image_files import KINDS, ImageFiles, find_images, listed, note
from experiments.datasets.image_reader import Crop, Framing, Resize, decode, files_of
from experiments.datasets.pixels import decoded, states
from experiments.datasets.source import Source, Splits
from experiments.datasets.splitting import ends, first, numbered

SHARED = ("experiments.datasets.image_reader", "experiments.datasets.splitting")

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True, kw_only=True)
class Folder(Source):
    """The image files in ``root`` and its subfolders, as images of ``channels`` × ``size``; the largest value of a pixel is 255.

    If ``root`` has the folders ``train`` and ``validation``, these are the splits. Otherwise a random order by ``seed`` has the
    training images at one end and the validation images at the other. ``n_train`` and ``n_validation`` are numbers of images
    (None: all; in a random split, a tenth of the images for validation and the others for training).

    The label of an image is the number of its folder in the split (in natural order, from 0), or -1 outside such folders. Names
    are paths in the split, and ids are positions in the natural order of the names. :func:`decode` says what becomes of
    rotated, transparent, gray and other images, and :class:`Framing` what ``resize`` and ``crop`` do. The decoded pixels are kept
    in the store in the folder ``store`` (None: in memory only).
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
    store: str | Path | None = execution(default=None)

    def __post_init__(self):
        super().__post_init__()
        if self.channels not in (1, 3):
            raise FieldError(self, "channels", "must be 1 (gray) or 3 (RGB)")
        sides = self.size if isinstance(self.size, Sequence) else (self.size,)
        if (isinstance(self.size, Sequence) and len(sides) != 2) or min(sides) < 1:
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
            chosen = [first(len(pool), getattr(self, f"n_{name}"), self.seed, f"n_{name}") for name, pool in pools.items()]
            return self._images(files, list(pools.values()), chosen, depth=1)
        pool = np.arange(len(files.paths))
        chosen = ends(len(pool), self.n_train, self.n_validation, self.seed, str(self.folder))
        return self._images(files, [pool, pool], chosen, depth=0)

    def _images(self, files: ImageFiles, pools: Sequence[np.ndarray], chosen: Sequence[np.ndarray], depth: int) -> Splits:
        """Read the images at the ``chosen`` positions of each pool; folders at ``depth`` are their classes."""
        rows = np.concatenate([pool[positions] for pool, positions in zip(pools, chosen, strict=True)]).tolist()
        inside = {row for pool in pools for row in pool.tolist()}  # a folder that is left out is no class
        kinds = [
            name.split("/")[depth] if name.count("/") > depth and row in inside else None for row, name in enumerate(files.names)
        ]
        label = numbered(kinds)[rows]
        names = np.array([files.names[row] for row in rows], np.str_)
        framing, place = Framing(self.shape, self.resize, self.crop), str(files.folder)
        made_of = ["folder", states(files.paths[row] for row in rows), list(self.shape), self.resize, self.crop]
        pixels = decoded(
            self.store,
            made_of,
            (len(rows), *self.shape),
            "uint8",
            lambda pixels: decode(files_of(files, rows), pixels, framing, place, "data"),
        )
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
