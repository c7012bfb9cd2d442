"""A folder of image files of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attribution.images import Images
from experiments.datasets.errors import DataError
from experiments.datasets.image_files import KINDS, ImageFiles, find_images, listed, note
from experiments.datasets.image_reader import Framing, decode, files_of
from experiments.datasets.own_images import TRAIN, VALIDATION, EncodedImages
from experiments.datasets.pixels import decoded, states
from experiments.datasets.source import Splits
from experiments.datasets.splitting import numbered

SHARED = ("experiments.datasets.image_reader", "experiments.datasets.own_images", "experiments.datasets.splitting")


@dataclass(frozen=True, kw_only=True)
class Folder(EncodedImages):
    """The image files in ``root`` and its subfolders, as images of ``channels`` × ``size``; the largest value of a pixel is 255.

    If ``root`` has the folders ``train`` and ``validation``, these are the splits. Otherwise a random order by ``seed`` has the
    training images at one end and the validation images at the other.

    The label of an image is the number of its folder in the split (in natural order, from 0), or -1 outside such folders. Names
    are paths in the split, and ids are positions in the natural order of the names.
    """

    NAME = "Folder"
    VERSION = 1

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
            return self._images(files, list(pools.values()), depth=1)
        return self._images(files, [np.arange(len(files.paths))], depth=0)

    def _images(self, files: ImageFiles, pools: Sequence[np.ndarray], depth: int) -> Splits:
        """Read the images that are taken of the pools of both splits, or of one pool; folders at ``depth`` are classes."""
        chosen = self.taken(list(map(len, pools)), str(self.folder))
        rows = np.concatenate([pools[i][positions] for i, positions in zip((0, -1), chosen, strict=True)]).tolist()
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
