"""The shipped configs, composed for tests."""

import functools
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

CONF = Path(__file__).parents[3] / "conf"


def options(group: str) -> list[str]:
    """The choices of a group, those in folders included."""
    found = (path.relative_to(CONF / group) for path in (CONF / group).rglob("*.yaml"))
    return sorted(str(path.with_suffix("")) for path in found if path.parts[0] != "scale")  # without aliases


def composed(*overrides: str) -> DictConfig:
    """Return what Hydra composes from ``overrides``.

    Finding and merging the chosen files takes a tenth of a second, so each set of choices is composed once per process. The other
    overrides change values of the result, which Hydra's own function does with a copy.
    """
    parsed = OverridesParser.create().parse_overrides([*overrides])
    config = pickle.loads(_chosen(tuple(str(override.input_line) for override in parsed if _chooses(override))))
    ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if not _chooses(override)], config)
    return config


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


def _chooses(override: Override) -> bool:
    """Return whether an override decides which files are composed, as Hydra distinguishes them."""
    if override.is_hydra_override():
        return True
    return not isinstance(override.value(), dict) and (CONF / override.key_or_group).is_dir()


@functools.cache
def _chosen(overrides: tuple[str, ...]) -> bytes:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return pickle.dumps(compose("config", [*overrides]))
