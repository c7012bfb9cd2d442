"""Bad inputs of the command line and their outcomes; ``python -m tests.experiments.tasks.bad_inputs`` prints the counts.

Most inputs are generated: every setting of every shipped choice gets values of wrong types and values outside its range, so that
new settings are covered too. ``VALID`` lists the generated values that are valid. The other inputs are in ``bad_inputs_written``.
"""

import argparse
import atexit
import collections
import contextlib
import functools
import inspect
import io
import pickle
import pkgutil
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

import run as program
from experiments.speed import timing
from experiments.store.store import Store
from experiments.tasks import annotations, workers
from experiments.tasks.errors import errors_as_messages
from experiments.tasks.settings import SettingError, build
from tests.experiments.datasets.fake_data import write_cifar, write_mnist
from tests.experiments.tasks.compositions import CONF, composed_once, options

Outcome = Literal["right", "traceback", "no setting", "accepted"]


@dataclass(frozen=True)
class BadInput:
    """A command line that is wrong in one argument, and the settings that the sentence may name (one of them)."""

    argument: str
    rest: tuple[str, ...]
    names: tuple[str, ...]
    way: Literal["command line", "config", "checks"] = "command line"
    """Where the input begins: at the command line, at the composed config, or at the checks of the object with the setting."""
    stored: bool = False
    """Whether everything that the rest of the command line needs is stored already."""

    @property
    def command(self) -> str:
        return " ".join([*self.rest, self.argument])


@dataclass(frozen=True)
class Result:
    """What an input ended in, and the sentence or the last line of the traceback."""

    outcome: Outcome
    said: str


_RUN = ("trainer.steps=6", "trainer.batch_size=8", "hardware.accelerator=cpu", "execution.device=cpu", "samples.n=2", "workers=1")
_DIGITS = ("data.n_train=24", "data.n_validation=12")
_TWO_SOURCES = ("data=patches_digits", "data.patches=24", "data.zeros=8", "data.validation_patches=8", "data.validation_zeros=8")
_NETWORK = ("model.block_out_channels=[8,8]",)
_EVERY = ("checkpoints.every=3",)
SMALL = (*_RUN, *_DIGITS, *_NETWORK, *_EVERY)
"""An experiment that is quick to set up."""
SCORES = (*SMALL, "task=attribute", "queries.n=2")
STORED = (*SCORES, "estimator=raw_cos")
"""The run that ``store`` stores before the inputs with ``stored``."""
_REPLAY = ("estimator.checkpoints=2", "estimator.draws.n=2")
_BENCHMARK = ("benchmark.compare=[]", "estimator=random")
_POOLS = ("benchmark.queries.validation.n=4", "benchmark.queries.generated.n=4")
_REPLAYED = ("benchmark.compare=[]", "estimator=retrac", *_REPLAY)
_SETS = (*SMALL, *_POOLS, "benchmark.n=2", "benchmark.k=[5]", "benchmark.shown=5")
_SOURCES = (*_RUN, *_TWO_SOURCES, *_NETWORK, *_EVERY)
SMALL_BENCHMARK = {
    "agreement": (*SMALL, *_BENCHMARK, *_POOLS),
    "attributable": (*SMALL, *_BENCHMARK, *_POOLS, "queries@benchmark.queries.generated=generated", "benchmark.sizes=[0.25]"),
    "compression": (*SMALL, *_POOLS, "benchmark.compare=[]", "estimator=kfac"),
    "counterfactual": (*SMALL, *_BENCHMARK, *_POOLS, "benchmark.fractions=[0.25]"),
    "gradient_norms": (*SMALL, *_REPLAYED, "benchmark.examples=20", "benchmark.correlated=10"),
    "groups": (*SMALL, *_BENCHMARK, *_POOLS, "queries@benchmark.queries.generated=generated", "benchmark.parts=[surrogate]"),
    "image_tracing": (*_SOURCES, *_BENCHMARK, *_POOLS, "benchmark.k=[5]"),
    "influential_timesteps": (*_SOURCES, *_REPLAYED, *_POOLS, "trainer.steps=12", "checkpoints.every=6", "benchmark.k=5"),
    "lds": (*SMALL, *_BENCHMARK, *_POOLS),
    "linearization": (*SMALL, *_BENCHMARK, *_POOLS, "benchmark.sizes=[2]", "benchmark.count=3"),
    "lds_timesteps": (*SMALL, *_BENCHMARK, *_POOLS),
    "normalization": (*_SETS, "benchmark.compare=[]", "estimator=guided", *_REPLAY),
    "one_checkpoint": (*SMALL, *_REPLAYED, *_POOLS, "benchmark.k=5", "benchmark.shown=5", "benchmark.rows=2"),
    "outlier": (*_SOURCES, *_REPLAYED, "benchmark.k=[5]", "benchmark.shown=5"),
    "predicted_change": (*SMALL, *_BENCHMARK, *_POOLS),
    "sparse_timesteps": (*SMALL, *_REPLAYED, "benchmark.queries.validation.n=4", "benchmark.k=5"),
    "targeted": (*_SETS, *_REPLAYED),
    "timestep_losses": (*SMALL, *_BENCHMARK, "benchmark.queries.training.n=4", "benchmark.queries.validation.n=4"),
    "timestep_bias": (*SMALL, *_REPLAYED, *_POOLS, "benchmark.examples=20", "benchmark.correlated=10", "benchmark.k=5"),
    "verdict": (*SMALL, *_BENCHMARK, *_POOLS, "queries@benchmark.queries.generated=generated", "benchmark.copies=1"),
}
"""A small version of each benchmark, under which all its settings count. A new benchmark needs an entry."""


