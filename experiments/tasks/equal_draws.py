"""Equal draws for estimators that are compared: as many of each side as the chosen estimator has."""

import copy
import functools
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, ListConfig, OmegaConf

from experiments.tasks.choices import config_file

NUMBERS = ("estimator.draws.n", "estimator.draws.train")
"""The settings that compared estimators take from the chosen one."""
SCHEME = "draws@estimator.draws"
"""The group that chooses an estimator's scheme of draws."""


@dataclass(frozen=True)
class OwnDraws:
    """What the file of an estimator sets about its draws: ``numbers`` (of n and train), and whether it overrides the scheme."""

    numbers: frozenset[str] = frozenset()
    scheme: bool = False


def own_draws(estimator: str) -> OwnDraws:
    """Read what the file of an estimator, and the files that it extends, say about draws."""
    path = config_file(f"estimator/{estimator}.yaml")
    return OwnDraws() if path is None else _read(path)


def drop_foreign_draws(config: DictConfig) -> None:
    """Remove the draws that an experiment sets from an estimator that takes none."""
    if OmegaConf.select(config, "estimator.draws") is None or "_target_" not in config.estimator:
        return
    try:
        kind = get_class(config.estimator._target_)
    except Exception:  # building the estimator says what is wrong with its class
        return
    if is_dataclass(kind) and "draws" not in {field.name for field in fields(kind)}:
        OmegaConf.set_struct(config.estimator, False)
        del config.estimator.draws
        OmegaConf.set_struct(config.estimator, None)


def equal_draws(config: DictConfig, compared: DictConfig, estimator: str) -> None:
    """Set the numbers of draws in ``compared``, the config with another ``estimator``, to those of the chosen one in ``config``.

    Numbers that the file of the estimator sets itself stay, as does everything if either has no draws. Training images at recorded
    draws have no number. An estimator that takes one number gets the largest of a list.
    """
    chosen, draws = OmegaConf.select(config, "estimator.draws"), OmegaConf.select(compared, "estimator.draws")
    if not isinstance(chosen, DictConfig) or not isinstance(draws, DictConfig):
        return
    kind = get_class(compared.estimator._target_)
    given = _numbers(chosen)
    if not (kind.DRAW_LISTS and get_class(draws._target_).LISTS):
        given = _largest(given)
    if given.get("train") is None and "train" in given and "n" in given:
        given["train"] = given["n"]  # as many, also beside a number of queries' draws that the file sets itself
    if kind.RECORDED_DRAWS:
        given.pop("train", None)
    for name in (given.keys() & set(draws)) - own_draws(estimator).numbers:
        OmegaConf.update(compared, f"estimator.draws.{name}", given[name], merge=False)


def of_a_part(config: DictConfig) -> DictConfig:
    """A copy of ``config`` for an estimator that is averaged with others: the largest of several numbers of draws, and no bins."""
    part = copy.deepcopy(config)
    if isinstance(draws := OmegaConf.select(part, "estimator.draws"), DictConfig):
        for name, value in {**_largest(_numbers(draws)), **({"bins": 1} if "bins" in draws else {})}.items():
            OmegaConf.update(part, f"estimator.draws.{name}", value, merge=False)
    return part


def _numbers(draws: DictConfig) -> dict[str, Any]:
    """The numbers of draws that a scheme has, by the name of the setting."""
    return {name: draws[name] for name in ("n", "train") if name in draws and not OmegaConf.is_missing(draws, name)}


def _largest(given: dict[str, Any]) -> dict[str, Any]:
    """The largest number of a list ``n``, with the number of the list ``train`` that belongs to it."""
    numbers, train = given.get("n"), given.get("train")
    if not isinstance(numbers, ListConfig) or not numbers:
        return given
    place = max(range(len(numbers)), key=lambda i: numbers[i])
    one = train[place] if isinstance(train, ListConfig) and place < len(train) else train
    return {**given, "n": numbers[place], **({"train": one} if "train" in given else {})}


@functools.cache
def _read(path: Path) -> OwnDraws:
    file = OmegaConf.load(path)
    assert isinstance(file, DictConfig)
    numbers, scheme = {"n", "train"} & set(file.draws if isinstance(file.get("draws"), DictConfig) else ()), False
    for entry in file.get("defaults") or ():
        if isinstance(entry, DictConfig):
            scheme = scheme or any(str(key).split() == ["override", "/draws@draws"] for key in entry)
        elif entry != "_self_" and (extended := path.parent / f"{entry}.yaml").exists():
            own = _read(extended)
            numbers, scheme = numbers | own.numbers, scheme or own.scheme
    return OwnDraws(frozenset(numbers), scheme)
