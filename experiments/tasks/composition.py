"""From a composed config to objects: the experiment, the estimators, the benchmark and the nodes of an evaluation."""

from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from attribution.estimators import Estimator
from attribution.nodes import Node
from experiments.benchmarks.base import Benchmark
from experiments.models.experiment import Diffusion, Experiment
from experiments.models.trained import LoggerFor
from experiments.tasks.settings import build

NOT_SETTINGS = ("task", "store", "tracker", "hydra", "execution", "hardware", "threads", "workers")
"""Groups and settings that say which task runs and where, but not what is measured."""
SWEPT_BY_ESTIMATORS = ("estimator.damping", "estimator.draws.n", "estimator.strength")
"""Settings that take a list; each row names the one value that it belongs to."""
NAMED_BY_ROWS = ("estimator", "benchmark", "benchmark.compare", "data", "seed")
"""Choices that every row has a field for, or that say which rows there are."""


@dataclass(frozen=True)
class Evaluation:
    """What ``task=evaluate`` computes: a benchmark of some estimators, by name, in an experiment."""

    experiment: Experiment
    benchmark: Benchmark
    estimators: dict[str, Estimator]
    nodes: list[Node]
    """All nodes that the evaluation takes from the store."""


def evaluation_of(config: DictConfig, experiment: Experiment | None = None) -> Evaluation:
    """The evaluation that a config describes, in ``experiment`` if that has been built already."""
    experiment = experiment or experiment_of(config)
    benchmark, estimators = build(config, "benchmark"), estimators_of(config)
    samples = experiment.samples(config.samples.n, config.samples.seed)
    nodes = [experiment.record, *benchmark.nodes(experiment, estimators), samples]
    return Evaluation(experiment, benchmark, estimators, nodes)


def experiment_of(config: DictConfig, logger: LoggerFor | None = None) -> Experiment:
    """The experiment that the top level of a config describes."""
    names = ("data", "model", "objective", "optimizer", "trainer", "checkpoints", "hardware", "execution")
    parts = {name: build(config, name) for name in names}
    diffusion = build(config, "diffusion")
    diffusion = Diffusion(diffusion["process"], diffusion["sampler"])
    return Experiment(**parts, diffusion=diffusion, seed=config.seed, logger=logger)


def chosen_estimator(config: DictConfig) -> tuple[str, Estimator]:
    """The name and the estimator of ``estimator=``."""
    return HydraConfig.get().runtime.choices["estimator"], build(config, "estimator")


def estimators_of(config: DictConfig) -> dict[str, Estimator]:
    """The chosen estimator and those of ``benchmark.compare``, by name.

    The compared ones get the ``estimator.*`` settings of the command line as far as they have them, for a fair comparison.
    """
    chosen = HydraConfig.get().runtime.choices["estimator"]
    names = dict.fromkeys([chosen, *(OmegaConf.select(config, "benchmark.compare") or ())])
    return {name: build(config if name == chosen else _composed_with(name), "estimator") for name in names}


def settings_of_run() -> dict[str, Any]:
    """The settings of this run's command line by name, without those that only say how or where to run."""
    settings: dict[str, Any] = {
        override.key_or_group: OmegaConf.to_object(OmegaConf.create({"value": override.value()}))["value"]  # pyright: ignore
        for override in _overrides()
        if not override.is_delete() and _is_measured(override.key_or_group)
    }
    return {name: value for name, value in settings.items() if not (name in SWEPT_BY_ESTIMATORS and isinstance(value, list))}


def _is_measured(name: str) -> bool:
    return name.split(".")[0] not in NOT_SETTINGS and name not in NAMED_BY_ROWS


def _overrides() -> list[Override]:
    return OverridesParser.create().parse_overrides(list(HydraConfig.get().overrides.task))


def _composed_with(estimator: str) -> DictConfig:
    """This run's config with another estimator."""
    overrides = _overrides()
    others = [str(override.input_line) for override in overrides if not _concerns_estimator(override)]
    groups = [override for override in overrides if _concerns_estimator(override) and override.package]
    arguments = [*others, f"estimator={estimator}"]
    config = compose("config", arguments, return_hydra_config=bool(groups))
    if groups:  # choices inside the estimator: those for which this estimator has a place
        choices = config.hydra.runtime.choices
        config = compose("config", [*arguments, *(str(o.input_line) for o in groups if o.get_key_element() in choices)])
    for override in overrides:
        if _concerns_estimator(override) and "." in override.key_or_group and not override.package:
            _apply(override, config)
    return config


def _concerns_estimator(override: Override) -> bool:
    """Whether it is ``estimator=``, ``estimator.draws.n=`` or ``draws@estimator.draws=``."""
    return (override.package or override.key_or_group).split(".")[0] == "estimator"


def _apply(override: Override, config: DictConfig) -> None:
    """Set, or delete, a setting of the estimator as the command line says, if this estimator has it."""
    *parents, leaf = override.key_or_group.split(".")
    node: Any = config
    for parent in parents:
        # Below an interpolation the settings belong to another group, and Hydra refuses to set them here.
        if not isinstance(node, DictConfig) or parent not in node or OmegaConf.is_interpolation(node, parent):
            return
        node = node[parent]
    if not isinstance(node, DictConfig) or leaf not in node or not _takes(config, node, override):
        return
    if override.is_delete():
        OmegaConf.set_struct(node, False)
        del node[leaf]
        OmegaConf.set_struct(node, None)
    else:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)


def _takes(config: DictConfig, node: DictConfig, override: Override) -> bool:
    """Whether the estimator takes bins, and a list of numbers of draws: independent draws, of which the first n are n draws."""
    kind = get_class(config.estimator._target_)
    if override.key_or_group == "estimator.draws.bins":
        return kind.DRAW_BINS
    is_list = override.key_or_group == "estimator.draws.n" and isinstance(override.value(), list)
    return not is_list or (kind.DRAW_LISTS and str(node.get("_target_")).endswith(".Uniform"))
