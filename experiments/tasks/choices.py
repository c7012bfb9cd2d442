"""The choices of Hydra's groups that a run was composed from."""

import functools
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf


def choice_of(group: str) -> str:
    """The choice of a group, as "cifar2_16". An alias counts as the choice that it stands for.

    An alias is a file that only names another file of its group, such as ``data/scale/cifar2/small.yaml``.
    """
    choice = str(HydraConfig.get().runtime.choices[group])
    path = config_file(f"{group}/{choice}.yaml")
    return choice if path is None else _target(OmegaConf.load(path), group) or choice


def arguments_of_run() -> list[str]:
    """The arguments of the command line, in a sweep those of the job, as typed: ``${...}`` is not resolved."""
    given: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    return given


def overrides_of_run() -> list[Override]:
    """The arguments of the command line, parsed."""
    return list(_parsed(tuple(arguments_of_run())))


def name_of(override: Override) -> str:
    """The name of what an override sets, as in draws@estimator.draws."""
    return override.get_key_element().lstrip("+~")


def notes_on_sweep() -> list[str]:
    """A line to print if the experiment sweeps settings, and this is a single run whose command line does not set them."""
    hydra = HydraConfig.get()
    swept = hydra.sweeper.get("params") or {}
    given = set(map(name_of, overrides_of_run()))
    missing = [str(name) for name in swept if name not in given]
    if hydra.mode == RunMode.MULTIRUN or not missing:
        return []
    return [
        f"experiment={hydra.runtime.choices['experiment']} sweeps {', '.join(missing)}, and this is a single run: -m makes all runs"
    ]


def config_folders() -> list[Path]:
    """The folders in which Hydra looks for configs, in its order."""
    return [Path(source.path) for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]


def config_file(name: str) -> Path | None:
    """The file that Hydra takes for a config such as "data/digits.yaml", or None."""
    return next((folder / name for folder in config_folders() if (folder / name).exists()), None)


def role_of_data() -> str:
    """The data set of a paper whose place the run's data take: "cifar2" for ``data/scale/cifar2/small.yaml``, else the data."""
    prefix, _, role = str(HydraConfig.get().runtime.choices["data"]).partition("/")
    return role.partition("/")[0] if prefix == "scale" else prefix


@functools.lru_cache(maxsize=8)
def _parsed(arguments: tuple[str, ...]) -> list[Override]:
    return OverridesParser.create().parse_overrides([*arguments])


def _target(file: DictConfig | ListConfig, group: str) -> str | None:
    if not isinstance(file, DictConfig) or list(file) != ["defaults"] or len(file.defaults) != 1:
        return None
    prefix, suffix = f"/{group}/", "@_here_"
    entry = file.defaults[0]
    if isinstance(entry, str) and entry.startswith(prefix) and entry.endswith(suffix):
        return entry.removeprefix(prefix).removesuffix(suffix)
    return None
