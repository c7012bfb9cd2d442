"""Images in the formats of Hugging Face: saved data sets, parquet files, and data sets in the local cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attribution.images import Images
from experiments.datasets.errors import DataError
from experiments.datasets.image_reader import Encoded, Framing, decode
from experiments.datasets.own_images import EncodedImages
from experiments.datasets.pixels import decoded, states
from experiments.datasets.source import Splits
from experiments.datasets.splitting import NO_LABEL, numbered
from experiments.datasets.tables import HELD_OUT, Table, open_tables

SHARED = (
    "experiments.datasets.image_reader",
    "experiments.datasets.own_images",
    "experiments.datasets.splitting",
    "experiments.datasets.tables",
)

IMAGES, LABELS = ("image", "img"), ("label", "labels")
"""Columns that are looked for, in this order, if no setting names one."""


@dataclass(frozen=True, kw_only=True)
class HuggingFace(EncodedImages):
    """The images of a data set in ``root``: a folder that ``datasets.save_to_disk`` wrote, a folder of parquet files, or the name
    of a data set in the local cache of ``datasets`` (with its configuration ``subset``). Nothing is downloaded.

    ``train`` and ``validation`` are names of its splits. With ``validation=None``, a split called validation (or val, valid,
    dev) has the validation images; if there is none, a random order of the training split by ``seed`` has the training images at
    one end and the validation images at the other. ``image``, ``label`` and ``name`` are columns: of encoded images, of integers
    or text, and of text. By default image or img; label or labels, or no labels; and the names of the files that the images were
    made from, if every image has one of its own. Ids are rows of the split.
    """

    NAME = "HuggingFace"
    VERSION = 1

    subset: str | None = None
    train: str = "train"
    validation: str | None = None
    image: str | None = None
    label: str | None = None
    name: str | None = None

    def read(self) -> Splits:
        if self.root is None:
            raise DataError(
                "data.root is missing: set it to the folder of a saved data set or of parquet files, or to a cached name"
            )
        splits = open_tables(self.folder, f"data.root={self.root}", self.subset)
        train = self._split(splits, "train", self.train)
        held_out = self.validation or next((name for name in HELD_OUT if name in splits), None)
        if held_out == self.train or held_out is None:
            tables, counts = [train, train], [train.count]
        else:
            tables = [train, self._split(splits, "validation", held_out)]
            counts = [table.count for table in tables]
        chosen = self.taken(counts, f"the split {self.train} of {self.root}")
        pixels, label = self._pixels(tables, chosen), self._label(tables, chosen)
        n = len(chosen[0])
        return Splits(
            *(
                Images(pixels[part], rows, label[part], names=self._names(table, rows))
                for table, rows, part in zip(tables, chosen, (slice(n), slice(n, None)), strict=True)
            )
        )

    def _split(self, splits: dict[str, Table], setting: str, name: str) -> Table:
        if name not in splits:
            null = ", or data.validation=null for a random part of the training images" if setting == "validation" else ""
            raise DataError(
                f"data.{setting}={name}: {self.root} has no such split; set it to one of {', '.join(sorted(splits))}{null}"
            )
        if not splits[name].count:
            raise DataError(f"data.{setting}={name}: this split of {self.root} is empty")
        return splits[name]

    def _column(self, table: Table, setting: str, wanted: str | None, usual: Sequence[str]) -> str | None:
        """The column that a setting names, or the first of the usual ones."""
        if wanted is not None and wanted not in table.columns:
            raise DataError(f"data.{setting}={wanted}: {self.root} has no such column; choose one of {_columns(table)}")
        return wanted or next((name for name in usual if name in table.columns), None)

    def _image(self, table: Table) -> str:
        (only,) = table.images if len(table.images) == 1 else (None,)
        column = self._column(table, "image", self.image, IMAGES) or only
        if column is None:
            raise DataError(f"data.image is missing: set it to the column of the images in {self.root}, one of {_columns(table)}")
        if column not in table.images:
            raise DataError(
                f"data.image={column}: this column of {self.root} has type {table.columns[column]}, which is no encoded image "
                f"(bytes of a PNG, JPEG, ...); choose one of {', '.join(table.images) or 'none'}; arrays are read by data=arrays"
            )
        return column

    def _pixels(self, tables: Sequence[Table], chosen: Sequence[np.ndarray]) -> np.ndarray:
        framing, columns = Framing(self.shape, self.resize, self.crop), [self._image(table) for table in tables]
        made_of = [
            *("huggingface", [states(table.files) for table in tables], [table.version for table in tables], columns),
            *([rows.tolist() for rows in chosen], list(self.shape), self.resize, self.crop),
        ]

        def fill(pixels: np.ndarray) -> list[str]:
            return decode(self._encoded(tables, columns, chosen), pixels, framing, str(self.root), "data")

        return decoded(self.store, made_of, (sum(map(len, chosen)), *self.shape), "uint8", fill)

    def _encoded(self, tables: Sequence[Table], columns: Sequence[str], chosen: Sequence[np.ndarray]) -> Iterator[Encoded]:
        for table, column, rows, split in zip(tables, columns, chosen, ("train", "validation"), strict=True):
            names = self._names(table, rows)
            for place, value in enumerate(table.values(column, rows)):
                name = f"{split} row {rows[place]}" if names is None else str(names[place])
                yield Encoded(name, lambda value=value: _content(value, self.folder))

    def _label(self, tables: Sequence[Table], chosen: Sequence[np.ndarray]) -> np.ndarray:
        """The labels of all chosen images. Text is numbered over all images of both splits, and NO_LABEL is a missing value."""
        values: list[Any] = []
        for table in tables:
            column = self._column(table, "label", self.label, LABELS)
            values += [None] * table.count if column is None else list(table.values(column, np.arange(table.count)))
            if not all(isinstance(value, int | str | None) for value in values):
                raise DataError(
                    f"data.label={column}: labels must be integers or text, but this column of {self.root} has type "
                    f"{table.columns[column or LABELS[0]]}; choose another of {_columns(table)}"
                )
        rows = np.concatenate([chosen[0], tables[0].count + chosen[1]])
        if any(isinstance(value, str) for value in values):
            return numbered([None if value is None else str(value) for value in values])[rows]
        return np.array([NO_LABEL if value is None else int(value) for value in values], np.int64)[rows]

    def _names(self, table: Table, rows: np.ndarray) -> np.ndarray | None:
        column = self._column(table, "name", self.name, ())
        if column is not None:
            return np.array([str(value) for value in table.values(column, rows)], np.str_)
        names = table.file_names(self._image(table))
        if None in names or len(set(names)) < len(names):
            return None
        return np.array([names[row] for row in rows.tolist()], np.str_)


def _columns(table: Table) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in table.columns.items())


def _content(value: Any, folder: Path) -> bytes:
    """The content of the file of an image: itself, or that of the path that it has instead."""
    content = value.get("bytes") if isinstance(value, dict) else value
    if content is not None:
        return content
    if isinstance(value, dict) and value.get("path"):
        return (folder / value["path"]).read_bytes()
    raise OSError("the row has no image")
