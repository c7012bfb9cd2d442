"""From a composed config to objects: the experiment, the estimators, the benchmark and the nodes of an evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from attribution.checks import FieldError
from attribution.estimators import Estimator
from attribution.estimators.base import SETTINGS
from attribution.estimators.rank_average import RankAverage
from attribution.nodes import Node
from attribution.training import RecordError
from experiments.benchmarks.base import Benchmark
from experiments.datasets.conditions import NoCondition
from experiments.models.experiment import Diffusion, Experiment
from experiments.models.quality import Fit
from experiments.models.trained import LoggerFor
from experiments.report.published import Published
from experiments.tasks.choices import overrides_of_run
from experiments.tasks.equal_draws import NUMBERS, SCHEME, drop_foreign_draws, equal_draws, of_a_part, own_draws
from experiments.tasks.settings import SettingError, build, by_setting
from experiments.tasks.suggestions import nearest

NOT_SETTINGS = ("task", "store", "report", "tracker", "hydra", "execution", "hardware", "threads", "workers")
PLACES = (
    *(f"{data}.{name}" for data in ("data", "data.images") for name in ("root", "store", "download")),
    "data.autoencoder.batch_size",
    "benchmark.keep_models",
    "estimator.keep_models",
)
"""Groups and settings that choose the task, the place where it runs or files lie, or what is kept, and do not change results."""
SWEPT_BY_ESTIMATORS = (*SETTINGS.values(), "estimator.draws.train")
"""Settings that accept a list; each row names its one value."""
NAMED_BY_ROWS = ("estimator", "benchmark", "benchmark.compare", "data", "seed", "experiment", "scale", "published")
"""Choices for which every row has a field, or that determine which rows exist."""


@dataclass(frozen=True)
class Evaluation:
    """The work of ``task=evaluate``: a benchmark, the estimators by name, and the experiment."""

    experiment: Experiment
    benchmark: Benchmark
    estimators: dict[str, Estimator]
    nodes: list[Node]
    """All nodes that the evaluation takes from the store."""

    @property
    def notes(self) -> list[str]:
        """Lines to print before anything is computed."""
        return list(dict.fromkeys(note for part in (self.benchmark, *self.estimators.values()) for note in part.notes()))


def evaluation_of(config: DictConfig, experiment: Experiment | None = None) -> Evaluation:
    """Build the evaluation that a config describes, in ``experiment`` if it is already built."""
    experiment = experiment or experiment_of(config)
    benchmark = build(config, "benchmark")
    estimators = benchmark.with_draw_groups(experiment, estimators_of(config))
    samples = experiment.samples(config.samples.n, config.samples.seed)
    nodes = [experiment.trained, *benchmark.nodes(experiment, estimators), samples, Fit.of(experiment)]
    return Evaluation(experiment, benchmark, estimators, nodes)


def experiment_of(config: DictConfig, logger: LoggerFor | None = None) -> Experiment:
    """Build the experiment that the top level of a config describes.

    Raises:
        SettingError: If a setting is invalid.
        FieldError: If ``execution.device`` is not available.
    """
    names = (
        "explained",
        "parameters",
        "data",
        "condition",
        "model",
        "objective",
        "optimizer",
        "trainer",
        "checkpoints",
        "hardware",
        "execution",
    )
    parts = {name: build(config, name) for name in names}
    parts["execution"].torch_device()  # a missing device must not be found only after training
    condition = parts.pop("condition")
    if not isinstance(condition, NoCondition):
        parts["data"] = replace(parts["data"], condition=condition)
    diffusion = build(config, "diffusion")
    diffusion = Diffusion(diffusion["process"], diffusion["sampler"])
    return Experiment(**parts, diffusion=diffusion, seed=config.seed, logger=logger)


def published_numbers(config: DictConfig) -> list[Published]:
    """Return the numbers that the experiment's paper reports.

    Raises:
        SettingError: If ``published`` is not a list of mappings with the fields of :class:`Published`.
    """
    given: Any = OmegaConf.to_container(OmegaConf.create({"value": config.published}), resolve=True)
    entries = given["value"]
    fields = "metric, estimator, value and source, and may have queries, data, benchmark and settings"
    message = f"published={entries}: must be a list of mappings, each of which has {fields}"
    if not isinstance(entries, list):
        raise SettingError(message)
    try:
        return [Published(**entry) for entry in entries]
    except TypeError as error:
        raise SettingError(f"{message} ({error})") from error


def chosen_estimator(config: DictConfig) -> tuple[str, Estimator]:
    """Return the name of the chosen estimator, and the estimator."""
    leave_out_draws(config)
    name = HydraConfig.get().runtime.choices["estimator"]
    return name, _estimator(name, {name: config})


def estimators_of(config: DictConfig) -> dict[str, Estimator]:
    """Return the chosen estimator and those of ``benchmark.compare``, by name.

    For a fair comparison, compared estimators have as many draws as the chosen one (``equal_draws``), and the other ``estimator.*``
    settings of the command line apply to them where they have them.
    """
    configs = estimator_configs(config)
    return {name: _estimator(name, configs) for name in configs}


def estimator_configs(config: DictConfig) -> dict[str, DictConfig]:
    """Return the configs with the chosen estimator and with each of ``benchmark.compare`` in its place, by name."""
    leave_out_draws(config)
    chosen = HydraConfig.get().runtime.choices["estimator"]
    names = dict.fromkeys([chosen, *(OmegaConf.select(config, "benchmark.compare") or ())])
    configs = {name: config if name == chosen else _composed_with(name) for name in names}
    for name, compared in configs.items():
        if name != chosen:
            equal_draws(config, compared, name)
    return configs


def _estimator(name: str, configs: dict[str, DictConfig]) -> Estimator:
    """Build the estimator ``name`` of ``configs``, the configs with each estimator by name, of which the first is the chosen one.

    Those that it averages are in ``configs`` too, or composed by name, as compared ones are.
    """
    try:
        estimator = build(configs[name], "estimator")
    except SettingError as error:
        if name == next(iter(configs)):
            raise
        raise SettingError(f"benchmark.compare=[{name}]: {error}") from error
    if not isinstance(estimator, RankAverage):
        return estimator
    parts = {}
    for part in estimator.of:
        composed = configs.get(part)
        if composed is None:
            composed = _composed_with(part, "estimator.of")
            equal_draws(next(iter(configs.values())), composed, part)
        try:
            parts[part] = build(of_a_part(composed), "estimator")
        except SettingError as error:
            raise SettingError(f"estimator.of=[{part}]: {error}") from error
    try:
        return replace(estimator, of=parts)
    except FieldError as error:
        raise SettingError(f"estimator.of=[{','.join(estimator.of)}]: {error.message}") from error


def named(config: DictConfig, error: Exception) -> Exception:
    """Return the error with the setting that it is about (``by_setting``), which may be that of a compared estimator."""
    found = by_setting(config, error)
    if isinstance(found, FieldError):
        for setting, composed in _other_configs(config):
            of_other = by_setting(composed, found)
            if isinstance(of_other, SettingError):
                return SettingError(f"{setting}: {of_other}")
    if isinstance(found, RecordError):
        return SettingError(f"explained={HydraConfig.get().runtime.choices['explained']}: {found}")
    return found


def _other_configs(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The configs with a compared or averaged estimator in the place of the chosen one, and the setting that names it."""
    configs = [("", config)]
    for name in OmegaConf.select(config, "benchmark.compare") or ():
        compared = f"benchmark.compare=[{name}]", _composed_with(name)
        configs.append(compared)
        yield compared
    for setting, composed in configs:
        for name in OmegaConf.select(composed, "estimator.of") or ():
            yield f"{setting}{': ' if setting else ''}estimator.of=[{name}]", _composed_with(name, "estimator.of")


