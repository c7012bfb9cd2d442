"""Tables of images: parquet files, and data sets of the library ``datasets``, which is an optional extra."""

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from experiments.datasets.errors import DataError
from experiments.datasets.image_files import listed, natural, note

_NEEDS = "data=huggingface needs the libraries datasets and pyarrow: pip install -e '.[huggingface]'"
HELD_OUT = ("validation", "val", "valid", "dev")
"""Names of splits of validation images."""
_SPLITS = {"train", "training", "test", "testing", "eval", *HELD_OUT}
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ROWS = 256
"""Rows that are read at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table(ABC):
    """``count`` rows with named columns, such as one of images. Values are plain; an image is the content of its file, or a
    mapping with "bytes" or "path".

    ``columns``: the type of each column in words; ``images``: the columns of images. ``files`` and ``version`` identify what the
    rows are.
    """

    count: int
    columns: dict[str, str]
    images: list[str]
    files: list[Path]
    version: str = ""

    @abstractmethod
    def values(self, column: str, rows: np.ndarray) -> Iterator[Any]:
        """Yield the values in ``rows``, which ascend, a few at a time."""

    @abstractmethod
    def file_names(self, image: str) -> list[str | None]:
        """The name of the file that each image of a column was made from."""


def open_tables(root: Path, setting: str, subset: str | None) -> dict[str, Table]:
    """The splits of a folder of ``save_to_disk``, of parquet files, or of a data set in the local cache of ``datasets``, by name.

    ``setting`` is "setting=value" of ``root`` for messages.

    Raises:
        DataError: there is no such data set, it is damaged, or a library is missing.
    """
    if root.is_dir() and any((root / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _from_disk(root, setting)
    if root.is_dir() or root.suffix == ".parquet":
        files = sorted(root.rglob("*.parquet"), key=lambda path: natural(path.relative_to(root))) if root.is_dir() else [root]
        if files := [path for path in files if not any(part.startswith(".") for part in path.relative_to(root).parts)]:
            return _parquet(root, files, setting)
        raise DataError(
            f"{setting} holds neither a saved data set (dataset_dict.json or state.json, as save_to_disk writes) nor parquet "
            "files; image files are read by data=folder, arrays by data=arrays"
        )
    return _from_cache(str(root), setting, subset)


def _parquet(root: Path, files: Sequence[Path], setting: str) -> dict[str, Table]:
    """Split the files by names such as train-00000-of-00002.parquet, or by folders such as train; else they are one split."""
    by_split: dict[str, list[Path]] = {}
    others = []
    for path in files:
        parts = [_SHARD.sub("", path.stem), *(part for part in reversed(path.relative_to(root).parts[:-1]))]
        split = next((part.lower() for part in parts if part.lower() in _SPLITS), None)
        if split is None:
            others.append(path)
        else:
            by_split.setdefault(split, []).append(path)
    if not by_split:
        return {"train": ParquetTable.of(others, setting)}
    if others:
        note(f"left out of {root}, as files of no split: {listed([str(path.relative_to(root)) for path in others])}")
    return {split: ParquetTable.of(paths, setting) for split, paths in by_split.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetTable(Table):
    """The rows of parquet files, one file after the other; ``counts``: those of each."""

    counts: list[int]

    @classmethod
    def of(cls, files: list[Path], setting: str) -> "ParquetTable":
        schemas, counts = [], []
        for path in files:
            try:
                file = _library("pyarrow.parquet").ParquetFile(path)
            except DataError:
                raise
            except (ValueError, OSError) as error:
                raise DataError(f"{setting}: {path} cannot be read ({error}): it is damaged, or no parquet file") from error
            schemas.append(file.schema_arrow)
            counts.append(file.metadata.num_rows)
        common = [name for name in schemas[0].names if all(name in schema.names for schema in schemas)]
        kinds = {name: schemas[0].field(name).type for name in common}
        return cls(
            count=sum(counts),
            columns={name: _word(kind) for name, kind in kinds.items()},
            images=[name for name in common if _is_image(kinds[name])],
            files=files,
            counts=counts,
        )

    def values(self, column: str, rows: np.ndarray) -> Iterator[Any]:
        parquet = _library("pyarrow.parquet")
        first = 0
        for path, count in zip(self.files, self.counts, strict=True):
            if np.searchsorted(rows, first + count) > np.searchsorted(rows, first):
                start = first
                try:
                    for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=[column]):
                        inside = rows[slice(*np.searchsorted(rows, (start, start + len(batch))).tolist())]
                        yield from batch.column(0).take(inside - start).to_pylist()
                        start += len(batch)
                except (ValueError, OSError) as error:
                    raise DataError(f"{path} cannot be read ({_line(error)}): it is damaged") from error
            first += count

    def file_names(self, image: str) -> list[str | None]:
        parquet = _library("pyarrow.parquet")
        if "path" not in self.columns[image]:
            return [None] * self.count
        tables = (parquet.ParquetFile(path).read(columns=[f"{image}.path"]) for path in self.files)
        return [(value or {}).get("path") for table in tables for value in table.column(0).to_pylist()]


def _word(kind: Any) -> str:
    if _is_image(kind) and _library("pyarrow").types.is_struct(kind):
        return " and ".join(["bytes", *(["path"] if "path" in {kind.field(i).name for i in range(kind.num_fields)} else [])])
    return str(kind)


def _is_image(kind: Any) -> bool:
    types = _library("pyarrow").types
    if types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return types.is_binary(kind) or types.is_large_binary(kind)


def _from_disk(root: Path, setting: str) -> dict[str, Table]:
    datasets = _library("datasets")
    try:
        found = datasets.load_from_disk(str(root))
    except Exception as error:  # a damaged folder can raise any error
        raise DataError(f"{setting} cannot be read ({_line(error)}): save it again with save_to_disk") from error
    return _tables(found)


def _from_cache(name: str, setting: str, subset: str | None) -> dict[str, Table]:
    """A data set in the local cache, without asking the network."""
    if not _NAME.fullmatch(name):
        raise DataError(f"{setting}: there is no such folder, and it is no name of a data set in the local cache")
    datasets = _library("datasets")
    with ExitStack() as offline:
        for module in (datasets.config, _library("huggingface_hub.constants")):
            offline.enter_context(patch.object(module, "HF_HUB_OFFLINE", True))
        before = datasets.utils.logging.get_verbosity()
        datasets.utils.logging.set_verbosity_error()  # it warns that it takes the data from the cache
        offline.callback(datasets.utils.logging.set_verbosity, before)
        try:
            found = datasets.load_dataset(name, subset)
        except Exception as error:  # a missing or damaged data set can raise any error
            raise DataError(
                f"{setting}{'' if subset is None else f', data.subset={subset}'}: there is no such folder, and the local cache has "
                f'no such data set ({_line(error)}); fetch it once where there is a network, python -c "import datasets; '
                f"datasets.load_dataset('{name}')\", or give a folder"
            ) from error
    return _tables(found)


def _tables(found: Any) -> dict[str, Table]:
    return {name: DatasetTable.of(part) for name, part in (found.items() if isinstance(found, dict) else [("train", found)])}


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetTable(Table):
    """The rows of a ``datasets.Dataset``."""

    dataset: Any

    @classmethod
    def of(cls, dataset: Any) -> "DatasetTable":
        image, kinds = _library("datasets").Image, dataset.features
        decoded = [name for name, kind in kinds.items() if isinstance(kind, image)]
        plain = [name for name, kind in kinds.items() if getattr(kind, "dtype", "") in ("binary", "large_binary")]
        for name in decoded:
            dataset = dataset.cast_column(name, image(decode=False))
        return cls(
            count=len(dataset),
            columns={name: getattr(kind, "dtype", None) or type(kind).__name__ for name, kind in kinds.items()},
            images=[*decoded, *plain],
            files=[Path(file["filename"]) for file in dataset.cache_files],
            version=dataset._fingerprint,
            dataset=dataset,
        )

    def values(self, column: str, rows: np.ndarray) -> Iterator[Any]:
        part = self.dataset.select_columns([column])
        for start in range(0, len(rows), _ROWS):
            yield from part[rows[start : start + _ROWS].tolist()][column]

    def file_names(self, image: str) -> list[str | None]:
        flat = self.dataset.select_columns([image]).flatten()
        return list(flat[f"{image}.path"]) if f"{image}.path" in flat.column_names else [None] * self.count


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(_NEEDS) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
