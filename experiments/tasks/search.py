"""Searches over settings, such as Optuna's: sweeps that choose the settings of the next job by what the earlier ones returned."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from experiments.tasks.settings import SettingError

_SWEEPS = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""Hydra's own sweeper, which takes no notice of what jobs return."""


def is_search() -> bool:
    """Return whether this run is a job of a search."""
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and hydra.sweeper._target_ != _SWEEPS


def check_search(config: DictConfig) -> None:
    """Check before the first job of a multirun that, if it is a search, jobs return a number, of which the largest is the best.

    Raises:
        SettingError: the task or the benchmark has no number to maximize, or the sweeper minimizes.
    """
    sweeper = OmegaConf.select(config, "hydra.sweeper")
    if sweeper is None or sweeper._target_ == _SWEEPS:
        return
    choices = config.hydra.runtime.choices
    from experiments.benchmarks.selection import Selective

    if choices.task != "evaluate":
        raise SettingError(f"task={choices.task}: a search needs a number to maximize; choose task=evaluate")
    if not issubclass(get_class(config.benchmark._target_), Selective):
        raise SettingError(f"benchmark={choices.benchmark}: it has no number that a search can maximize; choose lds")
    direction = OmegaConf.select(sweeper, "direction")
    if direction is not None and "maximize" not in str(direction).lower():
        name = str(direction).rpartition(".")[2]
        raise SettingError(
            f"hydra.sweeper.direction={name}: a larger LDS is better; set it to maximize, or choose hydra/sweeper=search"
        )
