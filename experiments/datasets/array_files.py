"""Files of arrays: .npy, .npz and .safetensors, with their images, labels and names."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets.errors import DataError

SUFFIXES = (".npy", ".npz", ".safetensors")
IMAGES = ("images", "image", "img", "latents", "data", "x", "arr_0")
LABELS = ("labels", "label", "y")
NAMES = ("names", "filenames", "files")
"""Names of arrays that are looked for, in this order, if no setting names one."""


@dataclass(frozen=True)
class ArrayView:
    """An array in a file: its shape and type, and a function that reads the rows start..stop-1."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rows: Callable[[int, int], np.ndarray]

    def all(self) -> np.ndarray:
        return self.rows(0, self.shape[0]) if self.shape else np.empty(0)


@dataclass(frozen=True)
class ArrayFile:
    """The images of one file, with labels (integers or text) ``[N]`` and names ``[N]`` if it has any."""

    path: Path
    images: ArrayView
    labels: np.ndarray | None
    names: list[str] | None


def open_arrays(path: Path, images: str | None, labels: str | None, names: str | None) -> ArrayFile:
    """Open a file of arrays. The arguments are names of its arrays; None looks for the usual ones.

    An .npy file has one array. Beside FILE.npy, FILE_labels.npy has its labels; beside a file of any kind, FILE_names.txt has a
    name in each line.

    Raises:
        DataError: the file is damaged or holds Python objects, it has no such array, or its arrays have different lengths.
    """
    arrays = arrays_in(path)
    image = _chosen(path, arrays, "images", images, IMAGES)
    if image is None:
        (image,) = arrays.values() if len(arrays) == 1 else (None,)
    if image is None:
        raise DataError(f"data.images is missing: set it to the name of the array of images in {path}, one of {_shapes(arrays)}")
    if path.suffix.lower() == ".npy":
        arrays = {name: view for name in LABELS[:1] for view in _beside(path, name)}
    label, named = _chosen(path, arrays, "labels", labels, LABELS), _chosen(path, arrays, "names", names, NAMES)
    lines = path.with_name(f"{path.stem}_names.txt")
    texts = _lines(lines) if names is None and lines.is_file() else None if named is None else texts_of(path, named)
    count = image.shape[0] if image.shape else 0
    result = ArrayFile(path, image, None if label is None else _labels(path, label), texts)
    for what, part in (("labels", result.labels), ("names", result.names)):
        if part is not None and len(part) != count:
            raise DataError(f"{path} has {count} images but {len(part)} {what}: every image needs one, in the same order")
    return result


def arrays_in(path: Path) -> dict[str, ArrayView]:
    """The arrays of a file by name; that of an .npy file is called ``images``.

    Raises:
        DataError: the file is damaged or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".safetensors":
            return _safetensors(path)
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"images": _view("images", content)}
        return {name: _view(name, content[name]) for name in content.files}
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise any error
        reasons = "it is damaged, of another kind, or holds Python objects; save plain arrays with numpy or safetensors"
        raise DataError(f"{path} cannot be read ({error}): {reasons}") from error


def _view(name: str, array: np.ndarray) -> ArrayView:
    return ArrayView(name, array.shape, array.dtype.name, lambda start, stop: array[start:stop])


def _safetensors(path: Path) -> dict[str, ArrayView]:
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt")

    def view(name: str) -> ArrayView:
        part = file.get_slice(name)
        kind = str(file.get_slice(name)[0:1].dtype).removeprefix("torch.") if part.get_shape() else "scalar"

        def rows(start: int, stop: int) -> np.ndarray:
            tensor = part[start:stop]
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy has no bfloat16

        return ArrayView(name, tuple(part.get_shape()), kind, rows)

    return {name: view(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)


def _beside(path: Path, name: str) -> list[ArrayView]:
    other = path.with_name(f"{path.stem}_{name}.npy")
    return list(arrays_in(other).values()) if other.is_file() else []


def _chosen(path: Path, arrays: dict[str, ArrayView], setting: str, name: str | None, usual: Sequence[str]) -> ArrayView | None:
    if name is None:
        return next((arrays[other] for other in usual if other in arrays), None)
    if name not in arrays:
        raise DataError(f"data.{setting}={name}: {path} has no array of this name, but {_shapes(arrays) or 'none'}")
    return arrays[name]


def _shapes(arrays: dict[str, ArrayView]) -> str:
    return ", ".join(f"{name} {list(view.shape)} {view.dtype}" for name, view in sorted(arrays.items()))


def _labels(path: Path, view: ArrayView) -> np.ndarray:
    values = view.all()
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        raise DataError(
            f"{path}: the labels {view.name} {list(view.shape)} {view.dtype} must be one integer or text for each image"
        )
    return values


def texts_of(path: Path, view: ArrayView) -> list[str]:
    """The names of images in an array. Raises DataError: it is no list of texts or integers."""
    values = view.all()
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise DataError(f"{path}: the names {view.name} {list(view.shape)} {view.dtype} must be one text for each image")
    return [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text in UTF-8: write one name in each line") from error
