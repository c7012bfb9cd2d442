"""From settings to objects. Values are checked by type, and errors name the setting as written on the command line."""

import functools
import math
import os
import pickle
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn

from attribution.checks import FieldError, whole
from attribution.diffusion import Process
from attribution.diffusion.samplers import Sampler
from attribution.estimators import Estimator
from attribution.execution import Execution
from attribution.measurements import Measure
from attribution.models.trained import Trained, one_line
from attribution.training.checkpoints import CheckpointRule
from attribution.training.recipe import Hardware, Recipe
from attribution.training.selected import Parameters
from experiments.benchmarks.base import Benchmark
from experiments.datasets import Source
from experiments.datasets.conditions import Condition
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.tasks import annotations
from experiments.tasks.annotations import Choice
from experiments.tasks.choices import arguments_of_run
from experiments.tasks.suggestions import CONF, choices_of, nearest

_PROVIDED = {"params", "config"}
"""Parameters of optimizers and tasks that this program passes itself."""
_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


class SettingError(ValueError):
    """Raised if a setting has an invalid value. The message is one sentence that begins with the setting."""


LARGEST_SEED = 2**32 - 1
"""The largest ``seed`` of a run, as in NumPy. Seeds that are derived from it may be larger."""
_INT64 = 2**63 - 1


@dataclass(frozen=True)
class TopLevelSettings:
    """Schema of the top-level settings that belong to no object."""

    seed: int
    threads: int | Literal["auto"]
    workers: int | Literal["auto"]

    def __post_init__(self):
        whole(self, "seed", least=0, most=LARGEST_SEED)
        for name in ("threads", "workers"):
            if getattr(self, name) != "auto":
                whole(self, name, least=1, most=max(8, os.cpu_count() or 1))


@dataclass(frozen=True)
class SampleSettings:
    """Schema of the settings under ``samples``."""

    n: int
    seed: int
    trajectory: bool

    def __post_init__(self):
        whole(self, "n", least=1)


@dataclass(frozen=True)
class DiffusionSettings:
    """Schema of the objects under ``diffusion``; ``schedule`` is that of the others."""

    process: Process
    sampler: Sampler
    schedule: Any = None


@dataclass(frozen=True)
class StoreSettings:
    """Schema of the settings under ``store``."""

    root: str


@dataclass(frozen=True)
class ReportSettings:
    """Schema of the settings under ``report``; ``formats`` are those of figures."""

    formats: Sequence[Literal["png", "pdf", "svg"]]


def build(config: DictConfig, setting: str) -> Any:
    """Build the object that ``config`` describes at ``setting``, or a mapping or list of objects.

    Raises:
        SettingError: If a value has the wrong type or is outside its range, or a setting is unknown or missing.
    """
    check(OmegaConf.select(config, setting))
    # Hydra replaces interpolations by their values in the nodes that it instantiates; messages need the interpolations.
    copied = pickle.loads(pickle.dumps(config))  # three times as fast as deepcopy
    try:
        return instantiate(OmegaConf.select(copied, setting), _convert_="all")
    except (FieldError, InstantiationException) as error:
        named = by_setting(config, error)
        if isinstance(named, ValueError | OSError):
            raise named from error
        raise SettingError(f"{setting}: cannot be built ({one_line(named)}); change its settings") from error


def check_run(config: DictConfig) -> None:
    """Check the types of all settings, and the ranges of those that belong to no object.

    Raises:
        SettingError: If a type is wrong, a setting is unknown or missing, or a value is outside its range.
    """
    _check_top_level(config)
    for group, schema in _SCHEMAS.items():
        node = OmegaConf.select(config, group) if group else config
        if not isinstance(node, DictConfig):
            raise SettingError(f"{group}={_shown(_outline(node))}: must be a mapping {{name: value, ...}}")
        named, prefix = annotations.parameters(schema)[0], f"{group}." if group else ""
        if unknown := [str(key) for key in node if group and key not in named and key not in _HYDRA]:
            raise SettingError(f"{prefix}{unknown[0]}: no such setting{nearest(unknown[0], named)}")
        for key, annotation in named.items():
            if key not in node and key in annotations.required(schema):
                raise SettingError(f"{prefix}{key} is missing: do not delete it")
            if key in node:
                _check_value(node, key, annotation)
        if schema is not DiffusionSettings:
            try:
                schema(**{key: node[key] for key in named})
            except FieldError as error:
                raise SettingError(f"{prefix}{error.field}={_shown(error.value)}: {error.message}") from error
    check(config)