_HELD_OUT = {"cifar2": ("data.n_validation=2",), "mnist": (), "cifar_mnist": ()}


@functools.cache
def files() -> str:
    """Write the files of all data sets; return the setting of their folder."""
    root = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    atexit.register(shutil.rmtree, root)
    write_cifar(root)
    write_mnist(root / "MNIST" / "raw")
    return f"data.root={root}"


@functools.cache
def rows_of_a_run() -> str:
    """Return a folder of finished runs, without any rows."""
    root = tempfile.mkdtemp(prefix="bad-inputs-")
    atexit.register(shutil.rmtree, root)
    return root


@functools.cache
def judged_files() -> tuple[str, ...]:
    """Write scores, masks and measurements; return the settings of task=judge for them."""
    root, random = Path(tempfile.mkdtemp(prefix="bad-inputs-")), np.random.default_rng(0)
    atexit.register(shutil.rmtree, root)
    arrays = {
        "scores": random.normal(size=(3, 8)),
        "masks": random.random((6, 8)) < 0.5,
        "measurements": random.normal(size=(6, 3)),
    }
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array)
    return tuple(f"task.{name}={root / name}.npy" for name in arrays)


def contexts() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield a node of the config and the arguments under which its settings are in use."""
    yield "", SCORES
    yield "samples", (*SMALL, "task=train")
    yield "store", (*SMALL, "task=train")
    yield "execution", SCORES
    yield "hardware", (*SMALL, "task=train")
    for choice in options("task"):
        further = {
            "report": lambda: (f"task.rows={rows_of_a_run()}",),
            "judge": judged_files,
            "timesteps": lambda: ("estimator=kfac", "estimator.draws.n=8"),
        }
        given = further.get(choice, tuple)()
        yield "task", (*SMALL_BENCHMARK["lds"], "queries.n=2", f"task={choice}", *given)
    yield "report", SCORES
    for choice in ("csv", "local", "wandb"):
        yield "tracker", (*SMALL, "task=train", f"tracker={choice}")
    yield "data", (*SMALL, "task=train")
    yield "data", (*_SOURCES, "task=train")
    for choice, number in (("cifar2", "data.n_train=8"), ("mnist", "data.n_train=20"), ("cifar_mnist", "data.zeros=2")):
        yield "data", (*_RUN, *_EVERY, "model=unet_small", "task=train", f"data={choice}", number, *_HELD_OUT[choice], files())
    for choice in ("unet_digits", "unet_small"):
        yield "model", (*_RUN, *_DIGITS, *_EVERY, f"model={choice}", "task=train")
    conditional = (*_RUN, *_DIGITS, *_EVERY, "model=unet_digits_classes", "model.block_out_channels=[8,8]", "task=train")
    yield "condition", (*conditional, "condition=labels")
    for group in ("diffusion", "optimizer", "trainer"):
        for choice in _without(options(group), "pipeline", "pipeline_flow"):
            yield group, (f"{group}={choice}", *SMALL, "task=train")
    yield "parameters", (*SCORES, "parameters=matching", "parameters.pattern=up_blocks")
    for choice in options("checkpoints"):
        small = {
            "at": ("checkpoints.steps=[3]",),
            "epochs": (),
            "steady": ("checkpoints.every=2", "checkpoints.count=2"),
            "steps": _EVERY,
        }
        yield "checkpoints", (*_RUN, *_DIGITS, *_NETWORK, f"checkpoints={choice}", *small[choice], "task=train")
    for choice in _without(options("estimator"), "clip_cos", "clip_dot", "dino_cos", "sscd_cos"):
        recorded = ("estimator.checkpoints=2",) if choice in ("gas", "guided", "retrac", "tracin", "tracincp") else ()
        recorded = ("estimator.segments=2", "estimator.per_segment=1") if choice == "source" else recorded
        sampled = ("queries=generated",) if choice == "journey_trak" else ()
        yield "estimator", (*SCORES, *sampled, f"estimator={choice}", *recorded)
    for choice in options("measurement"):
        sampled = ("queries=generated", "diffusion=ddpm") if choice == "trajectory" else ()
        yield "measurement", (*SCORES, *sampled, f"measurement={choice}")
    for choice in options("feature"):
        yield "feature", (*SCORES, "estimator=dtrak", f"feature={choice}")
    for choice in options("projection"):
        yield "projection", (*SCORES, "estimator=trak", f"projection={choice}")
    for choice in _without(options("curvature"), "exact"):
        yield "curvature", (*SCORES, f"curvature={choice}")
    for choice in options("compression"):
        yield "compression", (*SCORES, f"compression={choice}")
    for choice in options("draws"):
        yield "estimator.draws", (*SCORES, "estimator=trak", f"draws@estimator.draws={choice}")
    for choice in _without(options("queries"), "folder", "generated_of_each", "held_out_of_each", "none"):
        yield "queries", (*SCORES, f"queries={choice}")
    for choice in options("benchmark"):
        yield "benchmark", (*SMALL_BENCHMARK[choice], f"benchmark={choice}")
    for choice in options("mode"):
        yield "benchmark.mode", (*SMALL_BENCHMARK["lds"], f"mode@benchmark.mode={choice}")


def _without(choices: Sequence[str], *absent: str) -> list[str]:
    return [choice for choice in choices if choice not in absent]


def generated(nodes: Iterable[tuple[str, tuple[str, ...]]] | None = None) -> list[BadInput]:
    """Every setting of ``nodes`` (all ``contexts``) with every wrong value; the same field of a class is tried once.

    One value of a setting, of the right type if there is such a wrong one, shows that a run reaches its checks. The others, and
    all values of a field that another class has from the same base, go to the checks first.
    """
    inputs: dict[tuple[str, str, str], BadInput] = {}
    shown: dict[tuple[str, str], tuple[str, str]] = {}
    for node, arguments in contexts() if nodes is None else nodes:
        config = pickle.loads(_composed(arguments))
        for kind, name, value in leaves(OmegaConf.select(config, node) if node else config, node, recurse=bool(node)):
            leaf = name.rpartition(".")[2]
            values = [wrong for wrong in wrong_values(value) if not any(re.fullmatch(p, f"{name}={wrong}") for p in VALID)]
            base, annotation = _declared(kind, leaf) if kind else (node, None)
            told = next((wrong for wrong in values if annotation and annotations.fits(_value(wrong), annotation)), values[0])
            told = shown.setdefault((base, leaf), (kind, told))
            for wrong in values:
                way = "checks" if "." in name and (kind, wrong) != told else "config"
                inputs.setdefault((kind or node, leaf, wrong), BadInput(f"{name}={wrong}", arguments, (name,), way))
    return list(inputs.values())


@functools.cache
def _declared(kind: str, field: str) -> tuple[str, Any]:
    """The name of the class that declares a field of a class, and the annotation of the field."""
    target = pkgutil.resolve_name(kind)
    bases = (base for base in getattr(target, "__mro__", ()) if field in inspect.get_annotations(base))
    base = next((f"{base.__module__}.{base.__qualname__}" for base in bases), kind)
    return base, annotations.parameters(target)[0].get(field)


def leaves(node: Any, prefix: str, recurse: bool) -> Iterator[tuple[str, str, Any]]:
    """Yield class, full name and value of the settings below a node, without those that take their value from another setting."""
    for key in node:
        raw = node._get_node(key)
        name = f"{prefix}.{key}" if prefix else str(key)
        if raw._is_interpolation() or str(key).startswith("_") or OmegaConf.is_missing(node, key):
            continue
        if isinstance(raw, DictConfig) and not raw._is_none():
            if recurse:
                yield from leaves(raw, name, recurse)
        else:
            kind = OmegaConf.select(node, "_target_", default="")
            yield kind, name, OmegaConf.to_container(raw) if isinstance(raw, ListConfig) else raw._value()


def wrong_values(value: Any) -> Sequence[str]:
    """Values that a setting with this shipped value cannot have, as the command line writes them."""
    huge = str(10**30)
    if isinstance(value, bool):
        return ("abc", "2", "0.5", "null", "[]", "[true]", "{a: 1}", "''")
    if isinstance(value, int):
        return ("abc", "-1", "0", "1.5", "null", "true", "[]", "[[1]]", "{a: 1}", "''", "nan", "inf", huge)
    if isinstance(value, float):
        return ("abc", "-1", "null", "true", "[]", "[[1]]", "{a: 1}", "''", "nan", "inf", "-inf")
    if isinstance(value, str):
        return ("no_such_word", "3", "null", "true", "[]", "[a]", "{a: 1}", "''")
    if isinstance(value, list):
        return ("abc", "3.5", "null", "true", "[[]]", "{a: 1}", "''", "[{}]", "[null]", "[[1]]", "[nan]", "[abc_def]", "[-3]")
    return ("{a: {b: 1}}", "[[1]]", "[{}]")


VALID = (
    r"(threads|workers)=3",
    r"execution\.(memory|pass_memory)=3",
    r"(.*\.)?seed=0",
    r"(store\.root|task\.output)=no_such_word",  # a folder or file that will be made
    r"task\.(metric=no_such_word|axes=\[abc_def\])",  # names of what runs log
    r"task\.top=0",  # of task=judge: no such file
    r"tracker\.project=no_such_word",  # a project that will be made
    r"data\.(patches|validation_patches|n_train|n_validation|classes|zeros)=null",  # all
    r"data\.pad=0",  # with data.size=28
    r"data\.(train|validation)_key=(null|no_such_word)",  # without effect where there is no data.index_file
    r"feature\.p=(inf|1\.5)",
    r"estimator\.(scale|amount)=1\.5",
    r"estimator\.border=(-1|0|1\.5)",
    r"estimator\.top=null",  # all positions of an image
    r"feature\.eta=-1",
    r"diffusion\.process\.(logit_mean|P_mean)=-1",
    r"benchmark\.(repeats|outlier)=0",
    r"benchmark\.sizes=null",  # of benchmark=linearization: powers of four and a half
    r"task\.gpu\.group=0",  # leaves retraining together out
    r"trainer\.(clip|ema)=null",
    r"estimator\.checkpoints=null",
    r"model\.attention_head_dim=null",
)
"""Patterns of generated inputs that are valid."""


def outcome(given: BadInput, folder: Path) -> Result:
    """Run the command line up to the first computation that would be stored, and classify how it ends.

    Output goes to ``folder``; the store of inputs with ``stored`` is in its folder ``stored``. Composing takes longer than all the
    rest, so an input that only gives a setting another value begins at the composed config, to which its setting is applied as
    Hydra does it. An input that begins at the checks ends there if they refuse it, and else begins at the config.
    """
    if given.way == "checks" and (refused := _refused(given)) is not None:
        return refused
    store = f"store.root={folder / ('stored' if given.stored else 'empty')}"
    changes = [store, given.argument] if "store.root=" not in given.argument else [given.argument]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        patch.chdir(folder)
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        patch.setattr(Store, "_compute", _accepted)
        patch.setattr(workers.subprocess, "Popen", _accepted)
        patch.setattr(timing, "in_turns", _accepted)  # task=speed stores nothing
        try:
            if given.way != "command line":
                with errors_as_messages():
                    config = _config(given.rest, changes, folder / "out")
                    with initialize_config_dir(str(CONF), version_base="1.3"):
                        program.task(config)
            else:
                patch.setattr(sys, "argv", ["run.py", f"hydra.run.dir={folder}/out", *changes[:-1], *given.rest, given.argument])
                with composed_once():
                    program.main()
        except _Accepted:
            return Result("accepted", "")
        except SystemExit as ended:
            return _classified(given, ended, printed.getvalue())
        except BaseException:
            return Result("traceback", traceback.format_exc().strip().splitlines()[-1])
    return Result("accepted", printed.getvalue().strip()[:200])


def store(arguments: tuple[str, ...], folder: Path) -> None:
    """Store what a valid command line computes, for inputs with ``stored``."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["run.py", f"store.root={folder}/stored", f"hydra.run.dir={folder}/out", *arguments])
        program.main()


