"""README.md and docs/: the commands that they show work, and their links lead somewhere."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from attribution.estimators import Estimator
from experiments.models.experiment import Experiment
from experiments.queries import Queries
from experiments.tasks.composition import chosen_estimator, estimators_of, experiment_of

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"python run\.py((?:[^\n`\\]|\\\n)*)")
"""Up to the end of the line, or of the code that is quoted within a sentence; lines that end with a backslash go on."""
REMARK = re.compile(r"#| {3}|\(and ")
"""Where the words after a command begin."""
OPEN = re.compile(r"\b(DIR|FILE|FINGERPRINT)\b|\.\.\.|\[task")
"""What a reader is to fill in."""
EXAMPLE = "estimator=signed"
"""What the README tells how to add."""


def commands() -> list[str]:
    """The different settings in the documents, each as on the command line, without those to fill in and without sweeps."""
    found = [re.sub(r"\\\n *", "", match) for page in PAGES for match in COMMAND.findall(page.read_text())]
    said = [REMARK.split(text)[0].strip() for text in found]
    arguments = [shlex.split(text) for text in said if not OPEN.search(text)]
    return sorted({shlex.join(words) for words in arguments if words and words[0] not in ("-m", "--help", EXAMPLE)})


def settings(command: str) -> set[str]:
    """What a command shows: its choices, and the names of what it sets."""
    words = shlex.split(command)
    return {word.partition("=")[0] if "." in word.partition("=")[0].partition("@")[0] else word for word in words}


def by_novelty() -> list[Any]:
    """All commands, longest first; one that shows nothing that those before it do not show is slow."""
    seen: set[str] = set()
    found = []
    for command in sorted(commands(), key=len, reverse=True):
        found.append(pytest.param(command, id=command, marks=() if settings(command) - seen else pytest.mark.slow))
        seen |= settings(command)
    return found


def test_commands_are_found():
    """Claim: the search finds commands of every kind; none is lost to a change of layout."""
    found = commands()
    assert len(found) >= 40
    assert any("held_out_of_each" in command for command in found)  # goes over two lines
    assert any("task=attribute" in command for command in found)
    assert "task=loss_weights" in found  # within a sentence


@pytest.mark.parametrize("command", by_novelty())
def test_commands_of_the_documents(command):
    """Claim: each composes, what it compares is there, and its benchmark knows what it would compute."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*shlex.split(command), "execution.device=cpu"], return_hydra_config=True)
        compared = list(config.benchmark.compare)
        assert all((CONF / "estimator" / f"{name}.yaml").is_file() for name in compared)
        # Composing each takes a second: the first, for the benchmark's sake, and the last where it could refuse a setting.
        first, last = compared[: "benchmark" in command], compared[-1:] if "estimator." in command else []
        config.benchmark.compare = list(dict.fromkeys([*first, *last]))
        HydraConfig.instance().set_config(config)
        if config.hydra.runtime.choices.task in ("evaluate", "plan", "work"):
            benchmark = instantiate(config.benchmark, _convert_="all")
            assert benchmark.nodes(experiment_of(config), estimators_of(config))
        else:
            OmegaConf.to_container(config.task, resolve=True)
            assert isinstance(experiment_of(config), Experiment)
            assert isinstance(chosen_estimator(config)[1], Estimator)
            assert isinstance(instantiate(config.queries, _convert_="all"), Queries)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Claim: every relative link and figure of a document is a file."""
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    missing = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not missing
