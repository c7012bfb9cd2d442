"""Images or latents of one's own in files of arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.checks import FieldError
from attribution.images import Images
from experiments.datasets.array_files import SUFFIXES, ArrayFile, open_arrays
from experiments.datasets.array_pixels import Conversion, Layout, Range
from experiments.datasets.errors import DataError
from experiments.datasets.image_files import listed
from experiments.datasets.own_images import TRAIN, VALIDATION, OwnImages
from experiments.datasets.pixels import decoded, states
from experiments.datasets.source import Splits
from experiments.datasets.splitting import NO_LABEL, numbered

SHARED = (
    "experiments.datasets.array_files",
    "experiments.datasets.array_pixels",
    "experiments.datasets.own_images",
    "experiments.datasets.splitting",
)

_EXAMPLES = 256
"""The number of training latents whose scale is measured."""
_SHOWN = 0.99
"""The quantile of their magnitudes beyond which figures saturate."""
_USUAL = (0.3, 3.0)
"""Root mean squares that the usual noise schedules suit."""


@dataclass(frozen=True, kw_only=True)
class Arrays(OwnImages):
    """The images in ``root``: an .npy, .npz or .safetensors file, or a folder with such files called train and validation.

    Of one file, a random order by ``seed`` has the training images at one end and the validation images at the other, as in
    :class:`Folder`. ``images``, ``labels`` and ``names`` are names of arrays (None: the usual ones, see :func:`open_arrays`).
    ``layout``: "NCHW", "NHWC", or "auto", which reads it off ``channels`` and ``size``.

    Integers range from 0 to ``levels``. Floats need ``range``: (low, high) become -1 and 1 in the model; "unbounded" leaves the
    values as they are, for latents, which a sampler must not clip. Ids are rows of the array; a name that is not given is
    "train/ROW" or "validation/ROW".
    """

    NAME = "Arrays"
    VERSION = 1

    channels: int
    images: str | None = None
    labels: str | None = None
    names: str | None = None
    layout: Layout = "auto"
    range: Range = None

    def __post_init__(self):
        super().__post_init__()
        if self.range is not None and self.range != "unbounded" and not (len(self.range) == 2 and self.range[0] < self.range[1]):
            raise FieldError(self, "range", "must be [low, high] with low < high, unbounded, or null for integers")

    @property
    def bounded(self) -> bool:
        return self.range != "unbounded"

    def read(self) -> Splits:
        if self.root is None:
            raise DataError(
                f"data.root is missing: set it to a file ({', '.join(SUFFIXES)}), or to a folder with train and validation"
            )
        files = [open_arrays(path, self.images, self.labels, self.names) for path in self._paths()]
        for file in files:
            if not file.images.shape or not file.images.shape[0]:
                raise DataError(f"{file.path}: the array {file.images.name} {list(file.images.shape)} holds no images")
        counts = [file.images.shape[0] for file in files]
        chosen = self.taken(counts, str(files[0].path))
        files = [files[0], files[-1]]  # of the two splits
        pixels = self._pixels(files, chosen)
        label, n = self._label(files, chosen), len(chosen[0])
        display = 1.0 if self.bounded else float(np.quantile(np.abs(pixels[: min(n, _EXAMPLES)]), _SHOWN)) or 1.0
        return Splits(
            *(
                Images(pixels[part], rows, label[part], self.levels, None, self._named(file, rows), display)
                for file, rows, part in zip(files, chosen, (slice(n), slice(n, None)), strict=True)
            )
        )

    def _paths(self) -> list[Path]:
        """The file, or the files of training and validation images."""
        root = self.folder
        if root.is_file():
            if root.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"data.root={self.root}: must be one of {', '.join(SUFFIXES)}, or a folder with train and validation"
                )
            return [root]
        if not root.is_dir():
            raise DataError(f"data.root={self.root}: there is no such file or folder; give a file ({', '.join(SUFFIXES)})")
        found = []
        for name in (TRAIN, VALIDATION):
            files = [root / f"{name}{suffix}" for suffix in SUFFIXES if (root / f"{name}{suffix}").is_file()]
            if len(files) != 1:
                there = sorted(path.name for path in root.iterdir() if path.suffix.lower() in SUFFIXES)
                wanted = f"one {name} file ({', '.join(name + suffix for suffix in SUFFIXES)})"
                raise DataError(
                    f"data.root={self.root}: must hold {wanted}, but holds {listed(there) or 'none'}; for a random split of one "
                    "file, give the file"
                )
            found += files
        return found

    def _pixels(self, files: Sequence[ArrayFile], chosen: Sequence[np.ndarray]) -> np.ndarray:
        conversion = Conversion(self.shape, self.levels, self.layout, self.range)
        dtype = conversion.dtype(files)

        def fill(pixels: np.ndarray) -> list[str]:
            notes: list[str] = []
            problems: list[str] = []
            n = len(chosen[0])
            for file, rows, part in zip(files, chosen, (pixels[:n], pixels[n:]), strict=True):
                try:
                    notes += conversion.fill(file, rows, part)
                except DataError as error:
                    problems.append(str(error))
            if problems:
                raise DataError("; ".join(problems))
            notes += [] if self.bounded else _scale_notes(pixels[: min(n, _EXAMPLES)])
            return list(dict.fromkeys(notes))

        made_of = [
            *("arrays", states(file.path for file in files), [file.images.name for file in files]),
            *([rows.tolist() for rows in chosen], list(self.shape), self.levels, self.layout),
            *([self.range] if isinstance(self.range, str | None) else [list(self.range)]),
        ]
        return decoded(self.store, made_of, (sum(map(len, chosen)), *self.shape), dtype, fill)

    def _label(self, files: Sequence[ArrayFile], chosen: Sequence[np.ndarray]) -> np.ndarray:
        """The labels of all chosen images. Text is numbered over all images of both splits, chosen or not."""
        if any(file.labels is not None and file.labels.dtype.kind in "US" for file in files):
            kinds = [[None] * file.images.shape[0] if file.labels is None else file.labels.astype(str).tolist() for file in files]
            return numbered([*kinds[0], *kinds[1]])[np.concatenate([chosen[0], len(kinds[0]) + chosen[1]])]
        labels = [None if file.labels is None else file.labels[rows] for file, rows in zip(files, chosen, strict=True)]
        known = [np.full(len(rows), NO_LABEL) if label is None else label for label, rows in zip(labels, chosen, strict=True)]
        return np.concatenate(known).astype(np.int64)

    @staticmethod
    def _named(file: ArrayFile, rows: np.ndarray) -> np.ndarray | None:
        return None if file.names is None else np.array([file.names[row] for row in rows.tolist()], np.str_)


def _scale_notes(latents: np.ndarray) -> list[str]:
    """A sentence on latents that the usual noise schedules do not suit."""
    scale = float(np.sqrt(np.square(latents, dtype=np.float64).mean()))
    if _USUAL[0] <= scale <= _USUAL[1]:
        return []
    return [
        f"the root mean square of the latents is {scale:.3g}, and noise schedules suit about 1: consider scaling them in the files"
    ]
