"""From a Hydra config to objects: the experiment, its estimators, its benchmark."""

from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from attribution.estimators import Estimator
from experiments.models.experiment import Diffusion, Experiment
from experiments.models.trained import LoggerFor

NOT_SETTINGS = ("task", "store", "tracker", "hydra", "execution", "hardware", "threads", "workers")
"""Choices that say what to do, or how, but not what is measured."""
ANSWERED_ONE_BY_ONE = ("estimator.damping", "estimator.draws.n", "estimator.strength")
NAMED_BY_ROWS = ("estimator", "benchmark", "benchmark.compare", "data", "seed")
"""Choices that every row states by itself."""


def experiment_of(config: DictConfig, logger: LoggerFor | None = None) -> Experiment:
    """The experiment that the top level of a config describes."""
    parts = {
        name: instantiate(config[name], _convert_="all")
        for name in ("data", "model", "objective", "optimizer", "trainer", "checkpoints", "hardware", "execution")
    }
    diffusion = instantiate(config.diffusion, _convert_="all")
    diffusion = Diffusion(diffusion["process"], diffusion["sampler"])
    return Experiment(**parts, diffusion=diffusion, seed=config.seed, logger=logger)


def chosen_estimator(config: DictConfig) -> tuple[str, Estimator]:
    """The estimator of ``estimator=`` and its name."""
    return HydraConfig.get().runtime.choices["estimator"], instantiate(config.estimator, _convert_="all")


def estimators_of(config: DictConfig) -> dict[str, Estimator]:
    """The chosen estimator and those of ``benchmark.compare``, by name.

    The latter get this run's ``estimator.*`` settings too, as far as they have them, so that like is compared with like.
    """
    chosen = HydraConfig.get().runtime.choices["estimator"]
    names = dict.fromkeys([chosen, *(OmegaConf.select(config, "benchmark.compare") or ())])
    configs = {name: config if name == chosen else _composed_with(name) for name in names}
    return {name: instantiate(composed.estimator, _convert_="all") for name, composed in configs.items()}


def settings_of_run() -> dict[str, Any]:
    """What this run's command line set, by the settings' names, without what only says how or where to run."""
    parsed = OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))
    settings: dict[str, Any] = {
        o.key_or_group: OmegaConf.to_object(OmegaConf.create({"value": o.value()}))["value"]  # pyright: ignore
        for o in parsed
        if not o.is_delete() and o.key_or_group.split(".")[0] not in NOT_SETTINGS and o.key_or_group not in NAMED_BY_ROWS
    }
    # Of a list that an estimator answers for value by value, each row states its own.
    return {name: value for name, value in settings.items() if not (name in ANSWERED_ONE_BY_ONE and isinstance(value, list))}


def _composed_with(estimator: str) -> DictConfig:
    overrides = list(HydraConfig.get().overrides.task)
    others = [*(o for o in overrides if not _concerns_estimator(o)), f"estimator={estimator}"]
    plain = compose("config", others, return_hydra_config=True)
    kept = [o for o in overrides if _concerns_estimator(o) and _key(o) != "estimator" and _takes(plain, o)]
    return compose("config", [*others, *kept])


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _concerns_estimator(override: str) -> bool:
    """``estimator=``, ``estimator.draws.n=`` or ``draws@estimator.draws=``."""
    return _key(override).rpartition("@")[2].split(".")[0] == "estimator"


def _takes(config: DictConfig, override: str) -> bool:
    name, _, value = override.partition("=")
    if "@" in name:
        return name in config.hydra.runtime.choices
    *parents, leaf = name.split(".")
    node: Any = config
    for parent in parents:
        # Below an interpolation the settings are another's, and Hydra refuses to set them here.
        if not isinstance(node, DictConfig) or parent not in node or OmegaConf.is_interpolation(node, parent):
            return False
        node = node[parent]
    if not isinstance(node, DictConfig) or leaf not in node:
        return False
    kind = get_class(config.estimator._target_)
    if name == "estimator.draws.bins":
        return kind.DRAW_BINS
    # A list of numbers of draws is for independent draws, whose first ones are draws of fewer.
    listed = name == "estimator.draws.n" and value.startswith("[")
    return not listed or (kind.DRAW_LISTS and str(node.get("_target_")).endswith(".Uniform"))
