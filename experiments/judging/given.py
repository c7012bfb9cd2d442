"""Arrays in files that settings name, with the ids of their rows and columns."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from experiments.datasets.array_files import arrays_in, texts_of
from experiments.datasets.errors import DataError

KINDS = (".npy", ".npz", ".safetensors", ".csv", ".pt", ".mmap")
"""Suffixes of files of arrays: of NumPy, safetensors, tables, torch.save, and the stores of TRAK."""
TRAIN_IDS = ("train_ids", "train_index")
QUERY_IDS = ("query_ids", "query_index")
"""Names of arrays of ids in files of several arrays. The second names are those in the folder of ``task=attribute``."""
_KEY = re.compile(r"(.+\.(?:npz|safetensors|pt)|.+(?=:(?:val|gen)$)):(.+)", re.IGNORECASE)
_STORE = "metadata.json"


@dataclass(frozen=True)
class Given:
    """A ``file`` that the ``setting`` names, as FILE, or as FILE:KEY for one of its arrays."""

    setting: str
    file: str

    @property
    def path(self) -> Path:
        match = _KEY.fullmatch(self.file)
        return Path(match[1] if match else self.file)

    @property
    def key(self) -> str | None:
        match = _KEY.fullmatch(self.file)
        return match[2] if match else None

    def error(self, message: str) -> DataError:
        """An error about this file: what is wrong and how to fix it."""
        return DataError(f"{self.setting}={self.file}: {message}")


@dataclass(frozen=True, eq=False)
class Table:
    """An array with its ``name``, the ids of training images and of queries that its file has, and the file's other arrays.

    ``trains_first``: whether the format of the file has training images as rows and queries as columns.
    """

    values: np.ndarray
    train_ids: list[str] | None = None
    query_ids: list[str] | None = None
    others: Mapping[str, np.ndarray] | None = None
    trains_first: bool = False
    name: str | None = None


@dataclass(frozen=True)
class Outline:
    """What files say about the images of scores: how many training images there are, and ids. None: they do not say."""

    train: int | None = None
    train_ids: list[str] | None = None
    query_ids: list[str] | None = None


def read(given: Given, usual: Sequence[str], rows: Sequence[str] = (), columns: Sequence[str] = ()) -> Table:
    """Read the array of a file that has the first of the ``usual`` names, or the only array of the file.

    Args:
        usual: names that are looked for if the setting names no key.
        rows: what the rows of a table in CSV are: TRAIN_IDS, QUERY_IDS, or nothing that has ids.
        columns: the same for its columns.

    Raises:
        DataError: there is no such file or array, the file is damaged, or it holds other things than numbers.
    """
    if not given.path.exists():
        raise given.error("no such file; correct the path")
    if given.path.is_dir():
        return _trak_store(given)
    suffix = given.path.suffix.lower()
    if suffix not in KINDS:
        raise given.error(f"must be one of {', '.join(KINDS)}: save a plain array with numpy.save")
    if suffix == ".csv":
        return _csv(given, rows, columns)
    arrays, ids = (_torch(given), {}) if suffix == ".pt" else _arrays(given)
    name = _chosen(given, arrays, usual)
    others = {other: array for other, array in arrays.items() if other != name}
    return Table(
        values=_numbers(given, arrays[name]),
        train_ids=_first(ids, TRAIN_IDS),
        query_ids=_first(ids, QUERY_IDS),
        others=others,
        trains_first=suffix in (".pt", ".mmap"),
        name=name,
    )


def _arrays(given: Given) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The arrays of a file by name, and its ids."""
    try:
        views = arrays_in(given.path)
        ids = {name: texts_of(given.path, view) for name, view in views.items() if name in (*TRAIN_IDS, *QUERY_IDS)}
        if given.path.suffix.lower() == ".safetensors":
            arrays = _as_arrays(load_file(given.path))  # views have images in float32
        else:
            arrays = {name: np.array(view.all()) for name, view in views.items()}
    except DataError as error:
        raise DataError(f"{given.setting}: {error}") from error
    except Exception as error:  # a damaged file can raise any error, also where an array is read
        raise given.error(f"cannot be read ({error}): it is damaged; copy or save it again") from error
    return {name: array for name, array in arrays.items() if name not in ids}, ids


