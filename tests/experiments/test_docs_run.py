"""README.md, CONTRIBUTING.md and docs/: commands, recipes and Python blocks run as they stand, at the smallest size."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.experiments import documents
from tests.experiments.datasets.fake_data import write_cifar
from tests.experiments.documents import ADDITIONS, BLOCKS_BEFORE_COMMANDS, IMAGES, PAGES, README, ROOT
from tests.experiments.tasks.test_cli import run
from tests.experiments.test_docs import run_commands

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
    "checkpoints.every=2",
    "model.block_out_channels=[8,8,8,8]",
    "model.norm_num_groups=4",
]
TINY_SMALL = [
    "data.n_train=20",
    "data.n_validation=4",
    "benchmark.queries.validation.n=4",
    "estimator.draws.n=2",
    "curvature.draws.n=2",
    "model.block_out_channels=[8,8,8]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=4",
    *TINY_LDS,
]
TINY_TARGETED = ["benchmark.n=4", "benchmark.k=[5]", "benchmark.queries.validation.n=8", "benchmark.queries.generated.n=6"]
TINY_COUNTERFACTUAL = [
    "benchmark.fractions=[0.1]",
    "benchmark.queries.validation.n=2",
    "benchmark.queries.generated.n=2",
    "benchmark.draws.n=4",
]
TINY_SPEED = ["task.examples=4", "task.draws=[1,2]", "task.repeats=1", "task.groups=[2]", "task.steps=2", "task.methods.train=8"]
TINY_SPEED += ["task.methods.queries=2", "task.methods.draws=2", "task.methods.steps=2"]


def command(folder: Path, *arguments: str, store: Path | None = None) -> str:
    """``python run.py`` of this checkout within this process; what it printed. Hydra takes the configs from files, as there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRA_MAIN_MODULE", "__main__")
        return run(folder, *arguments, store=store)


def tiny(arguments: str, folder: Path) -> list[str]:
    """A command of the documents at the smallest size, its data in ``folder``."""
    words = [word.replace("DIR", str(folder / "data")) for word in shlex.split(arguments)]
    on_cifar = "data.root=DIR" in arguments
    small = [*(TINY_SMALL if "scale=small" in words else TINY_CIFAR if on_cifar else TINY_DIGITS), *TINY]
    if "benchmark=targeted" in words or "experiment=retrac/table1" in words:
        small += [setting for setting in TINY_TARGETED if not (on_cifar and "validation" in setting)]
    elif "benchmark=counterfactual" in words:
        small += TINY_COUNTERFACTUAL
    elif "task=speed" in words:
        small += TINY_SPEED
    elif not on_cifar and not any(word.startswith(("task=attribute", "data=", "model=", "benchmark=")) for word in words):
        small += TINY_LDS
    given = {word.partition("=")[0] for word in words}
    first = {setting.partition("=")[0]: setting for setting in reversed(small)}
    return [*words, *(setting for name, setting in first.items() if name not in given)]


def readme_commands() -> list[Any]:
    """The commands of the README that need no new files."""
    found = [arguments for arguments in dict.fromkeys(documents.run_commands(README)) if arguments in run_commands()]
    return [pytest.param(text, id=text or "(none)") for text in found]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", readme_commands())
def test_commands_of_the_readme_run(arguments, tmp_path, shared_store):
    """Claim: each does what it says, here at the smallest size and on data of the right format."""
    write_cifar(tmp_path / "data")
    if "queries.path=DIR" in arguments:
        pictures(tmp_path / "data")
    command(tmp_path, *tiny(arguments, tmp_path), store=shared_store)


def pictures(folder: Path) -> None:
    """Two gray pictures of 8 × 8 pixels."""
    shutil.rmtree(folder)
    folder.mkdir()
    for level in (0, 255):
        Image.new("L", (8, 8), level).save(folder / f"{level}.png")


def listed_pictures(folder: Path) -> None:
    """Twelve pictures of two classes, and a ``list.csv`` of them."""
    lines = ["id,file,class,split"]
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (40, 30), (20 * number, 0, 9)).save(folder / f"picture {number}.jpg")
        lines.append(f"{number},picture {number}.jpg,{number % 2},{'train' if number < 9 else 'validation'}")
    (folder / "list.csv").write_text("\n".join(lines))


def additions(folder: Path) -> list[dict[str, Any]]:
    """What the documents tell how to add, by the heading that it stands under: files, and the commands below them."""
    found = []
    blocks = [block for page in ADDITIONS for block in documents.blocks(page)]
    for page, heading in dict.fromkeys((block.page, block.heading) for block in blocks if block.file):
        chosen = [block for block in blocks if (block.page, block.heading) == (page, heading)]
        lines = [shlex.split(line) for block in chosen if block.language == "bash" for line in documents.shell_lines(block)]
        commands = [shlex.join(words[2:]).replace("DIR", str(folder)) for words in lines if words[:2] == ["python", "run.py"]]
        files = {block.file: block.text for block in chosen if block.file}
        found.append({"name": f"{page.name}: {heading}", "files": files, "commands": [*map(tiny_addition, commands)]})
    return found