def _refused(given: BadInput) -> Result | None:
    """How the checks refuse a setting: those of the types beside it, or those of the object that has it; None if they do not."""
    owner = given.argument.partition("=")[0].rpartition(".")[0]
    try:
        build(_changed(given.rest, [given.argument]), owner)
    except SettingError as error:
        return _classified(given, SystemExit(f"error: {error}"), "")
    except Exception:  # of the run
        return None
    return None


def _changed(arguments: tuple[str, ...], changes: Sequence[str]) -> DictConfig:
    """The config of the arguments with further settings."""
    config = pickle.loads(_composed(arguments))
    OmegaConf.set_struct(config, True)
    for change in changes:
        name, _, value = change.partition("=")
        OmegaConf.update(config, name, _value(value), merge=True)
    return config


@functools.cache
def _value(text: str) -> Any:
    """A value as the command line writes it."""
    return OverridesParser.create().parse_override(f"name={text}").value()


def _config(arguments: tuple[str, ...], changes: Sequence[str], out: Path) -> DictConfig:
    """Return the config of the arguments with further settings, and make it Hydra's."""
    config = _changed(arguments, changes)
    with open_dict(config):
        config.hydra.runtime.output_dir = str(out)
        config.hydra.mode = RunMode.RUN
        config.hydra.overrides.task.extend(changes)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