_SCHEMAS = {
    "": TopLevelSettings,
    "samples": SampleSettings,
    "store": StoreSettings,
    "report": ReportSettings,
    "diffusion": DiffusionSettings,
}
"""The parts of the config that are no objects."""


_CLASSES = {
    "data": Source,
    "condition": Condition,
    "parameters": Parameters,
    "model": nn.Module,
    "objective": Measure,
    "optimizer": torch.optim.Optimizer,
    "trainer": Recipe,
    "checkpoints": CheckpointRule,
    "measurement": Measure,
    "estimator": Estimator,
    "benchmark": Benchmark,
    "queries": Queries,
    "execution": Execution,
    "hardware": Hardware,
}
"""What the targets of groups must be, where they are classes."""


def _check_top_level(config: DictConfig) -> None:
    """Check that every group has an object, and that there is no key that nothing uses."""
    shipped = _shipped()
    groups = [str(key) for entry in shipped.defaults if not isinstance(entry, str) for key in entry if " " not in str(key)]
    objects = [name for name in groups if name not in ("experiment", "scale")]  # these set others
    for name in [*objects, *(name for name in shipped if OmegaConf.is_dict(shipped[name]) and name != "hydra")]:
        if not isinstance(OmegaConf.select(config, str(name)), DictConfig):
            value = f"{name}={_shown(OmegaConf.select(config, str(name)))}" if name in config else f"{name} is missing"
            raise SettingError(f"{value}: must be an object{nearest('', choices_of(str(name)))}")
    for name, kind in _CLASSES.items():
        _check_value(config, name, kind)
        if name in ("model", "optimizer") and isinstance(_target(config[name]), type) and config[name].get("_partial_") is not True:
            raise SettingError(
                f"{name}._partial_={_shown(config[name].get('_partial_'))}: must be true, because training builds it"
            )
    known = {*map(str, shipped), *groups} - {"defaults"}
    own = HydraConfig.initialized() and HydraConfig.get().job.config_name != "config"  # a config file of the user
    for name in map(str, config):
        if name not in known and not own and f"${{{name}" not in OmegaConf.to_yaml(config):
            raise SettingError(f"{name}: no such setting, and no other setting uses it{nearest(name, known)}")


@functools.cache
def _shipped() -> DictConfig:
    shipped = OmegaConf.load(CONF / "config.yaml")
    assert isinstance(shipped, DictConfig)
    return shipped


def check(node: Any) -> None:
    """Check every value below a node of a composed config against the annotations of the class or function that takes it.

    Raises:
        SettingError: If a type is wrong, or a setting is unknown or missing. Ranges are not checked.
    """
    if isinstance(node, DictConfig) and "_target_" in node:
        named, takes_more = annotations.parameters(_target(node))
        for key in (str(key) for key in node if key not in _HYDRA):
            if key in named:
                _check_value(node, key, named[key])
            elif takes_more:
                _check_value(node, key, Any)
            else:
                kind = node._target_.rpartition(".")[2]
                raise SettingError(f"{node._get_full_key(key)}: {kind} has no such setting{nearest(key, named)}")
        if absent := sorted(annotations.required(_target(node)) - {str(key) for key in node} - _PROVIDED):
            name = f"{node._get_full_key(None)}.{absent[0]}"
            raise SettingError(f"{name} is missing: give +{name}=VALUE on the command line")
    for child in _children(node):
        check(child)


def _target(node: DictConfig) -> Callable[..., Any]:
    """Return the class or function that a node names."""
    path, name = node._target_, name_of(node, "_target_")
    if not isinstance(path, str) or not path:
        raise SettingError(f"{name}={_shown(_outline(path))}: must be text, the name of a class or function")
    try:
        target = pkgutil.resolve_name(path)
    except Exception as error:  # the module that is imported may raise anything
        reason = " ".join(str(error).split())
        raise SettingError(f"{name}={path}: cannot be imported ({reason}); give the full name of a class or function") from error
    if not callable(target):
        raise SettingError(f"{name}={path}: must be the name of a class or function, not of a {type(target).__name__}")
    return target


