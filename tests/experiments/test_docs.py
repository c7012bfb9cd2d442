"""README.md, CONTRIBUTING.md and docs/: the commands that they show are valid, and their links lead somewhere."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import diffusers
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attribution.estimators import Estimator
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.tasks.composition import chosen_estimator, estimators_of, experiment_of
from tests.experiments import documents
from tests.experiments.documents import ADDITIONS, PAGES, PLACEHOLDERS, README, ROOT
from tests.worlds import UNET

CONF = ROOT / "conf"
PLACEHOLDER = re.compile(rf"\b({'|'.join(PLACEHOLDERS)})\b")
EMBEDDED = ("digits", "patches_digits")
"""Data sources that need no files."""
OPEN = re.compile(r"--help|\.\.\.")
"""Commands that show no settings of their own."""


def new_files(page: Path) -> set[str]:
    """The files that a page tells its reader to write."""
    return {block.file for block in documents.blocks(page) if block.file}


def needs_new_files(arguments: str) -> bool:
    """Whether a command chooses something that the documents tell how to add."""
    added = {Path(file) for page in ADDITIONS for file in new_files(page)}
    inside = [path.relative_to("conf").with_suffix("") for path in added if path.suffix == ".yaml"]
    choices = {f"{path.parts[0]}={'/'.join(path.parts[1:])}" for path in inside}
    return any(word in choices for word in shlex.split(arguments))


def run_commands() -> list[str]:
    """The arguments of every different ``python run.py`` in the documents that the repository as it is can run."""
    found = {arguments for page in PAGES for arguments in documents.run_commands(page)}
    return sorted(arguments for arguments in found if not OPEN.search(arguments) and not needs_new_files(arguments))


def marked() -> list[Any]:
    """All commands; those of the README are fast."""
    fast = set(documents.run_commands(README))
    return [pytest.param(text, id=text or "(none)", marks=() if text in fast else pytest.mark.slow) for text in run_commands()]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a pipeline of diffusers, which also stands for a file with weights where no weights are read."""
    path = tmp_path_factory.mktemp("pipeline")
    diffusers.DDPMPipeline(UNET(), diffusers.DDPMScheduler()).save_pretrained(path)
    return path


def jobs(arguments: str, given: Path) -> list[list[str]]:
    """The overrides of the job, or of the first and the last job of a sweep."""
    path = re.compile(r"^(explained|model|diffusion\.process)\.path=(DIR|FILE)$")
    words = [path.sub(rf"\1.path={given}", word) for word in shlex.split(arguments)]
    words = [word.replace("DIR", "/data") for word in words]
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


@pytest.mark.parametrize("arguments", marked())
@pytest.mark.slow
def test_commands_compose(arguments, given):
    """Claim: each composes, what it compares exists, and its benchmark knows what it would compute."""
    if "hydra/launcher=" in arguments:
        pytest.importorskip(f"hydra_plugins.hydra_{'joblib' if 'local' in arguments else 'submitit'}_launcher")
    if "hydra/sweeper=" in arguments:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    if "model=lora" in arguments:
        pytest.importorskip("peft")
    for overrides in jobs(arguments, given):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", [*overrides, "execution.device=cpu"], return_hydra_config=True)
            compared = list(config.benchmark.compare)
            assert all((CONF / "estimator" / f"{name}.yaml").is_file() for name in compared)
            # Composing each takes a second: the first, for the benchmark's sake, and the last where it could refuse a setting.
            first, last = compared[: "benchmark" in arguments], compared[-1:] if "estimator." in arguments else []
            config.benchmark.compare = list(dict.fromkeys([*first, *last]))
            HydraConfig.instance().set_config(config)
            known = config.hydra.runtime.choices.data in EMBEDDED and "condition.path=" not in arguments
            build(config, nodes=known and not PLACEHOLDER.search(arguments))


def build(config: Any, nodes: bool) -> None:
    """Make the objects that a composed task needs, and with ``nodes`` what its benchmark would compute."""
    experiment = experiment_of(config)
    assert isinstance(experiment, Experiment)
    if config.hydra.runtime.choices.task in ("evaluate", "plan", "work"):
        benchmark, estimators = instantiate(config.benchmark, _convert_="all"), estimators_of(config)
        assert not nodes or benchmark.nodes(experiment, estimators)
    else:
        OmegaConf.to_container(config.task, resolve=True)
        assert isinstance(chosen_estimator(config)[1], Estimator)
        assert isinstance(instantiate(config.queries, _convert_="all"), Queries)


def test_install_commands_name_extras_that_exist():
    """Claim: every pip install of the documents installs this project, with extras that pyproject.toml has."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = [command for page in PAGES for command in documents.commands(page) if command.startswith("pip install")]
    assert found
    for command in found:
        match = re.fullmatch(r"pip install -e '?\.(?:\[([\w,]+)\])?'?", command)
        assert match, command
        assert set((match[1] or "").split(",")) - {""} <= extras.keys(), command


@pytest.mark.slow
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Claim: every relative link and figure of a document is a file, and every anchor a heading."""
    for link in documents.links(page):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in documents.anchors(path), link


ARCHITECTURE = ROOT / "docs" / "architecture.md"


def test_packages_of_the_architecture_exist():
    """Claim: the page lists every package of both, and no other."""
    text = ARCHITECTURE.read_text()
    for package in ("attribution", "experiments"):
        section = text.partition(f"## Packages of `{package}`")[2].partition("\n## ")[0]
        listed = set(re.findall(r"^\| `(\w+)/` \|", section, re.MULTILINE))
        assert listed == {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}


def test_walk_of_the_architecture_exists():
    """Claim: every file of the walk is there and defines the class or function beside it."""
    steps = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| `(\w+)` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    assert len(steps) >= 20
    for file, name in steps:
        source = (ROOT / file).read_text()
        assert re.search(rf"^(?:class|def) {name}\b", source, re.MULTILINE), (file, name)
