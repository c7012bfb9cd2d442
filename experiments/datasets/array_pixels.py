"""From arrays of any usual kind to pixels ``[N, C, H, W]``: layout, range and type."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.datasets.array_files import ArrayFile, ArrayView
from experiments.datasets.errors import DataError
from experiments.datasets.image_files import listed

Layout = Literal["auto", "NCHW", "NHWC"]
Range = Sequence[float] | Literal["unbounded"] | None

_BLOCK = 2**26
"""Bytes of float32 values that are converted at a time."""
_ROUNDING = 1e-5
"""How far values may lie outside their range, as a share of it: float16 and interpolation round."""
_SMALL = 0.1
"""Values that take a smaller share of their range are reported."""


@dataclass(frozen=True)
class Conversion:
    """How values become pixels of ``shape`` (C, H, W).

    Integers from 0 to ``levels`` stay as they are. Floats from ``range`` (low, high) become float32 in [-1, 1]; "unbounded" leaves
    them as they are.
    """

    shape: tuple[int, int, int]
    levels: int
    layout: Layout
    range: Range

    def dtype(self, files: Sequence[ArrayFile]) -> str:
        """The type of the pixels.

        Raises:
            DataError: the arrays hold no numbers, different kinds of numbers, or ``range`` does not fit the kind.
        """
        kinds = {_kind(file) for file in files}
        if len(kinds) > 1:
            raise DataError(f"{files[0].path} and {files[-1].path} hold integers and floats: use one kind for both")
        if kinds == {"float"}:
            if self.range is None:
                low, high = _limits(files)
                raise DataError(
                    f"data.range is missing: the images in {files[0].path} are floats, from {low:.4g} to {high:.4g}; give the "
                    "values of black and white, such as [0,1] or [-1,1], or unbounded to leave them as they are (latents)"
                )
            return "float32"
        if self.range is not None:
            raise DataError(
                f"data.range={_text(self.range)}: the images in {files[0].path} are integers, whose range is 0 to data.levels="
                f"{self.levels}; set data.range=null"
            )
        if self.levels > 65535:
            raise DataError(f"data.levels={self.levels}: the largest value of a pixel must be at most 65535")
        return "uint8" if self.levels <= 255 else "uint16"

    def fill(self, file: ArrayFile, rows: np.ndarray, pixels: np.ndarray) -> list[str]:
        """Write the images at the positions ``rows`` of a file, which ascend, into ``pixels``.

        Returns:
            Sentences for the user.

        Raises:
            DataError: values are not finite or outside their range. The message says in how many images and lists some.
        """
        order, bounds = self._order(file), self._bounds(pixels.dtype)
        slack = _ROUNDING * (bounds[1] - bounds[0]) if pixels.dtype.kind == "f" else 0.0
        not_finite: list[int] = []
        outside: list[int] = []
        low, high = math.inf, -math.inf
        for place, block in _blocks(file.images, rows):
            values = block[:, None] if block.ndim == 3 else block.transpose(order)
            flat = values.reshape(len(values), -1)
            least, most = (ends.astype(np.float64) for ends in (flat.min(1), flat.max(1)))
            finite = np.isfinite(least) & np.isfinite(most)
            not_finite += rows[place][~finite].tolist()
            outside += rows[place][finite & ((least < bounds[0] - slack) | (most > bounds[1] + slack))].tolist()
            low = min(low, float(least[finite].min(initial=math.inf)))
            high = max(high, float(most[finite].max(initial=-math.inf)))
            pixels[place] = self._scaled(values, pixels.dtype) if finite.all() and not outside else 0
        self._refuse(file, len(rows), not_finite, outside, low, high)
        if math.isfinite(bounds[1]) and high - low < _SMALL * (bounds[1] - bounds[0]):
            setting = f"data.levels={self.levels}" if self.range is None else f"data.range={_text(self.range)}"
            return [f"the values in {file.path} go from {low:.4g} to {high:.4g} only: check {setting}"]
        return []

    def _bounds(self, dtype: np.dtype) -> tuple[float, float]:
        """The least and the largest value that the arrays may have."""
        if dtype.kind == "u":
            return 0, self.levels
        return (-math.inf, math.inf) if isinstance(self.range, str | None) else (self.range[0], self.range[1])

    def _scaled(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        if dtype.kind == "u" or isinstance(self.range, str | None):
            return values.astype(dtype)
        low, high = self.range
        return np.clip((values.astype(np.float64) - low) * (2 / (high - low)) - 1, -1, 1).astype(dtype)

    def _refuse(self, file: ArrayFile, count: int, not_finite: list[int], outside: list[int], low: float, high: float) -> None:
        problems = []
        if not_finite:
            problems.append(f"{len(not_finite)} have values that are not finite (repair or remove): {_rows(not_finite)}")
        if outside and self.range is None:
            remedy = "save them without negative values" if low < 0 else "set data.levels to the largest possible value"
            problems.append(
                f"{len(outside)} have values outside 0 to data.levels={self.levels}, which go from {low:.0f} to {high:.0f} "
                f"({remedy}): {_rows(outside)}"
            )
        elif outside:
            problems.append(
                f"{len(outside)} have values outside data.range={_text(self.range)}, which go from {low:.6g} to {high:.6g} (set "
                f"data.range to these ends, or to unbounded for latents): {_rows(outside)}"
            )
        if problems:
            raise DataError(f"of {count} images in {file.path}, {'; '.join(problems)}")

    def _order(self, file: ArrayFile) -> tuple[int, int, int, int]:
        """The axes of an array [N, ...] in the order N, C, H, W; those of gray images without a channel axis are N, 1, H, W."""
        channels, height, width = self.shape
        shape, first, last = file.images.shape, (0, 1, 2, 3), (0, 3, 1, 2)
        if len(shape) == 3 and channels == 1 and shape[1:] == (height, width):
            return first
        fitting = {"NCHW": (channels, height, width), "NHWC": (height, width, channels)}
        layouts = [name for name, wanted in fitting.items() if self.layout in ("auto", name) and shape[1:] == wanted]
        if not layouts:
            raise DataError(
                f"{file.path}: the array {file.images.name} {list(shape)} is neither [N, C, H, W] nor [N, H, W, C] with "
                f"data.channels={channels} and {height}×{width} pixels (height × width, data.size)"
                f"{'' if self.layout == 'auto' else f', with data.layout={self.layout}'}: {_hint(shape)}"
            )
        if len(layouts) > 1 and channels > 1:
            raise DataError(
                f"data.layout=auto: the array {file.images.name} {list(shape)} in {file.path} may have its channels first or last: "
                "set data.layout to NCHW or NHWC"
            )
        return first if layouts[0] == "NCHW" else last


def _kind(file: ArrayFile) -> str:
    dtype = file.images.dtype
    if dtype.startswith(("uint", "int", "bool")):
        return "int"
    if dtype.startswith(("float", "bfloat")):
        return "float"
    raise DataError(f"{file.path}: the array {file.images.name} holds {dtype}: use uint8, or floats with data.range")


def _blocks(view: ArrayView, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the wanted rows of an array in blocks, with their places among ``rows``, which ascend."""
    size = max(1, _BLOCK // (4 * max(1, int(np.prod(view.shape[1:])))))
    for start in range(0, view.shape[0], size):
        stop = min(view.shape[0], start + size)
        place = slice(*np.searchsorted(rows, (start, stop)).tolist())
        if place.start < place.stop:
            yield place, np.asarray(view.rows(start, stop))[rows[place] - start]


def _limits(files: Sequence[ArrayFile]) -> tuple[float, float]:
    blocks = (block for file in files for _, block in _blocks(file.images, np.arange(file.images.shape[0])))
    ends = np.array([(np.nanmin(block), np.nanmax(block)) for block in blocks], np.float64)
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _hint(shape: tuple[int, ...]) -> str:
    """Settings that fit an array of this shape."""
    if len(shape) == 3:
        return f"set data.channels=1 and data.size=[{shape[1]},{shape[2]}]"
    if len(shape) != 4:
        return "give an array [N, C, H, W], [N, H, W, C] or, for gray images, [N, H, W]"
    channels, height, width = (shape[3], *shape[1:3]) if shape[3] < min(shape[1:3]) else shape[1:]
    return f"set data.channels={channels} and data.size=[{height},{width}], or another of its readings"


def _rows(rows: list[int]) -> str:
    return listed([f"row {row}" for row in rows])


def _text(value: object) -> str:
    return (
        f"[{','.join(f'{end:g}' for end in value)}]" if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
    )
