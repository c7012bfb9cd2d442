"""Measurements of retrained models in files: what scores are judged by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.checks import FieldError
from attribution.images import Images
from experiments.benchmarks.lds_report import Measurements
from experiments.benchmarks.subset_benchmark import MIN_SUBSETS
from experiments.judging.archives import has_masks, has_measurements, masks_in, measurements_in
from experiments.judging.given import QUERY_IDS, TRAIN_IDS, Given, Outline, Table, read
from experiments.models.subsets import check_variation

GIVEN = "given"
"""The kind of queries whose measurements are in files."""
MASKS = ("masks", "mask", "arr_0")
MEASUREMENTS = ("measurements", "measured", "values", "arr_0")
REPEATED = "repeated"
"""The array beside measurements of one training run: the first subsets, trained once more, ``[M', Q]``."""
INDICES = "indices"
"""The array beside dattri's measurements: the positions of the images that each subset keeps."""


@dataclass(frozen=True, eq=False)
class Truth:
    """The measurements of one ``kind`` of queries under models of M subsets, and the images that they are of.

    ``train`` and ``queries`` have ids and names, but no pixels.
    """

    kind: str
    measurements: Measurements
    train: Images
    queries: Images


def read_truth(measurements: Sequence[str], masks: str | None, utility: bool, outline: Callable[[int], Outline]) -> Truth:
    """Read measurements ``[M, Q]`` or ``[K, M, Q]``, or K files of ``[M, Q]``, and masks ``[M, N]``.

    Args:
        measurements: the files of ``task.measurements``.
        masks: the file of ``task.masks``; None: the measurements' own file has positions, as dattri's.
        utility: larger measurements are better; they are negated.
        outline: what the files of scores say about images, given the number of queries.

    Raises:
        DataError: a file cannot be read, the shapes do not agree, or there is nothing to correlate.
    """
    given = [Given("task.measurements", file) for file in measurements]
    tables = [measurements_in(one) if has_measurements(one.path) else read(one, MEASUREMENTS, columns=QUERY_IDS) for one in given]
    values = _measured(given, tables)
    _, M, Q = values.shape
    scored = outline(Q)
    kept, mask_table, mask_file = _masks(masks, given[0], tables[0], (M, Q), scored.train)
    check_masks(mask_file, kept)
    repeated = _repeated(given[0], tables[0], values)
    check_measurements(given[0], values)
    sign = -1.0 if utility else 1.0
    replicates = values if repeated is None else np.stack([values[0, : len(repeated)], repeated])
    truth = Measurements(sign * swapped(values), sign * swapped(replicates), (~kept).astype(np.float64))
    query_ids = _ids(given[0], tables[0].query_ids or scored.query_ids, Q, "queries")
    train_ids = _ids(mask_file, mask_table.train_ids or scored.train_ids, kept.shape[1], "training images")
    return Truth(GIVEN, truth, unseen(kept.shape[1], train_ids), unseen(Q, query_ids))


def unseen(count: int, names: Sequence[str] | None) -> Images:
    """Images of which only the ids or names are known: whole numbers are ids, and other texts names."""
    whole = names is not None and all(name.isascii() and name.isdigit() and len(name) < 19 for name in names)
    index = np.array([int(name) for name in names], dtype=np.int64) if names is not None and whole else np.arange(count)
    texts = None if names is None or whole else np.array(names, dtype=np.str_)
    return without_pixels(index, np.full(count, -1), texts)


def without_pixels(index: np.ndarray, label: np.ndarray, names: np.ndarray | None) -> Images:
    """Images of which all but the pixels are known."""
    return Images(np.zeros((len(index), 1, 0, 0), np.float32), index, label, names=names)


def swapped(values: np.ndarray) -> np.ndarray:
    """Measurements by subset and query, ``[K, M, Q]``, by query and subset, ``[K, Q, M]``, or the reverse."""
    return np.ascontiguousarray(values.transpose(0, 2, 1))


def check_masks(given: Given, kept: np.ndarray) -> None:
    """Raises DataError: there are too few subsets, or they show nothing."""
    if len(kept) < MIN_SUBSETS:
        raise given.error(f"has {len(kept)} subsets, and a correlation over subsets needs at least {MIN_SUBSETS}: add some")
    try:
        check_variation(None, kept)
    except FieldError as error:
        raise given.error(error.message) from error


def check_measurements(given: Given, values: np.ndarray) -> None:
    """Raises DataError: a measurement ``[K, M, Q]`` is not finite, a query's are all equal, or two runs are the same."""
    if (places := np.argwhere(~np.isfinite(values))).size:
        k, m, q = places[0].tolist()
        raise given.error(
            f"{len(places)} measurements are not finite, the first of run {k}, subset {m}, query {q}: measure these models again, "
            "or remove the subset or the query"
        )
    means = values.mean(0)
    if constant := np.flatnonzero((means == means[0]).all(0)).tolist():
        raise given.error(
            f"query {constant[0]} has the same measurement under every subset, so it has no correlation: remove it here and from "
            f"the scores (queries of this kind: {len(constant)})"
        )
    for a in range(len(values)):
        for b in range(a):
            if (values[a] == values[b]).all():
                raise given.error(
                    f"training runs {b} and {a} are equal, which would give a noise ceiling of 100 %: give each run once"
                )


def _measured(given: Sequence[Given], tables: Sequence[Table]) -> np.ndarray:
    """The measurements as ``[K, M, Q]``."""
    shapes = [table.values.shape for table in tables]
    if len(tables) > 1:
        for one, shape in zip(given, shapes, strict=True):
            if len(shape) != 2 or shape != shapes[0]:
                raise one.error(
                    f"has the shape {list(shape)}, and the first file {list(shapes[0])}: each of several must be [M, Q]"
                )
    if len(shapes[0]) not in (2, 3) or 0 in shapes[0]:
        raise given[0].error(f"has the shape {list(shapes[0])}: give measurements [M, Q] or [K, M, Q] (runs, subsets, queries)")
    stacked = np.stack([table.values for table in tables]) if len(shapes[0]) == 2 else tables[0].values
    return stacked.astype(np.float64)


def _masks(
    masks: str | None, measured: Given, table: Table, shape: tuple[int, int], images: int | None
) -> tuple[np.ndarray, Table, Given]:
    """The masks ``[M, N]`` and where they are from."""
    M, Q = shape
    if masks is None:
        indices = (table.others or {}).get(INDICES)
        if indices is None:
            raise Given("task.masks", "null").error("name the file of masks [M, N], true where a subset keeps a training image")
        return _at_positions(measured, indices, M, images or 0), table, measured
    given = Given("task.masks", masks)
    found = masks_in(given) if has_masks(given.path) else read(given, MASKS, columns=TRAIN_IDS)
    values = found.values
    if values.ndim != 2 or len(values) != M:
        hint = ": transpose them" if values.ndim == 2 and values.shape[1] == M else ""
        raise given.error(
            f"has the shape {list(values.shape)}, but task.measurements are of {M} subsets and {Q} queries: masks must be "
            f"[{M}, N]{hint}; if the measurements are [Q, M], transpose those"
        )
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        wrong = values[~np.isin(values, (0, 1))][0]
        raise given.error(f"has the value {wrong}: masks are 1 (or true) where the training image was kept, and 0 elsewhere")
    return values.astype(bool), found, given


def _at_positions(given: Given, positions: np.ndarray, M: int, N: int) -> np.ndarray:
    """Masks of subsets that are given by the positions of their images, ``[M, n]``, of at least ``N`` images."""
    if positions.ndim != 2 or len(positions) != M or positions.dtype.kind not in "iu" or positions.size == 0 or positions.min() < 0:
        raise given.error(f"has positions {positions.dtype} {list(positions.shape)}: they must be whole numbers [{M}, n]")
    kept = np.zeros((M, max(N, int(positions.max()) + 1)), dtype=bool)
    np.put_along_axis(kept, positions.astype(np.int64), True, axis=1)
    return kept


def _repeated(given: Given, table: Table, values: np.ndarray) -> np.ndarray | None:
    """The measurements of the first subsets, trained once more, ``[M', Q]``."""
    repeated = (table.others or {}).get(REPEATED)
    if repeated is None or not len(repeated):
        return None
    K, M, Q = values.shape
    if K > 1 or repeated.ndim != 2 or repeated.shape[1] != Q or not MIN_SUBSETS <= len(repeated) <= M:
        raise given.error(
            f"{REPEATED} {list(repeated.shape)} must be [M', {Q}], M' within {MIN_SUBSETS}..{M}, beside measurements of one run"
        )
    if not np.isfinite(repeated).all():
        raise given.error(f"{REPEATED} has numbers that are not finite: measure these models again")
    return repeated.astype(np.float64)


def _ids(given: Given, ids: list[str] | None, count: int, what: str) -> list[str] | None:
    if ids is not None and (len(ids) != count or len(set(ids)) != count):
        raise given.error(f"has {len(set(ids))} different ids for {count} {what}: every one needs its own")
    return ids


def data_name(measurements: Sequence[str]) -> str:
    """A name of the data set of measurements: that of their first file."""
    return Path(measurements[0]).name.partition(".")[0]
