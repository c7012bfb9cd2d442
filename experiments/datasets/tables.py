"""Tables of images: parquet files, and data sets of the library ``datasets``, which is an optional extra."""

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
_ALIASES = {"training": "train", "val": "validation", "valid": "validation", "dev": "validation", "testing": "test", "eval": "test"}
_SPLITS = {"train", "validation", "test", *_ALIASES}
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ROWS = 256
"""Rows that are read at a time."""


class Table(ABC):
    """Rows with named columns, such as one of images. Values are plain; an image is the content of its file, or has "bytes"."""

    count: int
    columns: dict[str, str]
    """The type of each column, in words."""
    images: list[str]
    """The columns of images."""
    made_of: Any
    """Plain values and files that identify the content."""
    files: list[Path]

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
            f"{setting} holds neither a saved data set (dataset_dict.json or state.json, as save_to_disk writes) nor parquet files; "
            "image files are read by data=folder, arrays by data=arrays"
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
            by_split.setdefault(_ALIASES.get(split, split), []).append(path)
    if not by_split:
        return {"train": ParquetTable.of(others, setting)}
    if others:
        note(f"left out of {root}, as files of no split: {listed([str(path.relative_to(root)) for path in others])}")
    return {split: ParquetTable.of(paths, setting) for split, paths in by_split.items()}


@dataclass(frozen=True, eq=False)
class ParquetTable(Table):
    """The rows of parquet files, one file after the other."""

    files: list[Path]
    counts: list[int]
    columns: dict[str, str]
    images: list[str]
    made_of: Any = None

    @classmethod
    def of(cls, files: list[Path], setting: str) -> "ParquetTable":
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise DataError(_NEEDS) from error
        schemas, counts = [], []
        for path in files:
            try:
                file = parquet.ParquetFile(path)
            except (ValueError, OSError) as error:
                raise DataError(f"{setting}: {path} cannot be read ({error}): it is damaged, or no parquet file") from error
            schemas.append(file.schema_arrow)
            counts.append(file.metadata.num_rows)
        common = [name for name in schemas[0].names if all(name in schema.names for schema in schemas)]
        kinds = {name: schemas[0].field(name).type for name in common}
        return cls(files, counts, {name: _word(kind) for name, kind in kinds.items()}, [n for n in common if _is_image(kinds[n])])

    @property
    def count(self) -> int:
        return sum(self.counts)

    def values(self, column: str, rows: np.ndarray) -> Iterator[Any]:
        import pyarrow.parquet as parquet

        first = 0
        for path, count in zip(self.files, self.counts, strict=True):
            if np.searchsorted(rows, first + count) > np.searchsorted(rows, first):
                start = first
                for batch in parquet.ParquetFile(path).iter_batches(_ROWS, columns=[column]):
                    inside = rows[slice(*np.searchsorted(rows, (start, start + len(batch))).tolist())]
                    yield from batch.column(0).take(inside - start).to_pylist()
                    start += len(batch)
            first += count

    def file_names(self, image: str) -> list[str | None]:
        import pyarrow.parquet as parquet

        if "struct" not in self.columns[image]:
            return [None] * self.count
        tables = (parquet.ParquetFile(path).read(columns=[f"{image}.path"]) for path in self.files)
        return [(value or {}).get("path") for table in tables for value in table.column(0).to_pylist()]


def _word(kind: Any) -> str:
    return "struct of bytes and path" if _is_image(kind) and str(kind).startswith("struct") else str(kind)


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in {kind.field(i).name for i in range(kind.num_fields)}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _from_disk(root: Path, setting: str) -> dict[str, Table]:
    datasets = _library()
    try:
        found = datasets.load_from_disk(str(root))
    except Exception as error:  # a damaged folder can raise any error
        raise DataError(f"{setting} cannot be read ({_line(error)}): save it again with save_to_disk") from error
    return _tables(found)


def _from_cache(name: str, setting: str, subset: str | None) -> dict[str, Table]:
    """A data set in the local cache, without asking the network."""
    if not _NAME.fullmatch(name):
        raise DataError(f"{setting}: there is no such folder, and it is no name of a data set in the local cache")
    datasets = _library()
    import huggingface_hub

    with ExitStack() as offline:
        for module in (datasets.config, huggingface_hub.constants):
            offline.enter_context(patch.object(module, "HF_HUB_OFFLINE", True))
        before = datasets.utils.logging.get_verbosity()
        datasets.utils.logging.set_verbosity_error()  # it warns that it takes the data from the cache
        offline.callback(datasets.utils.logging.set_verbosity, before)
        try:
            found = datasets.load_dataset(name, subset)
        except Exception as error:  # a missing or damaged data set can raise any error
            raise DataError(
                f"{setting}{'' if subset is None else f', data.subset={subset}'}: there is no such folder, and the local cache has no "
                f"such data set ({_line(error)}); fetch it once where there is a network, python -c \"import datasets; "
                f"datasets.load_dataset('{name}')\", or give a folder"
            ) from error
    return _tables(found)


def _tables(found: Any) -> dict[str, Table]:
    return {name: DatasetTable.of(part) for name, part in (found.items() if isinstance(found, dict) else [("train", found)])}


@dataclass(frozen=True, eq=False)
class DatasetTable(Table):
    """The rows of a ``datasets.Dataset``."""

    dataset: Any
    columns: dict[str, str]
    images: list[str]

    @classmethod
    def of(cls, dataset: Any) -> "DatasetTable":
        from datasets import Image

        kinds = dataset.features
        images = [name for name, kind in kinds.items() if isinstance(kind, Image) or getattr(kind, "dtype", "") in ("binary", "large_binary")]
        for name in images:
            if isinstance(kinds[name], Image):
                dataset = dataset.cast_column(name, Image(decode=False))
        return cls(dataset, {name: getattr(kind, "dtype", None) or type(kind).__name__ for name, kind in kinds.items()}, images)

    @property
    def count(self) -> int:
        return len(self.dataset)

    @property
    def files(self) -> list[Path]:
        return [Path(file["filename"]) for file in self.dataset.cache_files]

    @property
    def made_of(self) -> str:
        return self.dataset._fingerprint

    def values(self, column: str, rows: np.ndarray) -> Iterator[Any]:
        part = self.dataset.select_columns([column])
        for start in range(0, len(rows), _ROWS):
            yield from part[rows[start : start + _ROWS].tolist()][column]

    def file_names(self, image: str) -> list[str | None]:
        flat = self.dataset.select_columns([image]).flatten()
        return list(flat[f"{image}.path"]) if f"{image}.path" in flat.column_names else [None] * self.count


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(_NEEDS) from error
    return datasets


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
