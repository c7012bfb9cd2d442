"""docs/conditions.md: its blocks and commands, one after the other, at the smallest size."""

import shlex
from typing import Any

import pytest

from tests.experiments import documents
from tests.experiments.documents import ROOT
from tests.experiments.test_docs_run import TINY, TINY_LDS, program

PAGE = ROOT / "docs" / "conditions.md"
SMALL = ["data.n_train=40", "data.n_validation=24", "diffusion.sampler.steps=3"]
ATTRIBUTED = ["queries.n=3", "estimator.draws.n=2", "curvature.draws.n=2"]


def commands() -> list[str]:
    """The commands that need no files but those of the page's blocks."""
    return [arguments for arguments in documents.run_commands(PAGE) if "DIR" not in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", commands())
def test_commands_of_conditional_models_run(arguments, tmp_path, monkeypatch):
    """Claim: each trains its network and explains it: a CSV of scores for each query of a class, or rows of the LDS."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in documents.blocks(PAGE, "python"):
        exec(compile(block.text, PAGE.name, "exec"), namespace)
    words = shlex.split(arguments)
    size = [*TINY, *SMALL, *(ATTRIBUTED if "task=attribute" in words else TINY_LDS)]
    given = {word.partition("=")[0] for word in words if not word.startswith("benchmark.subsets.count")}
    words = [word for word in words if not word.startswith("benchmark.subsets.count")]
    printed = program(tmp_path, [*words, *(setting for setting in size if setting.partition("=")[0] not in given)])
    assert ("scores and a CSV for each query" in printed) == ("task=attribute" in words)
    assert ("lds %" in printed) == ("task=attribute" not in words)


def test_the_page_has_a_command_of_each_kind():
    """Claim: a DiT, a U-Net with classes and one with embeddings are trained by commands of the page."""
    found = " ".join(commands())
    assert all(f"model={name}" in found for name in ("dit_digits", "unet_digits_classes", "unet_digits_embeddings"))
