"""From settings to objects: values are checked by type, and errors name the setting as the command line has it."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from attribution.checks import FieldError
from experiments.tasks import annotations
from experiments.tasks.annotations import Choice
from experiments.tasks.suggestions import nearest

_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


class SettingError(ValueError):
    """A setting has a value that it cannot have; the message is one sentence that begins with the setting."""


@dataclass(frozen=True)
class Run:
    """The settings of the top level that belong to no object."""

    seed: int
    threads: int | Literal["auto"]
    workers: int | Literal["auto"]


@dataclass(frozen=True)
class ReportedSamples:
    """``samples``."""

    n: int
    seed: int
    trajectory: bool


@dataclass(frozen=True)
class Place:
    """``store``."""

    root: str


def build(config: DictConfig, setting: str) -> Any:
    """The object that ``config`` describes at ``setting``, or the objects where that is a mapping or a list of them.

    Raises:
        SettingError: a value of the wrong type or outside its range, a setting that the class does not have, or none where one is
            needed.
    """
    check(OmegaConf.select(config, setting))
    # Hydra replaces interpolations by values in what it instantiates and in what that leads to; errors need them.
    copied = copy.deepcopy(config)
    try:
        return instantiate(OmegaConf.select(copied, setting), _convert_="all")
    except (FieldError, InstantiationException) as error:
        raise by_setting(config, error) from error


def check_run(config: DictConfig) -> None:
    """Check the settings that belong to no object. Raises :class:`SettingError`."""
    for node, schema in ((config, Run), (config.samples, ReportedSamples), (config.store, Place)):
        for key, annotation in annotations.parameters(schema)[0].items():
            _check_value(node, key, annotation)


def check(node: Any) -> None:
    """Check every value below a node of a composed config against the annotations of the class or function it is for.

    Raises:
        SettingError: as :func:`build`, but for ranges.
    """
    if isinstance(node, DictConfig) and "_target_" in node:
        named, takes_more = annotations.parameters(get_object(node._target_))
        for key in (str(key) for key in node if key not in _HYDRA):
            if key in named:
                _check_value(node, key, named[key])
            elif not takes_more:
                kind = node._target_.rpartition(".")[2]
                raise SettingError(f"{name_of(node, key)}: {kind} has no such setting{nearest(key, named)}")
    for child in _children(node):
        check(child)


def _check_value(node: DictConfig, key: str, annotation: Any) -> None:
    name = name_of(node, key)
    if OmegaConf.is_missing(node, key):
        raise SettingError(f"{name} is missing: give {name}=VALUE on the command line")
    value, annotation = _outline(node[key]), annotations.plain(annotation)
    if annotations.fits(value, annotation):
        return
    item = annotations.item(annotation)
    if isinstance(value, list) and item is not None:
        wrong = next((i for i, part in enumerate(value) if not annotations.fits(part, item)), None)
        if wrong is not None:
            name, value, annotation = f"{name}[{wrong}]", value[wrong], item
    quoted = isinstance(value, int | float) and annotations.fits("", annotation) and not annotations.fits(0, annotation)
    hint = f""" (quote it: '{name}="{value}"')""" if quoted else ""
    raise SettingError(f"{name}={_shown(value)}: must be {annotations.words(annotation)}{hint}")


def name_of(node: DictConfig, key: str) -> str:
    """The setting that decides ``node[key]``: where the value stands, also if an interpolation leads there."""
    raw = node._get_node(key)
    if raw is not None and raw._is_interpolation():  # pyright: ignore[reportAttributeAccessIssue]
        target = raw._maybe_dereference_node()  # pyright: ignore[reportAttributeAccessIssue]
        if target is not None and target is not raw and target._get_parent() is not None and target._key() is not None:
            return target._get_full_key(None)
    return node._get_full_key(key)


def _children(node: Any) -> Iterator[Any]:
    if isinstance(node, DictConfig):
        yield from (node[key] for key in node if not OmegaConf.is_missing(node, key))
    elif isinstance(node, ListConfig):
        yield from node


def _outline(value: Any) -> Any:
    """Plain lists and mappings, with :class:`Choice` for what becomes an object."""
    if isinstance(value, DictConfig):
        return Choice() if "_target_" in value else {key: _outline(value[key]) for key in value}
    return [_outline(part) for part in value] if isinstance(value, ListConfig) else value


def _shown(value: Any) -> str:
    """The value as the command line has it."""
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_shown(part)}" for key, part in value.items()) + "}"
    if isinstance(value, Choice):
        return "{_target_:...}"
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)


def by_setting(config: DictConfig, error: Exception) -> Exception:
    """The error with the setting in place of the class and field, where it is, or was caused by, a :class:`FieldError`."""
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    if not isinstance(cause, FieldError):
        return cause if isinstance(cause, Exception) else error
    names = settings_of(config, cause)
    if not names:
        return cause
    several = f" (or {', '.join(names[1:])})" if names[1:] else ""
    return SettingError(f"{names[0]}={_shown(_plain(cause.value))}{several}: {cause.message}")


def settings_of(config: DictConfig, error: FieldError) -> list[str]:
    """The settings that set the refused field: those with the refused value, or all if none has it."""
    field, bracket, index = error.field.partition("[")
    found: dict[str, Any] = {}
    for node in _objects(config):
        if field in node and _is_of(node._target_, type(error.owner)):
            found[name_of(node, field) + bracket + index] = node[field]
    whole = _plain(getattr(error.owner, field, error.value))
    return [name for name, value in found.items() if _plain(value) == whole] or list(found)


def _objects(node: Any) -> Iterator[DictConfig]:
    """All nodes with a ``_target_``, without following interpolations."""
    if isinstance(node, DictConfig):
        if "_target_" in node:
            yield node
        for key in node:
            if not OmegaConf.is_interpolation(node, key) and not OmegaConf.is_missing(node, key):  # pyright: ignore[reportArgumentType]
                yield from _objects(node[key])
    elif isinstance(node, ListConfig):
        for part in node:
            yield from _objects(part)


def _is_of(target: str, kind: type) -> bool:
    if target.rpartition(".")[2] != kind.__name__:
        return False
    return get_object(target) is kind


def _plain(value: Any) -> Any:
    """Lists for tuples, so that a setting equals the field it became."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