def leave_out_draws(config: DictConfig) -> None:
    """Remove an experiment's draws from a chosen estimator that takes none. Those of the command line stay, and are refused."""
    if not any(_concerns_estimator(override) and "draws" in override.key_or_group for override in overrides_of_run()):
        drop_foreign_draws(config)


def settings_of_run() -> dict[str, Any]:
    """Return the settings of this run's command line by name, without those that do not change results."""
    settings: dict[str, Any] = {
        override.key_or_group: OmegaConf.to_object(OmegaConf.create({"value": override.value()}))["value"]  # pyright: ignore
        for override in overrides_of_run()
        if not override.is_delete() and _is_measured(override.key_or_group)
    }
    return {name: value for name, value in settings.items() if not (name in SWEPT_BY_ESTIMATORS and isinstance(value, list))}


def _is_measured(name: str) -> bool:
    return name.split(".")[0] not in NOT_SETTINGS and name not in (*PLACES, *NAMED_BY_ROWS)


def _composed_with(estimator: str, setting: str = "benchmark.compare") -> DictConfig:
    """Compose this run's config with another estimator, which ``setting`` names.

    Raises:
        SettingError: If there is no such estimator.
    """
    overrides = overrides_of_run()
    remaining = [str(override.input_line) for override in overrides if not _concerns_estimator(override)]
    own = own_draws(estimator)
    groups = [override for override in overrides if _concerns_estimator(override) and override.package]
    groups = [override for override in groups if not (own.scheme and override.get_key_element() == SCHEME)]
    arguments = [*remaining, f"estimator={estimator}"]
    try:
        config = compose("config", arguments, return_hydra_config=bool(groups))
    except MissingConfigException as error:
        choices = nearest(estimator, error.options or ())
        raise SettingError(f"{setting}=[{estimator}]: no such estimator{choices}") from error
    if groups:  # groups inside the estimator: keep only those this estimator accepts
        choices = config.hydra.runtime.choices
        config = compose("config", [*arguments, *(str(o.input_line) for o in groups if o.get_key_element() in choices)])
    drop_foreign_draws(config)
    for override in overrides:
        plain = _concerns_estimator(override) and "." in override.key_or_group and not override.package
        if plain and override.key_or_group not in NUMBERS:  # equal_draws sets these
            _apply(override, config)
    return config