@pytest.mark.slow
def test_additions_work_literally(tmp_path):
    """Claim: written where the page says, in a copy of the repository, the files work with the commands that stand below them."""
    home = tmp_path / "copy"
    for name in ("attribution", "experiments", "conf"):
        shutil.copytree(ROOT / name, home / name)
    shutil.copy(ROOT / "run.py", home)
    listed_pictures(tmp_path / "data")
    added = additions(tmp_path / "data")
    assert len(added) >= 9
    for addition in added:
        assert addition["commands"], addition["name"]
        for command in addition["commands"]:
            command.append(f"store.root={tmp_path / 'store'}")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": ""}
    program = [sys.executable, str(Path(__file__).with_name("additions.py")), str(home)]
    done = subprocess.run(
        program, cwd=tmp_path, env=environment, input=json.dumps(added), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


TINY_IMAGES = [
    "trainer.steps=6",
    "trainer.batch_size=8",
    "checkpoints.every=3",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
    "workers=1",
    "samples.n=2",
    "diffusion.sampler.steps=2",
    "model.block_out_channels=[8,8,8]",
    "model.norm_num_groups=4",
    "model.attention_head_dim=4",
    "estimator.draws.n=1",
    "curvature.draws.n=1",
    "queries.n=2",
]


def own_images(folder: Path, source: str, arguments: str) -> Path:
    """Files of 300 images that a source reads, or fewer that are smaller; what a command has in place of DIR or FILE."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    if source == "folder":
        for number in range(300):
            width, height = rng.integers(20, 60, 2).tolist()
            path = folder / ["cats", "dogs"][number % 2] / f"img{number}.{['jpg', 'png', 'JPEG'][number % 3]}"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        return folder
    names = np.array([f"img{number}.jpg" for number in range(24)])
    if source == "arrays":
        latents = rng.standard_normal((24, 4, 32, 32)).astype(np.float32)
        images = latents if "unbounded" in arguments else rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / "made.npz", images=images, names=names)
        return folder / "made.npz"
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    contents = []
    for _ in names:
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(file := io.BytesIO(), "PNG")
        contents.append({"bytes": file.getvalue(), "path": names[len(contents)]})
    parquet.write_table(pyarrow.table({"image": contents}), folder / "train-00000-of-00001.parquet")
    return folder


def commands_on_own_images() -> list[Any]:
    """The commands of docs/images.md that explain images with a model of one's own images."""
    found = [
        arguments for arguments in documents.run_commands(IMAGES) if "data.root=" in arguments and "task=attribute" in arguments
    ]
    return [pytest.param(arguments, id=arguments) for arguments in found if "data=mine" not in arguments]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", commands_on_own_images())
def test_images_of_one_s_own_are_trained_on_and_explained(arguments, tmp_path):
    """Claim: from files of many kinds and sizes to proponents by file name, by one command."""
    words = shlex.split(arguments)
    source = next(word for word in words if word.startswith("data=")).partition("=")[2]
    root = own_images(tmp_path / "made", source, arguments)
    words = [re.sub("=(DIR|FILE)$", f"={root}", word) for word in words]
    printed = command(tmp_path, *words, *TINY_IMAGES, f"hydra.run.dir={tmp_path / 'out'}")
    assert "scores and a CSV for each query" in printed
    with (tmp_path / "out" / "scores" / "query-0.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    pattern = r"(cats|dogs)/img\d+\.(jpg|png|JPEG)" if source == "folder" else r"img\d+\.jpg"
    assert all(re.fullmatch(pattern, line["name"]) for line in lines)
    assert lines[0]["query_name"] == "generated/0"
    with (tmp_path / "out" / "scores" / "train.csv").open(newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == (270 if source == "folder" else 22)
    assert lines[0]["name"] in (tmp_path / "out" / "index.html").read_text()


def tiny_addition(arguments: str) -> list[str]:
    """A command of an addition at the smallest size: with settings only of what it leaves at the default."""
    words = shlex.split(arguments)
    groups = {word.partition("=")[0] for word in words}
    small = [*TINY]
    small += [] if "data" in groups else TINY_DIGITS[:2]
    small += [] if "model" in groups else TINY_DIGITS[2:]
    small += [] if "benchmark" in groups else TINY_LDS
    small += [] if groups & {"benchmark", "benchmark.compare"} else ["benchmark.compare=[raw_cos]"]
    return [*words, *small]


def pages_with_blocks() -> list[Path]:
    """The pages with Python blocks, without those whose blocks test_docs_with_blocks.py runs."""
    return [page for page in PAGES if documents.blocks(page, "python") and page not in BLOCKS_BEFORE_COMMANDS]


@pytest.mark.parametrize("page", pages_with_blocks(), ids=lambda page: page.name)
@pytest.mark.slow
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Claim: the Python blocks of a page, those that are not files, run one after the other."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in documents.blocks(page, "python"):
        if not block.file:
            exec(compile(block.text, f"{page.name}: {block.heading}", "exec"), namespace)


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


def test_the_notebook_runs(monkeypatch):
    """Claim: the cells of docs/attribute.ipynb run one after the other, here at the smallest size, and draw its picture."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setattr(pyplot, "show", lambda: None)
    notebook = json.loads((ROOT / "docs" / "attribute.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    small, count = re.subn(r"^n, steps, draws = .*$", "n, steps, draws = 12, 2, 1", cells[0], flags=re.MULTILINE)
    assert count == 1
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for cell in [small, *cells[1:]]:
        exec(compile(cell, "attribute.ipynb", "exec"), namespace)
    assert namespace["scores"].values.shape == (6, 12)
    assert len(pyplot.gcf().axes) == 6 * 13
    pyplot.close("all")
