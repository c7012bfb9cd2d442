"""The description of a run for trackers, from its composed config and its command line."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.report.description import RunDescription, Scalar
from experiments.tasks.choices import arguments_of_run, choice_of, name_of, overrides_of_run

SWEPT = "swept.json"
"""The file in the folder of a sweep with the names of the swept settings."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_ESTIMATING = ("evaluate", "export", "attribute")
"""Tasks about the chosen estimator."""
_OF_FILES = ("judge",)
"""Tasks that use neither data nor a model."""
_SCHEME = "draws@estimator.draws"


def command_of_run() -> str:
    """Return the command of this run. Under a launcher, ``sys.argv`` is the launcher's."""
    return shlex.join(["python", "run.py", *arguments_of_run()])


def description_of(config: DictConfig) -> RunDescription:
    """Return the description of the run that this process executes."""
    hydra = HydraConfig.get()
    choices = {str(group): str(choice) for group, choice in hydra.runtime.choices.items() if choice is not None}
    unused = () if "experiment" in choices else ("scale",)
    groups = [group for group in choices if "@" not in group and not group.startswith("hydra") and group not in unused]
    task, swept = choices["task"], _swept()
    plain = {group: choice_of(group) for group in groups if task not in _OF_FILES or group == "task"}
    tagged = ("data", "benchmark", "experiment") if task in ("evaluate", "export") else ("data", "experiment")
    tagged = () if task in _OF_FILES else tagged
    return RunDescription(
        name=_name(task, plain, swept),
        sweep=_sweep_name(Path(hydra.sweep.dir)) if hydra.mode == RunMode.MULTIRUN else None,
        job_type=task,
        tags=[plain[group] for group in tagged if group in plain],
        command=command_of_run(),
        choices=plain,
        axes={**_scalars(swept, plain), **({} if task in _OF_FILES else _axes(config, choices))},
    )


def write_swept(folder: Path, arguments: Sequence[str]) -> None:
    """Write the names of the settings that the ``arguments`` of a multirun sweep, for its jobs."""
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    folder.mkdir(parents=True, exist_ok=True)
    names = [name_of(override) for override in parsed if _is_swept(override)]
    (folder / SWEPT).write_text(json.dumps(names), encoding="utf-8")


def _is_swept(override: Override) -> bool:
    if not override.is_sweep_override():
        return False
    values = override.value()
    return not isinstance(values, ChoiceSweep) or len(values.list) > 1


def _swept() -> dict[str, Any]:
    """The swept settings of this job with their values; of a single run, what it sets of the estimator, and the seed."""
    hydra = HydraConfig.get()
    given = {name_of(override): _plain(override.value()) for override in overrides_of_run() if not override.is_delete()}
    path = Path(hydra.sweep.dir) / SWEPT
    if hydra.mode == RunMode.MULTIRUN and path.exists():
        names = json.loads(path.read_text(encoding="utf-8"))
    else:
        names = [name for name in given if name == "seed" or name.rpartition("@")[2].startswith("estimator.")]
    return {name: value for name, value in given.items() if name in names}


def _plain(value: Any) -> Any:
    """The value of an override as plain numbers, text and lists."""
    return OmegaConf.to_container(OmegaConf.create({"value": value}))["value"]  # pyright: ignore


def _scalars(swept: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Scalar]:
    """The swept values by their keys, without lists of axes (swept inside the run) and the choices of groups."""
    keys = {_key(name): value for name, value in swept.items() if not (name in _KEYS and isinstance(value, list))}
    return {key: value if isinstance(value, Scalar) else _text(value) for key, value in keys.items() if key not in choices}


def _name(task: str, choices: Mapping[str, str], swept: Mapping[str, Any]) -> str:
    """The estimator (of tasks without one: the data and the model), and the swept values."""
    subject = () if task in _OF_FILES else ("estimator",) if task in _ESTIMATING else ("data", "model")
    words = [f"{_shown(name)}={_text(value)}" for name, value in swept.items() if name not in subject]
    return " ".join([*(choices[group] for group in subject), *words]) or task


def _shown(name: str) -> str:
    return name.partition("@")[2].removeprefix("estimator.") if "@" in name else name.removeprefix("estimator.")


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sweep_name(folder: Path) -> str:
    """The name of a sweep's folder, with its date if Hydra chose it."""
    return f"{folder.parent.name}/{folder.name}" if _DATE.fullmatch(folder.parent.name) else folder.name


def _axes(config: DictConfig, choices: Mapping[str, str]) -> dict[str, Scalar]:
    """The settings of the estimator along which runs are compared, where they have one value.

    ``draws`` and ``draws_train`` are the numbers of draws of a query and of a training image, ``timesteps`` at how many timesteps
    the draws of a query lie (random ones count singly), and ``timestep`` is the timestep of draws at a single one.
    """
    estimator: Any = OmegaConf.to_container(config.estimator, resolve=True)
    axes: dict[str, Any] = {"seed": config.seed, "damping": _single(estimator.get("damping"))}
    draws = estimator.get("draws") or {}
    fixed = draws.get("timesteps")
    timesteps = len(fixed) if isinstance(fixed, list) else _single(draws.get("n"))
    if timesteps is not None:
        noises = draws.get("noises", 1)
        train = _single(draws.get("train"))
        axes |= {"timesteps": timesteps, "draws": timesteps * noises, "timestep": _single(fixed)}
        axes["draws_train"] = (timesteps if train is None else train) * noises if "train" in draws else None
        axes["draw_scheme"] = choices.get(_SCHEME)
    checkpoints = estimator.get("checkpoints")
    axes["used_checkpoints"] = (
        len(checkpoints) if isinstance(checkpoints, list) else {"last": 1, "all": None}.get(str(checkpoints), checkpoints)
    )
    return {name: value for name, value in axes.items() if value is not None}


def _single(value: Any) -> Any:
    """The value, or that of a list with one; None for a list of several."""
    if isinstance(value, list):
        return value[0] if len(value) == 1 else None
    return value


_KEYS = {
    "estimator.damping": "damping",
    "estimator.draws.n": "draws",
    "estimator.draws.train": "draws_train",
    "estimator.checkpoints": "used_checkpoints",
    _SCHEME: "draw_scheme",
}
"""The keys of settings that are axes."""


def _key(name: str) -> str:
    """The key of a swept setting in the config of a run."""
    return _KEYS.get(name) or _shown(name).replace(".", "_").replace("/", "_")
