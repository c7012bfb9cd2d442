"""Messages for errors of composing the config, with similar names for a misspelled setting, group or choice."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

CONF = Path(__file__).parents[2] / "conf"


def nearest(name: str, existing: Iterable[str]) -> str:
    """Return a hint to append to an error message: "; did you mean a or b?", or "; choose from ..." if no name is similar."""
    names = sorted(set(existing))
    if similar := difflib.get_close_matches(name, names, n=2, cutoff=0.8):
        return f"; did you mean {' or '.join(similar)}?"
    return f"; choose from {', '.join(names)}" if names else ""


def choices_of(group: str) -> list[str]:
    """Return the choices of a group, including those in folders, without what only experiments choose by their scale."""
    names = sorted(str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).rglob("*.yaml"))
    return [name for name in names if not name.startswith("scale/") and not (group == "scale" and "/" in name)]


def composition_error(error: HydraException | OmegaConfBaseException) -> str:
    """Return a message that says what is wrong with the arguments."""
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, InterpolationResolutionError):
        reason = str(cause.msg).splitlines()[0]
        if missing := re.search(r"Missing mandatory value: ([\w.]+)", reason):
            return f"{missing[1]} is missing: give {missing[1]}=VALUE on the command line"
        return f"{cause.full_key}: {reason}; give {cause.full_key} a value of its own"
    if isinstance(cause, GrammarParseError) and isinstance(error, OmegaConfBaseException):
        return f"{' '.join(str(cause).split())}: quote values that contain $"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, name, choices = _choices(error.missing_cfg_file, error.options)
        return f"{group}={name}: no such choice{nearest(name, choices)}"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key and isinstance(cause.parent_node, DictConfig):
        return f"{cause.full_key}: no such setting{_nearest_setting(str(cause.full_key), cause.parent_node)}"
    sentence = " ".join(str(error).split("\nConfig search path:")[0].split())
    if isinstance(error, OverrideParseException):
        reason = " ".join(error.message.split("\nSee http")[0].split())
        return f"{error.override}: cannot be read ({reason}); write setting=value, and close brackets and quotes"
    if group := re.search(r"config group '([^']+)' does not exist", sentence):
        return sentence.removesuffix(".") + nearest(group[1], (path.name for path in CONF.iterdir() if path.is_dir()))
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/launcher/"):
        return f"{sentence} Launchers are plugins: pip install -e '.[launchers]'"
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/sweeper/"):
        return f"{sentence} The sweeper is a plugin: pip install -e '.[optuna]'"
    return f"{sentence} ({' '.join(str(cause).split())})" if cause else sentence


def group_error(error: ValueError) -> str | None:
    """Return a message for Hydra's error of a group without the name of a choice (``model=3``); None for other errors."""
    if not str(error).startswith("Config group override must be a string"):
        return None
    given = (argument for argument in sys.argv[1:] if not argument.startswith("-") and "." not in argument.partition("=")[0])
    return f"{' '.join(given)}: {error}; a group takes the name of a choice, as in model=unet_digits"


def _choices(missing: str, options: Iterable[str]) -> tuple[str, str, list[str]]:
    """Return the group, the misspelled choice and the group's choices, including those in folders."""
    group, _, name = missing.partition("/")
    choices = choices_of(group)
    if group != "hydra" and choices:
        return group, name, choices
    group, _, name = missing.rpartition("/")
    return group, name, list(options)


def _nearest_setting(name: str, parent: DictConfig) -> str:
    """Suggest similar settings from the whole config, or else the siblings of the missing one."""
    root: Any = parent._get_root()
    candidates = (key for key in _settings(root) if not name.startswith(f"{key}."))
    suggestion = nearest(name, (key for key in candidates if not key.startswith("hydra") or name.startswith("hydra")))
    if suggestion.startswith("; did"):
        return suggestion
    prefix = parent._get_full_key(None)
    return nearest("", (f"{prefix}.{key}" if prefix else str(key) for key in parent if key not in ("_target_", "hydra")))


def _settings(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for key in node:
        raw = node._get_node(key)
        yield f"{prefix}{key}"
        if isinstance(raw, DictConfig) and not raw._is_interpolation() and not raw._is_none() and not raw._is_missing():
            yield from _settings(raw, f"{prefix}{key}.")
