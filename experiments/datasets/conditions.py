"""What networks are told about an image (``condition=``): nothing, its class, or an embedding from a file."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from attribution.checks import FieldError, number, whole
from attribution.images import Images
from attribution.nodes import added, execution
from experiments.datasets.array_files import NAMES, SUFFIXES, ArrayView, arrays_in, texts_of
from experiments.datasets.errors import DataError
from experiments.datasets.splitting import NO_LABEL

SHARED = ("attribution.images.images", "experiments.datasets.array_files", "experiments.datasets.splitting")

Generated = Literal["in_turn", "training"]
"""Which conditions generated images get: of every class in turn, or those of random training images."""


@dataclass(frozen=True, kw_only=True)
class Condition(ABC):
    """What networks are told about an image.

    ``dropout``: the probability with which training drops it, which is a part of the identity of the objective. ``generated``: the
    conditions of generated images, a part of the identity of these.
    """

    dropout: float = execution(default=0.0)
    generated: Generated = execution(default="training")

    def __post_init__(self):
        number(self, "dropout", least=0, most=1)

    @abstractmethod
    def of(self, name: str, images: Images) -> np.ndarray | None:
        """The conditions ``[N, ...]`` of the images of one split, which is called ``name``.

        Raises:
            DataError: an image has none.
        """

    def check_ids(self, train: Images, validation: Images) -> None:  # noqa: B027 (most have nothing to check)
        """Raise DataError if conditions are found by ids that images of both splits have."""


@dataclass(frozen=True, kw_only=True)
class NoCondition(Condition):
    """Nothing."""

    NAME = "NoCondition"
    VERSION = 1

    def __post_init__(self):
        super().__post_init__()
        if self.dropout:
            raise FieldError(self, "dropout", "there is no condition to drop: set 0, or choose condition=labels or embeddings")

    def of(self, name: str, images: Images) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Labels(Condition):
    """The class of an image: its label, one of 0..``classes`` - 1. Networks have class number ``classes`` for a dropped one."""

    NAME = "Labels"
    VERSION = 1

    classes: int
    generated: Generated = execution(default="in_turn")

    def __post_init__(self):
        super().__post_init__()
        whole(self, "classes", least=1)

    def of(self, name: str, images: Images) -> np.ndarray:
        label = np.asarray(images.label)
        if (unlabeled := np.flatnonzero(label <= NO_LABEL)).size:
            raise DataError(
                f"condition=labels: {len(unlabeled):,} of {len(label):,} {name} images have no class (first: "
                f"{images.name(int(unlabeled[0]))}): give every image a class (docs/images.md), or choose condition=none"
            )
        if label.max(initial=0) >= self.classes:
            message = f"the {name} images have labels up to {label.max()}: set at least {label.max() + 1}"
            raise FieldError(self, "classes", message)
        return label


@dataclass(frozen=True, kw_only=True)
class Embeddings(Condition):
    """Embeddings in a file: one vector ``[D]`` or sequence of vectors ``[L, D]`` for each image, with D = ``size``.

    ``path``: an .npy, .npz or .safetensors file with an array ``[M, D]`` or ``[M, L, D]``: the array ``key``, by default
    ``embeddings`` or the only one. An array ``names`` or ``ids`` ``[M]`` beside it says which images the rows are of; without
    either, row i belongs to the image with id i. Or an .npz or .safetensors file with an array ``[D]`` or ``[L, D]`` for each
    image, under its name. ``validation``: the file of the validation images (None: ``path``).

    ``pooled``: the size P of a second embedding of each image, the array ``pooled [M, P]`` beside the other one, which networks
    such as SD3 take. It follows every vector of the sequence: conditions are ``[N, L, D + P]``.
    """

    NAME = "Embeddings"
    VERSION = 1

    path: str | Path
    size: int
    key: str | None = None
    validation: str | Path | None = None
    pooled: int = added(default=0)

    def __post_init__(self):
        super().__post_init__()
        whole(self, "size", least=1)
        whole(self, "pooled", least=0)
        if self.pooled and self.key == "pooled":
            raise FieldError(self, "key", "the array pooled is the second embedding: name the first one, or set pooled to 0")
        if self.generated != "training":
            raise FieldError(self, "generated", "embeddings belong to images, not to classes: set training")

    def of(self, name: str, images: Images) -> np.ndarray:
        file = self._open(name)
        path = file.path
        places: dict[Any, Any] = file.places
        wanted = images.index.tolist() if file.by_id else [images.name(row) for row in range(len(images))]
        if absent := [row for row, image in enumerate(wanted) if image not in places]:
            found = f"it has {len(places):,}, found by {'ids' if file.by_id else 'names'} such as {next(iter(places), None)}"
            raise DataError(
                f"condition.path={path}: no embedding for {len(absent):,} of {len(images):,} {name} images (first: "
                f"{images.name(absent[0])}, id {images.index[absent[0]]}); {found}"
            )
        chosen = [places[image] for image in wanted]
        embeddings = file.read(chosen)
        self._check(name, path, embeddings)
        return self._with_pooled(name, path, embeddings, file.read_pooled(chosen)) if self.pooled else embeddings

    def check_ids(self, train: Images, validation: Images) -> None:
        common = np.intersect1d(train.index, validation.index)
        if self.validation is None and common.size and self._open("train").by_id:
            raise DataError(
                f"condition.path={self.path}: its embeddings are found by the ids of images, but training and validation images "
                f"have the same ids (such as {common[0]}): add an array names, or give condition.validation=FILE"
            )

    def _open(self, name: str) -> "_EmbeddingFile":
        own = name == "validation" and self.validation is not None
        path = Path(self.validation if own else self.path).expanduser()  # pyright: ignore[reportArgumentType]
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            setting = "condition.validation" if own else "condition.path"
            raise DataError(f"{setting}={path}: must be a file that exists, one of {', '.join(SUFFIXES)}")
        return _EmbeddingFile(path, self.key, self.pooled > 0)

    def _with_pooled(self, name: str, path: Path, embeddings: np.ndarray, pooled: np.ndarray) -> np.ndarray:
        if pooled.ndim != 2 or pooled.shape[1] != self.pooled:
            shape = "×".join(map(str, pooled.shape))
            raise FieldError(
                self, "pooled", f"the pooled embeddings of the {name} images are {shape}: set the last number, or give N×P"
            )
        if not np.isfinite(pooled).all():
            raise DataError(f"condition.path={path}: pooled embeddings of {name} images have values that are not finite")
        sequences = embeddings if embeddings.ndim == 3 else embeddings[:, None]
        repeated = np.broadcast_to(pooled[:, None], (*sequences.shape[:2], self.pooled))
        return np.concatenate([sequences, repeated], axis=2)

    def _check(self, name: str, path: Path, embeddings: np.ndarray) -> None:
        if embeddings.ndim not in (2, 3) or 0 in embeddings.shape:
            shape = "×".join(map(str, embeddings.shape))
            raise DataError(f"condition.path={path}: the embeddings are {shape}; they must be N×D or N×L×D (images, length, size)")
        if embeddings.shape[-1] != self.size:
            message = f"the embeddings in {path} have {embeddings.shape[-1]} numbers: set this size, or give others"
            raise FieldError(self, "size", message)
        if not np.isfinite(embeddings).all():
            raise DataError(f"condition.path={path}: embeddings of {name} images have values that are not finite")


class _EmbeddingFile:
    """The embeddings in a file: ``places`` maps an image's id (``by_id``) or name to the place of its embedding."""

    def __init__(self, path: Path, key: str | None, pooled: bool):
        arrays = arrays_in(path)
        names = next(iter([arrays.pop(name) for name in (*NAMES, "ids") if name in arrays]), None)
        self.path, self.pooled = path, arrays.pop("pooled", None) if pooled else None
        self.table = self._table(arrays, key)
        self.by_id = self.table is not None and (names is None or names.name == "ids")
        if self.table is None:
            self.places, self.arrays = {name: name for name in arrays}, arrays
            return
        count = self.table.shape[0] if self.table.shape else 0
        if names is None:
            self.places = {i: i for i in range(count)}
            return
        listed: Sequence = _ids(path, names) if self.by_id else texts_of(path, names)
        self.places = {image: row for row, image in enumerate(listed)}
        if len(listed) != count or len(self.places) < len(listed):
            raise DataError(
                f"condition.path={path}: {count} embeddings but {len(self.places)} different {names.name}: every embedding needs "
                "one of its own"
            )

    def _table(self, arrays: dict[str, ArrayView], key: str | None) -> ArrayView | None:
        """The array with the embeddings of all images, or None if every image has an array of its own."""
        if key is not None:
            if key not in arrays:
                raise DataError(f"condition.key={key}: {self.path} has no such array, but {', '.join(sorted(arrays)[:20])}")
            return arrays[key]
        return arrays.get("embeddings") or (next(iter(arrays.values())) if len(arrays) == 1 else None)

    def read(self, places: list) -> np.ndarray:
        """The embeddings at ``places``, float32 ``[N, ...]``."""
        if self.table is not None:
            return self._numbers(self.table)[places]
        parts = [self._numbers(self.arrays[place]) for place in places]
        if shapes := {part.shape for part in parts} - {parts[0].shape}:
            raise DataError(f"condition.path={self.path}: embeddings of different shapes, {parts[0].shape} and {shapes.pop()}")
        return np.stack(parts)

    def read_pooled(self, places: list) -> np.ndarray:
        """The pooled embeddings at ``places``, float32 ``[N, ...]``."""
        if self.table is None or self.pooled is None or self.pooled.shape[:1] != self.table.shape[:1]:
            has = "has none" if self.pooled is None else f"has {'×'.join(map(str, self.pooled.shape))}"
            raise DataError(
                f"condition.pooled: {self.path} needs an array pooled [M, P] with a row for every row of the array embeddings, but "
                f"{has}: add it, or set condition.pooled=0"
            )
        return self._numbers(self.pooled)[places]

    def _numbers(self, array: ArrayView) -> np.ndarray:
        values = array.all()
        if values.dtype.kind not in "fiub":
            raise DataError(f"condition.path={self.path}: the embeddings {array.name} are {array.dtype}; they must be real numbers")
        return np.asarray(values, np.float32)


def _ids(path: Path, array: ArrayView) -> list[int]:
    values = array.all()
    if values.ndim != 1 or values.dtype.kind not in "iu":
        shape = list(array.shape)
        raise DataError(f"condition.path={path}: the ids {shape} {array.dtype} must be one integer for each embedding")
    return values.tolist()


def conditioned(condition: Condition, train: Images, validation: Images) -> tuple[Images, Images]:
    """The images of both splits with their conditions."""
    condition.check_ids(train, validation)
    return (
        replace(train, condition=condition.of("train", train)),
        replace(validation, condition=condition.of("validation", validation)),
    )
