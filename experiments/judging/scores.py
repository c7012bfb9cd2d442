"""Scores in files, put in the order of the measurements that judge them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attribution.estimators.base import split
from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.benchmarks.lds_report import LDSInputs
from experiments.benchmarks.variants import Variant
from experiments.judging.given import QUERY_IDS, TRAIN_IDS, Given, Outline, Table, read
from experiments.report.row import Subject

SCORES = ("scores", "score", "tau", "arr_0")
_FOLDER = "axes.json"
"""A file in the folder of scores that ``task=attribute`` writes."""


def read_scores(
    name: str, given: Given, inputs: LDSInputs, train: Images, flipped: bool, alone: bool
) -> tuple[list[Variant], list[str]]:
    """Read scores ``[Q, N]`` for the queries of ``inputs`` as variants of the estimator ``name``, and say what was changed.

    Files of ``.pt`` and ``.mmap`` have scores ``[N, Q]``, as dattri and TRAK save them; others are transposed if only that fits.
    Ids in the file must be those of the queries and of ``train``, in any order. Of several arrays, that named as the kind of
    queries comes first.

    Args:
        flipped: positive scores raise the query's cost; they are negated.
        alone: there is no other kind of queries, so the array need not be named as this one.

    Raises:
        DataError: the file cannot be read, or its shape, ids or numbers do not fit.
    """
    sign, kind, queries = np.float32(-1 if flipped else 1), inputs.kind, inputs.queries
    (table, axes), notes = _table(given, kind), []
    if not alone and table.name != kind:
        raise given.error(
            f"is for one kind of queries, and the bundle has several: set task.queries={kind}, or save an array for each kind "
            f"under its name in an npz file ({kind}=...)"
        )
    if not axes:
        table, notes = _upright(name, given, table, len(queries), len(train))
    elif table.values.shape[-2:] != (len(queries), len(train)):
        raise given.error(_unlike(table.values.shape[-2:], len(queries), len(train)))
    rows, columns = _order(given, table.query_ids, queries, "query"), _order(given, table.train_ids, train, "training image")
    values = sign * np.asarray(table.values)[..., rows, :][..., columns]
    _check_finite(given, values)
    settings_and_scores = split(Scores(values, queries.index, train.index, axes))
    variants = [Variant(Subject(name, settings), scores) for settings, scores in settings_and_scores]
    for variant in variants:
        equal = (variant.scores.values == variant.scores.values[:, :1]).all(1)
        if equal.any():
            first = int(np.flatnonzero(equal)[0])
            notes.append(
                f"{variant.label}: all scores of {int(equal.sum())} queries (the first is {first}) are equal; their LDS is 0"
            )
    return variants, notes


def outline(files: Iterable[Given], kind: str, queries: int) -> Outline:
    """What files of scores of so many ``queries`` say about the images that they are of: the first that does."""
    count, train_ids, query_ids = None, None, None
    for given in files:
        table = _table(given, kind)[0]
        shape = table.values.shape[-2:]
        across = given.path.suffix.lower() == ".csv" and shape[0] != queries  # which has ids by place
        count = count or next((side for place, side in enumerate(shape) if len(shape) == 2 and shape[1 - place] == queries), None)
        train_ids = train_ids or (table.query_ids if across else table.train_ids)
        query_ids = query_ids or (table.train_ids if across else table.query_ids)
    return Outline(count, train_ids, query_ids)


def _table(given: Given, kind: str) -> tuple[Table, Mapping[str, Sequence[Any]]]:
    """The scores in a file as they stand, and their swept axes."""
    if not (given.path / _FOLDER).is_file():
        return read(given, (kind, *SCORES), rows=QUERY_IDS, columns=TRAIN_IDS), {}
    scores = _attributed(given)
    train_ids, query_ids = (list(map(str, index.tolist())) for index in (scores.train_index, scores.query_index))
    return Table(scores.values, train_ids, query_ids), scores.axes


def _attributed(given: Given) -> Scores:
    try:
        return Scores.load(given.path)
    except (OSError, ValueError, KeyError) as error:
        raise given.error(f"cannot be read as the scores of task=attribute ({error}): copy the whole folder again") from error


def _upright(name: str, given: Given, table: Table, Q: int, N: int) -> tuple[Table, list[str]]:
    """The scores as ``[Q, N]``."""
    shape = table.values.shape
    if shape not in ((Q, N), (N, Q)):
        raise given.error(_unlike(shape, Q, N))
    if shape == (Q, N) and not (table.trains_first and Q == N):
        return table, []
    table = replace(table, values=table.values.T)
    if given.path.suffix.lower() == ".csv":
        table = replace(table, train_ids=table.query_ids, query_ids=table.train_ids)
    return table, [f"{name}: {given.file} has scores [{N}, {Q}], training images by queries; they were transposed"]


def _unlike(shape: Sequence[int], Q: int, N: int) -> str:
    sides = []
    if len(shape) == 2:
        wanted = (("Q", shape[0], Q), ("N", shape[1], N))
        sides = [f"{side}={have}, not {want}" for side, have, want in wanted if have != want]
    which = f" ({'; '.join(sides)})" if sides else ""
    return (
        f"has scores {list(shape)}, but the measurements are of {Q} queries and the masks of {N} training images{which}: "
        f"give scores [{Q}, {N}] for the same queries and images, in the same order"
    )


def _order(given: Given, ids: list[str] | None, images: Images, what: str) -> list[int] | slice:
    """The positions in the file of all ``images``."""
    if ids is None:
        return slice(None)
    by_id = [str(index) for index in images.index.tolist()]
    known = by_id if images.names is None or set(ids) == set(by_id) else [images.name(row) for row in range(len(images))]
    places = {name: place for place, name in enumerate(ids)}
    if len(places) != len(ids):
        raise given.error(f"has the same id for two of its {len(ids)} columns or rows ({what}): every one needs its own")
    if missing := [name for name in known if name not in places]:
        raise given.error(
            f"has no scores of the {what} {missing[0]} ({len(missing)} of {len(known)} are missing; the file has {ids[0]}, ...): "
            "give scores for the same images, or remove the ids if the order is the same"
        )
    return slice(None) if ids == known else [places[name] for name in known]


def _check_finite(given: Given, values: np.ndarray) -> None:
    if (places := np.argwhere(~np.isfinite(values))).size:
        *_, query, image = places[0].tolist()
        raise given.error(
            f"{len(places)} scores are not finite, the first of query {query} and training image {image}: compute them again "
            "(a damping that is too small or half precision can cause this)"
        )


def label_of(file: str) -> str:
    """The name of an estimator whose scores are in a file that has no name of its own."""
    given = Given("", file)
    return given.path.stem if given.key is None else f"{given.path.stem}:{given.key}"