def _concerns_estimator(override: Override) -> bool:
    """Return whether it is an override such as ``estimator=``, ``estimator.draws.n=`` or ``draws@estimator.draws=``."""
    return (override.package or override.key_or_group).split(".")[0] == "estimator"


def _apply(override: Override, config: DictConfig) -> None:
    """Apply an override of the command line (set or delete) to the estimator, if this estimator accepts it."""
    *parents, leaf = override.key_or_group.split(".")
    node: Any = config
    for parent in parents:
        # Below an interpolation the settings belong to another group, and Hydra refuses to set them here.
        if not isinstance(node, DictConfig) or parent not in node or OmegaConf.is_interpolation(node, parent):
            return
        node = node[parent]
    if not isinstance(node, DictConfig) or leaf not in node or not _accepts(config, override):
        return
    if override.is_delete():
        OmegaConf.set_struct(node, False)
        del node[leaf]
        OmegaConf.set_struct(node, None)
    else:
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True)


def _accepts(config: DictConfig, override: Override) -> bool:
    """Return whether the estimator accepts this override: bins and groups of draws are not for all."""
    kind = get_class(config.estimator._target_)
    if override.key_or_group == "estimator.draws.replicates":
        shared = OmegaConf.select(config, "estimator.draws.shared")
        return bool(kind.REPLICATED) and not config.estimator.get("cosine") and not shared
    return override.key_or_group != "estimator.draws.bins" or kind.DRAW_BINS
