"""README.md, CONTRIBUTING.md and docs/: what they show works, word for word, and their links lead somewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attribution.estimators import Estimator
from experiments.models.experiment import Experiment
from experiments.queries.choices import Queries
from experiments.tasks.composition import chosen_estimator, estimators_of, experiment_of
from tests.experiments import documents
from tests.experiments.datasets.fake_data import write_cifar
from tests.experiments.documents import CONTRIBUTING, PAGES, PLACEHOLDERS, README, ROOT

CONF = ROOT / "conf"
PLACEHOLDER = re.compile(rf"\b({'|'.join(PLACEHOLDERS)})\b|w1")
OPEN = re.compile(r"--help|\.\.\.")
"""Commands that show no settings of their own."""
TINY = [
    "trainer.steps=20",
    "trainer.batch_size=10",
    "checkpoints.every=5",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
    "samples.n=4",
    "workers=1",
]
TINY_DIGITS = ["data.n_train=40", "data.n_validation=24", "model.block_out_channels=[8,8]"]
TINY_LDS = [
    "benchmark.subsets.count=5",
    "benchmark.repeats=3",
    "benchmark.draws.n=4",
    "benchmark.queries.validation.n=5",
    "benchmark.queries.generated.n=4",
]
TINY_CIFAR = [
    "data.n_train=20",
    "data.n_validation=4",
    "benchmark.queries.validation.n=4",
    "model.block_out_channels=[8,8,8,8]",
    "model.norm_num_groups=4",
]
TINY_TARGETED = ["benchmark.n=4", "benchmark.k=[5]", "benchmark.queries.validation.n=8", "benchmark.queries.generated.n=6"]
TINY_COUNTERFACTUAL = [
    "benchmark.fractions=[0.1]",
    "benchmark.queries.validation.n=2",
    "benchmark.queries.generated.n=2",
    "benchmark.draws.n=4",
]


def new_files(page: Path) -> set[str]:
    """The files that a page tells its reader to write."""
    return {block.file for block in documents.blocks(page) if block.file}


def needs_new_files(arguments: str) -> bool:
    """Whether a command chooses something that README.md or CONTRIBUTING.md tell how to add."""
    added = {Path(file) for page in (README, CONTRIBUTING) for file in new_files(page)}
    choices = {f"{path.parent.name}={path.stem}" for path in added if path.suffix == ".yaml"}
    return any(word in choices for word in shlex.split(arguments))


def run_commands() -> list[str]:
    """The arguments of every different ``python run.py`` in the documents that the repository as it is can run."""
    found = {arguments for page in PAGES for arguments in documents.run_commands(page)}
    return sorted(arguments for arguments in found if not OPEN.search(arguments) and not needs_new_files(arguments))


def settings(arguments: str) -> set[str]:
    """What a command shows: its choices, and the names of what it sets."""
    words = shlex.split(arguments)
    return {word.partition("=")[0] if "." in word.partition("=")[0].partition("@")[0] else word for word in words}


def by_novelty() -> list[Any]:
    """All commands, longest first. One that shows nothing new after those before it is slow."""
    seen: set[str] = set()
    found = []
    for arguments in sorted(run_commands(), key=len, reverse=True):
        found.append(pytest.param(arguments, id=arguments, marks=() if settings(arguments) - seen else pytest.mark.slow))
        seen |= settings(arguments)
    return found


def jobs(arguments: str) -> list[list[str]]:
    """The overrides of the job, or of the first and the last job of a sweep."""
    words = [word.replace("DIR", "/data") for word in shlex.split(arguments)]
    if "-m" not in words:
        return [words]
    words.remove("-m")
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), max_batch_size=None)
    return list(dict.fromkeys(map(tuple, (batches[0][0], batches[0][-1])))) if batches else []


def test_commands_are_found():
    """Claim: the search finds commands of every kind; none is lost to a change of layout."""
    found = run_commands()
    assert len(found) >= 60
    assert any("held_out_of_each" in arguments for arguments in found)  # goes over two lines
    assert any(arguments.startswith("-m ") for arguments in found)
    assert any("data.root=DIR" in arguments for arguments in found)
    assert "task=loss_weights" in found  # within a sentence


@pytest.mark.parametrize("arguments", by_novelty())
def test_commands_compose(arguments):
    """Claim: each composes, what it compares exists, and its benchmark knows what it would compute."""
    if "hydra/launcher=" in arguments:
        pytest.importorskip(f"hydra_plugins.hydra_{'joblib' if 'local' in arguments else 'submitit'}_launcher")
    for overrides in jobs(arguments):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [*overrides, "execution.device=cpu"], return_hydra_config=True)
            compared = list(config.benchmark.compare)
            assert all((CONF / "estimator" / f"{name}.yaml").is_file() for name in compared)
            # Composing each takes a second: the first, for the benchmark's sake, and the last where it could refuse a setting.
            first, last = compared[: "benchmark" in arguments], compared[-1:] if "estimator." in arguments else []
            config.benchmark.compare = list(dict.fromkeys([*first, *last]))
            HydraConfig.instance().set_config(config)
            build(config, evaluate="nodes" if not PLACEHOLDER.search(arguments) else "objects")


def build(config: Any, evaluate: str) -> None:
    """Make the objects that a composed task needs, and the nodes of its benchmark if it needs no files."""
    experiment = experiment_of(config)
    assert isinstance(experiment, Experiment)
    if config.hydra.runtime.choices.task in ("evaluate", "plan", "work"):
        benchmark, estimators = instantiate(config.benchmark, _convert_="all"), estimators_of(config)
        if evaluate == "nodes" and "data" not in needs_files(config):
            assert benchmark.nodes(experiment, estimators)
    else:
        OmegaConf.to_container(config.task, resolve=True)
        assert isinstance(chosen_estimator(config)[1], Estimator)
        assert isinstance(instantiate(config.queries, _convert_="all"), Queries)


def needs_files(config: Any) -> set[str]:
    return {"data"} if config.hydra.runtime.choices.data not in ("digits", "patches_digits") else set()


def program(folder: Path, arguments: list[str], home: Path = ROOT) -> str:
    """``python run.py`` of the checkout ``home``, in ``folder``; what it printed. Fails with the output if the program does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": ""}
    command = [sys.executable, str(home / "run.py"), *arguments, f"store.root={folder / 'store'}"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tiny(arguments: str, folder: Path) -> list[str]:
    """A command of the documents at the smallest size, its data in ``folder``."""
    words = [word.replace("DIR", str(folder / "data")) for word in shlex.split(arguments)]
    on_cifar = "data.root=DIR" in arguments
    small = [*TINY, *(TINY_CIFAR if on_cifar else TINY_DIGITS)]
    if "benchmark=targeted" in words or "experiment=retrac/table1" in words:
        small += [setting for setting in TINY_TARGETED if not (on_cifar and "validation" in setting)]
    elif "benchmark=counterfactual" in words:
        small += TINY_COUNTERFACTUAL
    elif not on_cifar and not any(word.startswith(("task=attribute", "data=", "model=", "benchmark=")) for word in words):
        small += TINY_LDS
    given = {word.partition("=")[0] for word in words}
    return [*words, *(setting for setting in small if setting.partition("=")[0] not in given)]


def readme_commands() -> list[Any]:
    """The commands of the README that need no new files; fast are those of a dry run."""
    found = [arguments for arguments in dict.fromkeys(documents.run_commands(README)) if arguments in run_commands()]
    fast = next(arguments for arguments in found if "data=cifar2" in arguments)
    return [pytest.param(text, id=text or "(none)", marks=() if text == fast else pytest.mark.slow) for text in found]


@pytest.mark.parametrize("arguments", readme_commands())
def test_commands_of_the_readme_run(arguments, tmp_path):
    """Claim: each does what it says, here at the smallest size and on data of the right format."""
    write_cifar(tmp_path / "data")
    if "queries.path=DIR" in arguments:
        pictures(tmp_path / "data")
    program(tmp_path, tiny(arguments, tmp_path))


def pictures(folder: Path) -> None:
    """Two grey pictures of 8 × 8 pixels."""
    from PIL import Image

    shutil.rmtree(folder)
    folder.mkdir()
    for level in (0, 255):
        Image.new("L", (8, 8), level).save(folder / f"{level}.png")


def additions() -> list[Any]:
    """(page, heading) of what the documents tell how to add; the README's is fast."""
    found = dict.fromkeys(
        (block.page, block.heading) for page in (README, CONTRIBUTING) for block in documents.blocks(page) if block.file
    )
    return [pytest.param(*key, id=f"{key[0].name}: {key[1]}", marks=() if key[0] == README else pytest.mark.slow) for key in found]


@pytest.mark.parametrize(("page", "heading"), additions())
def test_additions_work_literally(page, heading, tmp_path):
    """Claim: written where the page says, in a copy of the repository, the files work with the commands that stand below them."""
    home = tmp_path / "copy"
    for name in ("attribution", "experiments", "conf"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", home)
    chosen = [block for block in documents.blocks(page) if block.heading == heading]
    for block in chosen:
        if block.file:
            assert not (home / block.file).exists()
            (home / block.file).parent.mkdir(parents=True, exist_ok=True)
            (home / block.file).write_text(block.text)
    ran = 0
    for line in [line for block in chosen if block.language == "bash" for line in documents.shell_lines(block)]:
        if line.startswith("python run.py"):
            program(tmp_path, tiny_addition(shlex.join(shlex.split(line)[2:])), home)
            ran += 1
    assert ran


def tiny_addition(arguments: str) -> list[str]:
    """A command of an addition at the smallest size: with settings only of what it leaves at the default."""
    words = shlex.split(arguments)
    groups = {word.partition("=")[0] for word in words}
    small = [*TINY]
    small += [] if "data" in groups else TINY_DIGITS[:2]
    small += [] if "model" in groups else TINY_DIGITS[2:]
    small += [] if "benchmark" in groups else TINY_LDS
    return [*words, *small]


@pytest.mark.parametrize("page", [page for page in PAGES if documents.blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Claim: the Python blocks of a page, those that are not files, run one after the other."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in documents.blocks(page, "python"):
        if not block.file:
            exec(compile(block.text, f"{page.name}: {block.heading}", "exec"), namespace)


def test_install_commands_name_extras_that_exist():
    """Claim: every pip install of the documents installs this project, with extras that pyproject.toml has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = [command for page in PAGES for command in documents.commands(page) if command.startswith("pip install")]
    assert found
    for command in found:
        match = re.fullmatch(r"pip install -e '?\.(?:\[([\w,]+)\])?'?", command)
        assert match, command
        assert set((match[1] or "").split(",")) - {""} <= extras.keys(), command


def test_test_commands_are_accepted():
    """Claim: pytest takes the options and paths of every pytest command of the documents."""
    found = {command for page in PAGES for command in documents.commands(page) if shlex.split(command)[0] == "pytest"}
    assert found
    for command in sorted(found):
        words = shlex.split(command)[1:]
        paths = [word for word in words if word.startswith("tests")]
        assert all((ROOT / path.partition("::")[0]).exists() for path in paths), command
        options = [word for word in words if word not in paths]
        collect = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            *options,
            "tests/test_house.py",
        ]
        done = subprocess.run(collect, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode in (0, 5), command + done.stdout + done.stderr  # 5: -k selects none of this file


@pytest.mark.slow
def test_reference_builds_without_warnings(tmp_path):
    """Claim: the documented command builds the pages of all modules from their docstrings, without a warning."""
    pytest.importorskip("pdoc")
    assert any(command == "python docs/reference.py" for page in PAGES for command in documents.commands(page))
    run = [sys.executable, "-W", "error", "docs/reference.py", str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    assert (tmp_path / "attribution" / "estimators" / "retrac.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Claim: every relative link and figure of a document is a file, and every anchor a heading."""
    for link in documents.links(page):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in documents.anchors(path), link


ARCHITECTURE = ROOT / "docs" / "architecture.md"


def test_rooms_of_the_architecture_exist():
    """Claim: the page lists every room of both packages, and no other."""
    text = ARCHITECTURE.read_text()
    for package in ("attribution", "experiments"):
        section = text.partition(f"## Rooms of `{package}`")[2].partition("\n## ")[0]
        listed = set(re.findall(r"^\| `(\w+)/` \|", section, re.MULTILINE))
        assert listed == {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}


def test_walk_of_the_architecture_exists():
    """Claim: every file of the walk is there and defines the class or function beside it."""
    steps = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| `(\w+)` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert len(steps) >= 20
    for file, name in steps:
        source = (ROOT / file).read_text()
        assert re.search(rf"^(?:class|def) {name}\b", source, re.MULTILINE), (file, name)
