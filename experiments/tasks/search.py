"""Searches over settings, such as Optuna's: sweeps that choose the settings of the next job by what the earlier ones returned."""

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from experiments.benchmarks.selection import Selective
from experiments.tasks.settings import SettingError


def is_search() -> bool:
    """Return whether this run is a job of a sweep by another sweeper than Hydra's basic one."""
    hydra = HydraConfig.get()
    return hydra.mode == RunMode.MULTIRUN and get_class(hydra.sweeper._target_) is not BasicSweeper


def check_search(config: DictConfig) -> None:
    """Check before anything is computed that the job of a search will return a number, and that a larger one is better.

    Raises:
        SettingError: the task or the benchmark has no number to maximize, or the sweeper minimizes.
    """
    if not is_search():
        return
    choices, sweeper = HydraConfig.get().runtime.choices, HydraConfig.get().sweeper
    if choices["task"] != "evaluate":
        raise SettingError(f"task={choices['task']}: a search needs a number to maximize; choose task=evaluate")
    if not issubclass(get_class(config.benchmark._target_), Selective):
        raise SettingError(f"benchmark={choices['benchmark']}: it has no number that a search can maximize; choose lds")
    direction = OmegaConf.select(sweeper, "direction")
    if direction is not None and "maximize" not in str(direction).lower():
        raise SettingError(f"hydra.sweeper.direction={direction}: larger is better; set it to maximize")
