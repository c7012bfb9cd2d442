"""docs/conditions.md: its blocks and commands, one after the other, at the smallest size."""

import shlex
from typing import Any

import pytest

from tests.experiments import documents
from tests.experiments.documents import ROOT
from tests.experiments.test_docs_run import TINY, TINY_LDS, program

PAGE = ROOT / "docs" / "conditions.md"
SMALL = ["data.n_train=20", "data.n_validation=12", "trainer.steps=6", "checkpoints.every=3", "diffusion.sampler.steps=2"]
DRAWS = ["estimator.draws.n=1", "curvature.draws.n=1"]
SCORED = ["benchmark.subsets.count=3", "benchmark.compare=[raw_cos]", "model.block_out_channels=[8,8]"]


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
    chosen = ["queries.n=3"] if "task=attribute" in words else [*TINY_LDS, *SCORED]
    small = {setting.partition("=")[0]: setting for setting in [*words, *TINY, *chosen, *SMALL, *DRAWS] if setting != "-m"}
    printed = program(tmp_path, ["-m"] * ("-m" in words) + list(small.values()))
    assert ("scores and a CSV for each query" in printed) == ("task=attribute" in words)
    assert ("lds %" in printed) == ("task=attribute" not in words)


def test_the_page_has_a_command_of_each_kind():
    """Claim: a DiT, a U-Net with classes and one with embeddings are trained by commands of the page."""
    found = " ".join(commands())
    assert all(f"model={name}" in found for name in ("dit_digits", "unet_digits_classes", "unet_digits_embeddings"))
