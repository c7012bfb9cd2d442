"""Measurements that D-TRAK (Zheng et al. 2024) and DAS (Lin et al. 2025) keep in folders of pickles, read without running code.

    indices/idx-train.pkl                      the ids of the training images, in their order
    indices/lds-val/sub-idx-{i}.pkl            the ids of those that subset i keeps
    lds-val/ddpm-sub-{i}-{s}/e-{e}-val.pkl     losses under the model of subset i and training seed s, with noise seed e (D-TRAK)
    lds-val/ddpm-sub-{i}-{s}/ddpm-val-errors-{T}.pkl    the same at T timesteps (DAS)

``val`` are held-out and ``gen`` generated queries. A file of losses is a list with an array ``[timesteps, B]``, or a list of arrays
``[B]``, for each batch of queries. The measurement is the mean over timesteps and noise seeds, as in both papers.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.datasets.plain_pickle import PlainPickleError, load
from experiments.judging.given import Given, Table

_SUBSET = re.compile(r"sub-idx-(\d+)\.pkl")
_MODEL = re.compile(r"ddpm-sub-(\d+)-(\d+)")
_LOSSES = re.compile(r"e-\d+-(val|gen)\.pkl|ddpm-(val|gen)-errors-(\d+)\.pkl")
_TRAIN = "idx-train.pkl"


def has_masks(folder: Path) -> bool:
    """Whether a folder holds the subsets of an archive."""
    return folder.is_dir() and any(_SUBSET.fullmatch(path.name) for path in folder.iterdir())


def has_measurements(folder: Path) -> bool:
    """Whether a folder holds the retrained models of an archive."""
    return folder.is_dir() and any(_MODEL.fullmatch(path.name) for path in folder.iterdir())


def masks_in(given: Given) -> Table:
    """The masks ``[M, N]`` of subsets 0..M-1, with the ids of the training images, which are in this folder or the one above.

    Raises:
        DataError: a file is missing or damaged, or subsets have images that the training set does not have.
    """
    folder = given.path
    files = {int(match[1]): path for path in folder.iterdir() if (match := _SUBSET.fullmatch(path.name))}
    _check_numbers(given, files, "sub-idx-{}.pkl")
    listed = next((path for path in (folder / _TRAIN, folder.parent / _TRAIN) if path.is_file()), None)
    if listed is None:
        raise given.error(f"has no {_TRAIN}, the ids of all training images: copy it there or into the folder above")
    train = _ids(given, listed)
    if len(np.unique(train)) != len(train):
        raise given.error(f"{listed.name} names a training image twice: each needs an id of its own")
    kept = np.zeros((len(files), len(train)), dtype=bool)
    for number, path in files.items():
        ids = _ids(given, path)
        if len(foreign := np.setdiff1d(ids, train)):
            raise given.error(f"{path.name} has the image {foreign[0]}, which {_TRAIN} does not have: take both of one archive")
        kept[number] = np.isin(train, ids)
    return Table(kept, train_ids=[str(i) for i in train.tolist()])


def measurements_in(given: Given) -> Table:
    """The measurements ``[K, M, Q]`` under the models of K training seeds on subsets 0..M-1; ``FOLDER:gen`` for generated queries.

    Raises:
        DataError: a model or a file is missing, damaged or unlike the others, or it is not said which queries are meant.
    """
    folder = given.path
    models = {(int(m[1]), int(m[2])): path for path in folder.iterdir() if (m := _MODEL.fullmatch(path.name)) and path.is_dir()}
    subsets, seeds = {i for i, _ in models}, sorted({s for _, s in models})
    _check_numbers(given, subsets, "ddpm-sub-{}-*")
    if missing := [(i, s) for i in subsets for s in seeds if (i, s) not in models]:
        raise given.error(f"lacks ddpm-sub-{missing[0][0]}-{missing[0][1]}: give the models of all subsets for every training seed")
    kind = _kind(given, models.values())
    files = {model: _files(model, kind) for model in models.values()}
    names = [path.name for path in files[models[min(models)]]]
    for model, found in files.items():
        if [path.name for path in found] != names or not found:
            raise given.error(
                f"{model.name} has the losses {[path.name for path in found]}, and others {names}: measure all models with the "
                "same noise seeds"
            )
    if len({match[3] for name in names if (match := _LOSSES.fullmatch(name))}) > 1:
        raise given.error(
            f"has losses at several sets of timesteps ({', '.join(names)}), which are not one measurement: keep the files of one"
        )
    values = [[_measured(given, models[i, s], files[models[i, s]]) for i in sorted(subsets)] for s in seeds]
    sizes = {len(measured) for of_seed in values for measured in of_seed}
    if len(sizes) > 1:
        raise given.error(f"has models with measurements of {' and '.join(map(str, sorted(sizes)))} queries: measure all alike")
    return Table(np.array(values))


def _kind(given: Given, folders: Iterable[Path]) -> str:
    """The kind of queries: the one that the setting names, or the only one that there is."""
    matches = [_LOSSES.fullmatch(path.name) for folder in folders for path in folder.iterdir()]
    kinds = sorted({match[1] or match[2] for match in matches if match})
    if not kinds:
        raise given.error("has no losses (e-0-val.pkl, ddpm-val-errors-1000.pkl, ...) in its folders: copy these files too")
    if given.key is None and len(kinds) == 1:
        return kinds[0]
    if given.key is None or given.key not in kinds:
        choices = " or ".join(f"{given.path}:{kind}" for kind in kinds)
        raise given.error(f"has losses of {' and '.join(kinds)} queries: say which, as {choices}")
    return given.key


def _files(folder: Path, kind: str) -> list[Path]:
    """The files of losses of one model, for this kind of queries, by name."""
    return [path for path in sorted(folder.iterdir()) if (m := _LOSSES.fullmatch(path.name)) and kind in (m[1], m[2])]


def _measured(given: Given, folder: Path, files: Sequence[Path]) -> np.ndarray:
    """The measurements of one model, ``[Q]``: the mean over its files of noise seeds, and over timesteps."""
    contents = [_content(given, path) for path in files]
    try:
        losses = [np.concatenate([np.stack([*batch]) for batch in content], axis=-1) for content in contents]
        means = [of_file.astype(np.float64).mean(0) for of_file in losses if of_file.ndim == 2]
        if len(means) < len(losses):
            raise ValueError("axes")
        return np.stack(means).mean(0)
    except (ValueError, TypeError) as error:
        raise given.error(
            f"{folder.name} must have, in each file of losses, a list with an array [timesteps, queries] for each batch"
        ) from error


def _ids(given: Given, path: Path) -> np.ndarray:
    """The whole numbers in a file: ``[n]`` int64."""
    content = _content(given, path)
    try:
        ids = np.array(content)
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not ids.size:
            raise ValueError("kind")
    except ValueError as error:
        raise given.error(f"{path.name} must be a list of whole numbers, the ids of images") from error
    return ids.astype(np.int64)


def _content(given: Given, path: Path) -> Any:
    try:
        return load(path.read_bytes())
    except (OSError, PlainPickleError) as error:
        raise given.error(f"{path.name} cannot be read ({error}): it must be a pickle of lists, numbers and arrays") from error


def _check_numbers(given: Given, found: Iterable[int], name: str) -> None:
    """Raises DataError: the numbers of subsets are not 0..M-1."""
    numbers = set(found)
    if missing := [i for i in range(len(numbers)) if i not in numbers]:
        raise given.error(f"lacks {name.format(missing[0])}, and has {name.format(max(numbers))}: give all subsets from 0 on")
