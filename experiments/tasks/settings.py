"""From settings to objects. Values are checked by type, and errors name the setting as written on the command line."""

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
    """Raised if a setting has an invalid value. The message is one sentence that begins with the setting."""


@dataclass(frozen=True)
class TopLevelSettings:
    """Schema of the top-level settings that belong to no object."""

    seed: int
    threads: int | Literal["auto"]
    workers: int | Literal["auto"]


@dataclass(frozen=True)
class SampleSettings:
    """Schema of the settings under ``samples``."""

    n: int
    seed: int
    trajectory: bool


@dataclass(frozen=True)
class StoreSettings:
    """Schema of the settings under ``store``."""

    root: str


def build(config: DictConfig, setting: str) -> Any:
    """Build the object that ``config`` describes at ``setting``, or a mapping or list of objects.

    Raises:
        SettingError: If a value has the wrong type or is outside its range, or a setting is unknown or missing.
    """
    check(OmegaConf.select(config, setting))
    # Hydra replaces interpolations by their values in the nodes that it instantiates; messages need the interpolations.
    copied = copy.deepcopy(config)
    try:
        return instantiate(OmegaConf.select(copied, setting), _convert_="all")
    except (FieldError, InstantiationException) as error:
        raise by_setting(config, error) from error


def check_run(config: DictConfig) -> None:
    """Check the types of the settings that belong to no object.

    Raises:
        SettingError: If a type is wrong, or a setting is missing.
    """
    for node, schema in ((config, TopLevelSettings), (config.samples, SampleSettings), (config.store, StoreSettings)):
        for key, annotation in annotations.parameters(schema)[0].items():
            _check_value(node, key, annotation)


def check(node: Any) -> None:
    """Check every value below a node of a composed config against the annotations of the class or function that takes it.

    Raises:
        SettingError: If a type is wrong, or a setting is unknown or missing. Ranges are not checked.
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
    raise SettingError(f"{name}={_shown(value)}: must be {annotations.describe_type(annotation)}{hint}")


def name_of(node: DictConfig, key: str) -> str:
    """Return the full name of the setting that supplies ``node[key]``, following interpolations."""
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
    """Return plain lists and mappings, with a :class:`Choice` for each node that will be instantiated."""
    if isinstance(value, DictConfig):
        return Choice() if "_target_" in value else {key: _outline(value[key]) for key in value}
    return [_outline(part) for part in value] if isinstance(value, ListConfig) else value


def _shown(value: Any) -> str:
    """Return the value as written on the command line."""
    if isinstance(value, list):
        return "[" + ",".join(map(_shown, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_shown(part)}" for key, part in value.items()) + "}"
    if isinstance(value, Choice):
        return "{_target_:...}"
    return {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)


def by_setting(config: DictConfig, error: Exception) -> Exception:
    """Convert a :class:`FieldError` (possibly wrapped by Hydra) into a :class:`SettingError` that names the setting.

    Any other error is returned unwrapped.
    """
    cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
    if not isinstance(cause, FieldError):
        return cause if isinstance(cause, Exception) else error
    names = settings_of(config, cause)
    if not names:
        return cause
    several = f" (or {', '.join(names[1:])})" if names[1:] else ""
    return SettingError(f"{names[0]}={_shown(_plain(cause.value))}{several}: {cause.message}")


def settings_of(config: DictConfig, error: FieldError) -> list[str]:
    """Return the settings that set the refused field: those with the refused value, or all of them if none has it."""
    field, bracket, index = error.field.partition("[")
    values: dict[str, Any] = {}
    for node in _objects(config):
        if field in node and _is_of(node._target_, type(error.owner)):
            values[name_of(node, field) + bracket + index] = node[field]
    whole = _plain(getattr(error.owner, field, error.value))
    return [name for name, value in values.items() if _plain(value) == whole] or list(values)


def _objects(node: Any) -> Iterator[DictConfig]:
    """Yield all nodes with a ``_target_``, without following interpolations."""
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
    """Replace sequences by lists and mappings by dicts, so that a setting equals the field that it became."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
