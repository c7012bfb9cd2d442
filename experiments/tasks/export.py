"""``task=export``: the measurements and scores of ``benchmark=lds`` as a bundle that others can cite and judge scores by."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from experiments.benchmarks.lds import LDS
from experiments.disk import explained
from experiments.judging.bundle import write_bundle
from experiments.store.provenance import provenance
from experiments.tasks.choices import name_of, overrides_of_run
from experiments.tasks.composition import NOT_SETTINGS, PLACES, estimator_configs, evaluation_of
from experiments.tasks.evaluate import compute_and_report
from experiments.tasks.model_quality import report_models
from experiments.tasks.run_context import run_context
from experiments.tasks.settings import SettingError, build

_RETRAINING = ("subsets", "seeds", "repeats", "steps", "mode", "draws", "precision")
"""Settings of the benchmark that say how models were retrained and measured."""


def export(config: DictConfig, output: str) -> None:
    """Compute what is missing in the store, report the benchmark, and write the bundle to the folder ``output``.

    Raises:
        SettingError: the benchmark is not LDS, or ``output`` is not empty.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"task.output={output}: exists already; name a new folder, or remove this one")
    if not isinstance(build(config, "benchmark"), LDS):
        raise SettingError("task=export: writes the measurements and scores of benchmark=lds; choose this benchmark")
    with run_context(config) as run:
        evaluation = evaluation_of(config, run.experiment)
        benchmark, estimators = evaluation.benchmark, evaluation.estimators
        assert isinstance(benchmark, LDS)
        compute_and_report(config, run, evaluation, evaluation.notes)
        inputs, train = list(benchmark.inputs(run.experiment, estimators, run.store)), run.store(run.experiment.train)
        with explained(folder.parent, "task.output", "what is in the store will be reused"):
            rows = [replace(row, command=_command()) for row in run.report.rows]
            card = write_bundle(folder, inputs, train, rows, card_of(config, run.report.data))
        report_models(run, *estimators.values())
    print(f"bundle {card['fingerprint'][:12]}: {folder}; choose a license in its README.md")


def card_of(config: DictConfig, data: str) -> dict[str, Any]:
    """Return what the card of a bundle says of the run: settings without folders, versions, the command."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for place in PLACES:
        *parents, leaf = place.split(".")
        node = settings
        for parent in parents:
            node = node.get(parent) or {}
        node.pop(leaf, None)
    benchmark = settings.pop("benchmark")
    configs = {name: composed.estimator for name, composed in estimator_configs(config).items()}
    estimators = {name: OmegaConf.to_container(estimator, resolve=True) for name, estimator in configs.items()}
    left_out = (*NOT_SETTINGS, "estimator", "queries", "published", "report", "samples", "measurement")
    return {
        "data": data,
        "seed": benchmark["seed"],
        "resamples": benchmark["resamples"],
        "measurement": benchmark["measurement"],
        "retraining": {name: benchmark[name] for name in _RETRAINING},
        "training": {name: value for name, value in settings.items() if name not in left_out},
        "queries": benchmark["queries"],
        "estimators": estimators,
        "versions": provenance(),
        "command": _command(),
    }


def _command() -> str:
    """The command of this run without what names folders and machines."""
    kept = [o.input_line for o in overrides_of_run() if name_of(o) not in PLACES and name_of(o).split(".")[0] not in NOT_SETTINGS]
    return shlex.join(["python", "run.py", "task=export", *map(str, kept)])