@functools.cache
def _composed(arguments: tuple[str, ...]) -> bytes:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return pickle.dumps(compose("config", list(arguments), return_hydra_config=True))


class _Accepted(BaseException):
    """The first computation was reached."""


def _accepted(*args: Any, **kwargs: Any) -> Any:
    raise _Accepted


def _classified(given: BadInput, ended: SystemExit, printed: str) -> Result:
    if not isinstance(ended.code, str):
        return Result("accepted" if not ended.code else "no setting", f"exit code {ended.code}: {printed.strip()[:200]}")
    said = ended.code
    one_line = said.startswith("error: ") and "\n" not in said and "Traceback" not in printed
    return Result("right" if one_line and any(name in said for name in given.names) else "no setting", said)


def main() -> None:
    """Print what is not right, and the counts."""
    from tests.experiments.tasks.bad_inputs_written import written

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--match", default="", help="only commands in which this regular expression is found")
    parser.add_argument("--every", type=int, default=1, help="only every n-th of them")
    parser.add_argument("--all", action="store_true", help="print the sentences of right outcomes too")
    chosen = parser.parse_args()
    inputs = [given for given in [*written(), *generated()] if re.search(chosen.match, given.command)][:: chosen.every]
    counts: collections.Counter[Outcome] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        if any(given.stored for given in inputs):
            store(STORED, Path(folder))
        for given in inputs:
            result = outcome(given, Path(folder))
            counts[result.outcome] += 1
            if chosen.all or result.outcome != "right":
                print(f"{result.outcome}: {given.command}\n    {result.said}", flush=True)
    print(f"{sum(counts.values())} bad inputs:", ", ".join(f"{counts[kind]} {kind}" for kind in get_args(Outcome)))


if __name__ == "__main__":
    main()