def _torch(given: Given) -> dict[str, np.ndarray]:
    """The tensors of a file of ``torch.save``: one, a dict of them, or dattri's pair (measurements, positions of subsets)."""
    try:
        content: Any = torch.load(given.path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise any error
        raise given.error("cannot be read as tensors: it is damaged, or holds other objects; save plain tensors") from error
    if isinstance(content, torch.Tensor):
        content = {"tensor": content}
    elif isinstance(content, tuple | list) and len(content) == 2:
        content = dict(zip(("measurements", "indices"), content, strict=True))
    if not isinstance(content, dict) or not all(isinstance(part, torch.Tensor) for part in content.values()):
        raise given.error("must hold a tensor, a dict of tensors, or a pair of tensors (measurements, positions of the subsets)")
    return _as_arrays(content)


def _as_arrays(tensors: Mapping[Any, torch.Tensor]) -> dict[str, np.ndarray]:
    small = (torch.bfloat16, torch.float16)  # NumPy lacks the first
    return {str(name): (part.float() if part.dtype in small else part).detach().numpy() for name, part in tensors.items()}


def _trak_store(given: Given) -> Table:
    """The scores in the folder of a TRAKer (traker 0.3): ``scores/EXPERIMENT.mmap``, ``[N, Q]`` in the format of numpy.save."""
    folder = given.path
    if not (folder / _STORE).is_file():
        raise given.error(
            f"is a folder without {_STORE} (a store of TRAK), sub-idx-0.pkl (subsets of D-TRAK or DAS) or ddpm-sub-0-0 (their "
            "models): name a file, or the folder that has one of these"
        )
    try:
        content = json.loads((folder / _STORE).read_text(encoding="utf-8"))
        size = int(content["train set size"])
    except (ValueError, KeyError, TypeError) as error:
        raise given.error(f"{_STORE} has no 'train set size', so it is no store of TRAK: name a file of scores/") from error
    found = sorted((folder / "scores").glob("*.mmap"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise given.error(f"has {len(found)} files of scores ({names}): name the one to take, such as {folder}/scores/NAME.mmap")
    table = read(Given(given.setting, str(found[0])), ())
    if len(table.values) != size:
        raise given.error(
            f"{found[0].name} has {len(table.values)} rows, but {_STORE} says {size} training images: compute it again"
        )
    return table


def _csv(given: Given, rows: Sequence[str], columns: Sequence[str]) -> Table:
    """A table of numbers; with ids in its first line and first column if its first cell is no number."""
    try:
        with given.path.open(newline="", encoding="utf-8-sig") as file:
            lines = [line for line in csv.reader(file) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise given.error(f"is no table in CSV ({error}): write numbers that commas divide, in UTF-8") from error
    if not lines:
        raise given.error("is empty: write a line of numbers for each row")
    ids: dict[Any, list[str]] = {}
    if not _is_number(lines[0][0]):
        ids = {columns: lines[0][1:], rows: [line[0] for line in lines[1:]]}
        lines = [line[1:] for line in lines[1:]]
    if len({len(line) for line in lines}) != 1:
        raise given.error("has lines of different lengths: write the same number of cells in each, with a cell above the ids")
    try:
        values = np.array(lines, dtype=np.float64)
    except ValueError as error:
        raise given.error(f"{error}: write numbers, and ids only in the first line and the first column") from error
    return Table(values, ids.get(TRAIN_IDS), ids.get(QUERY_IDS), {})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _chosen(given: Given, arrays: Mapping[str, np.ndarray], usual: Sequence[str]) -> str:
    listed = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "none"
    if given.key is not None:
        if given.key not in arrays:
            raise given.error(f"the file has no array of this name, but {listed}: name one of these")
        return given.key
    known = [name for name in usual if name in arrays] or (list(arrays) if len(arrays) == 1 else [])
    if not known:
        raise given.error(f"the file has the arrays {listed}: say which one to take, as {given.file}:NAME")
    return known[0]


def _numbers(given: Given, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf":
        raise given.error(f"holds {values.dtype} {list(values.shape)}, not numbers: save an array of floats or booleans")
    return values.astype(np.float32) if values.dtype == np.float16 else values


def _first(ids: Mapping[str, list[str]], names: Sequence[str]) -> list[str] | None:
    return next((ids[name] for name in names if name in ids), None)
