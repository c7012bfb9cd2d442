"""docs/conditions.md and docs/latent.md: their blocks and commands, one after the other, at the smallest size."""

import functools
import shlex
import shutil
from pathlib import Path

import pytest

from tests.experiments import documents
from tests.experiments.documents import BLOCKS_BEFORE_COMMANDS
from tests.experiments.test_docs_run import TINY, TINY_LDS, command

CONDITIONS, LATENT = BLOCKS_BEFORE_COMMANDS
FEW = {"n_train": 20, "n_validation": 12}
SMALL = ["trainer.steps=6", "checkpoints.every=3", "diffusion.sampler.steps=2"]
DRAWS = ["estimator.draws.n=1", "curvature.draws.n=1"]
SCORED = ["benchmark.subsets.count=3", "benchmark.compare=[raw_cos]"]


def commands(page: Path) -> list[str]:
    """The commands that need no files but those of the page's blocks."""
    return [arguments for arguments in documents.run_commands(page) if "DIR" not in arguments]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A function that returns the folder in which the blocks of a page ran."""

    @functools.cache
    def run(page: Path) -> Path:
        folder, namespace = tmp_path_factory.mktemp(page.stem), {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for block in documents.blocks(page, "python"):
                exec(compile(block.text, page.name, "exec"), namespace)
        return folder

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "arguments"),
    [pytest.param(page, text, id=f"{page.stem}: {text}") for page in (CONDITIONS, LATENT) for text in commands(page)],
)
def test_commands_run_on_what_the_blocks_write(page, arguments, tmp_path, written):
    """Claim: each trains its network and explains it: a CSV of scores for each query, or rows of the LDS."""
    shutil.copytree(written(page), tmp_path, dirs_exist_ok=True)
    words = shlex.split(arguments)
    source = "data.images" if page == LATENT else "data"
    small = [*SMALL, *(f"{source}.{name}={number}" for name, number in FEW.items())]
    chosen = ["queries.n=3"] if "task=attribute" in words else [*TINY_LDS, *SCORED]
    chosen += [] if "task=attribute" in words or "model=lora" in words else ["model.block_out_channels=[8,8]"]
    settings = {setting.partition("=")[0]: setting for setting in [*words, *TINY, *chosen, *small, *DRAWS] if setting != "-m"}
    printed = command(tmp_path, *["-m"] * ("-m" in words), *settings.values())
    assert ("scores and a CSV for each query" in printed) == ("task=attribute" in words)
    assert bool([*tmp_path.glob("outputs/*/*/lds.png")]) == ("task=attribute" not in words)


def test_the_page_has_a_command_of_each_kind():
    """Claim: commands of the page train a DiT, a U-Net with classes, one with embeddings and a transformer with two of them."""
    found = " ".join(commands(CONDITIONS))
    models = ("dit_digits", "unet_digits_classes", "unet_digits_embeddings", "sd3_digits")
    assert all(f"model={name}" in found for name in models)