def _check_value(node: DictConfig, key: str, annotation: Any) -> None:
    if OmegaConf.is_missing(node, key):
        name = name_of(node, key)
        raise SettingError(f"{name} is missing: give {name}=VALUE on the command line")
    raw = node[key]
    value = _outline(raw)
    if not annotations.fits(value, annotation):
        raise _wrong_type(name_of(node, key), value, annotations.plain(annotation))
    if isinstance(raw, DictConfig) and "_target_" in raw and not annotations.takes(annotation, _target(raw)):
        takes = annotations.class_names(annotation)
        raise SettingError(f"{name_of(raw, '_target_')}={raw._target_}: must be the name of {takes}")
    for part, inside in _parts(value, ""):
        if isinstance(inside, float) and math.isnan(inside):
            raise SettingError(f"{name_of(node, key)}{part}=nan: must be a number")
        if isinstance(inside, int) and not (0 if key == "seed" else -_INT64) <= inside <= _INT64:
            least = "0" if key == "seed" else "-2^63"
            raise SettingError(f"{name_of(node, key)}{part}={inside}: must be a whole number, within {least}..2^63 - 1")
        if inside == "":
            hint = "; null leaves it out" if annotations.fits(None, annotation) else ""
            raise SettingError(f"{name_of(node, key)}{part}=: must not be empty{hint}")


def _wrong_type(name: str, value: Any, annotation: Any) -> SettingError:
    item = annotations.item(annotation)
    if isinstance(value, list) and item is not None:
        wrong = next((i for i, part in enumerate(value) if not annotations.fits(part, item)), None)
        if wrong is not None:
            name, value, annotation = f"{name}[{wrong}]", value[wrong], item
    quoted = isinstance(value, int | float) and annotations.fits("", annotation) and not annotations.fits(0, annotation)
    hint = f""" (quote it: '{name}="{_shown(value)}"')""" if quoted else ""
    if value == "" and annotations.fits(None, annotation):
        hint = f" (null: {name}=null)"
    allowed = annotations.describe_type(annotation)
    if isinstance(value, float) and math.isinf(value):
        allowed = allowed.replace("a number", "a finite number").replace("of numbers", "of finite numbers")
    return SettingError(f"{name}={_shown(value)}: must be {allowed}{hint}")


def _parts(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the values inside lists and mappings, each with its name, which begins with ``name``."""
    if isinstance(value, list):
        for i, part in enumerate(value):
            yield from _parts(part, f"{name}[{i}]")
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _parts(part, f"{name}.{key}")
    else:
        yield name, value


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
    if not names and cause.field in config and isinstance(cause.owner, Experiment | Trained):
        return SettingError(f"{_chosen(cause.field)}: {cause.message}")
    if not names:
        return cause
    several = f" (or {', '.join(names[1:])})" if names[1:] else ""
    return SettingError(f"{names[0]}={_shown(_plain(cause.value))}{several}: {cause.message}")


def _chosen(group: str) -> str:
    """Return a group as the command line has it: its choice and the changes of its settings."""
    if not HydraConfig.initialized():
        return group
    hydra = HydraConfig.get()
    changes = {o.partition("=")[0]: o for o in arguments_of_run() if o.lstrip("+~").startswith(f"{group}.")}
    return " ".join([f"{group}={hydra.runtime.choices.get(group)}", *changes.values()])


def settings_of(config: DictConfig, error: FieldError) -> list[str]:
    """Return the settings that set the refused field: those with the refused value, or all of them if none has it."""
    field, bracket, index = error.field.partition("[")
    values: dict[str, Any] = {}
    for node in _objects(config):
        if field in node and _is_of(node._target_, type(error.owner)):
            values[name_of(node, field) + bracket + index] = node[field]
    whole = _plain(getattr(error.owner, field, error.value))
    if not values:  # an object that another one made from its own settings
        values = {name_of(node, field) + bracket + index: node[field] for node in _objects(config) if field in node}
        return [name for name, value in values.items() if _plain(value) == whole]
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
    return pkgutil.resolve_name(target) is kind


def _plain(value: Any) -> Any:
    """Replace sequences by lists and mappings by dicts, so that a setting equals the field that it became."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
