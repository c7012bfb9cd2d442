"""The shipped configs, composed for tests."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import DefaultsList
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig

CONF = Path(__file__).parents[3] / "conf"


def options(group: str) -> list[str]:
    """The choices of a group, those in folders included."""
    found = (path.relative_to(CONF / group) for path in (CONF / group).rglob("*.yaml"))
    return sorted(str(path.with_suffix("")) for path in found if path.parts[0] != "scale")  # without aliases


def composed(*overrides: str) -> DictConfig:
    """Return what Hydra composes from ``overrides``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [*overrides])


_HYDRA: dict[str, tuple[Any, str]] = {
    "read": (ConfigRepository, "load_config"),
    "map": (defaults_list, "_create_interpolation_map"),
    "find": (config_loader_impl, "create_defaults_list"),
    "merge": (ConfigLoaderImpl, "_compose_config_from_defaults_list"),
}
"""The functions of Hydra that take most of the time of a composition."""
_ORIGINALS = {role: getattr(owner, name) for role, (owner, name) in _HYDRA.items()}


def remember_files() -> None:
    """Let Hydra read each shipped file, and find and merge the files of each set of choices, once per process.

    Tests compose the same choices thousands of times, which takes a third of a second each time. Hydra's own functions apply the
    overrides that change values, to a copy of what is remembered.
    """
    read, map_choices, find, merge = _ORIGINALS.values()
    remembered: dict[Any, bytes] = {}

    def once(repo: Any, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if not (places := _shipped(repo)):
            return make()
        if (places, key) not in remembered:
            remembered[places, key] = pickle.dumps(make())
        return pickle.loads(remembered[places, key])

    def read_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        return once(self, ("read", config_path), lambda: read(self, config_path))

    def map_if_asked(overrides: Any, defaults: list[Any], self_added: bool) -> DictConfig | None:
        return map_choices(overrides, defaults, self_added) if any(default.is_interpolation() for default in defaults) else None

    def find_once(repo: Any, config_name: str | None, overrides_list: list[Override], **options: Any) -> DefaultsList:
        choices, changes = [], []
        for override in overrides_list:
            (choices if _chooses(override, repo) else changes).append(override)
        key = ("find", config_name, tuple(choice.input_line for choice in choices), *sorted(options.items()))
        found = once(repo, key, lambda: find(repo, config_name, choices, **options))
        found.config_overrides = [change for change in changes if not change.is_sweep_override()]
        return found

    def merge_once(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> DictConfig:
        return once(repo, ("merge", repr(defaults)), lambda: merge(self, defaults, repo))

    for (owner, name), function in zip(_HYDRA.values(), (read_once, map_if_asked, find_once, merge_once), strict=True):
        setattr(owner, name, function)


@contextmanager
def forgotten_files() -> Iterator[None]:
    """A context in which Hydra composes as it does elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for role, (owner, name) in _HYDRA.items():
            patch.setattr(owner, name, _ORIGINALS[role])
        yield


@contextmanager
def composed_once() -> Iterator[None]:
    """A context in which ``hydra.main`` composes the config of a run once.

    Hydra composes it twice: the first time only to read ``hydra.mode``, which is null unless the command line sets it.
    """
    original = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> object:
        said = any(override.lstrip("+").startswith("hydra.mode") for override in overrides)
        return original(self, config_name, overrides) if said else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hydra, "get_mode", get_mode)
        yield


def _shipped(repo: Any) -> tuple[str, ...]:
    """The places that a composition looks in; nothing if one of them is a folder of a test, which may change."""
    places = [(source.scheme(), source.path) for source in repo.get_sources()]
    if any(scheme == "file" and Path(path) != CONF for scheme, path in places):
        return ()
    return tuple(f"{scheme}://{path}" for scheme, path in places)


def _chooses(override: Override, repo: Any) -> bool:
    """Return whether an override decides which files are composed, as Hydra distinguishes them."""
    if override.is_sweep_override() or isinstance(override.value(), dict):
        return False
    return repo.group_exists(override.key_or_group)
