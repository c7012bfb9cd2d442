"""task=judge: the LDS of scores in files."""

import csv
import re
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.numpy import save_file
from scipy.stats import spearmanr

from attribution.estimators.scores import Scores
from experiments.metrics.bootstrap import Bootstrap
from experiments.metrics.noise_ceiling import noise_ceiling
from experiments.tasks.judge import judge
from tests.experiments.judging.files import K, M, N, Q, saved, world
from tests.experiments.tasks.test_cli import rows, run


def judged(folder, *settings: str) -> tuple[dict[tuple[str, str], dict], str]:
    """The rows of task=judge by estimator and metric, and what it printed."""
    printed = run(folder, "task=judge", f"hydra.run.dir={folder / 'out'}", "task.resamples=50", *settings)
    return {(row["estimator"], row["metric"]): row for row in rows(folder / "out")}, printed


def value(found: dict, name: str) -> float:
    return found[name, "lds_%"]["value"]


def by_hand(scores: np.ndarray, masks: np.ndarray, target: np.ndarray) -> float:
    """The mean over queries of Spearman's correlation of Σ_{i∉S} τ[q, i] with the cost of q, in per cent."""
    predicted = [[sum(float(s) for s, kept in zip(row, mask, strict=True) if not kept) for mask in masks] for row in scores]
    return 100 * float(np.mean([spearmanr(predicted[q], target[:, q]).statistic for q in range(len(scores))]))


def test_files_are_judged_as_by_hand(tmp_path):
    """Claim: LDS, paired differences, exact retraining, the noise ceiling, tables and the page are right; there is no store."""
    given = world()
    other = np.random.default_rng(5).normal(size=(Q, N))
    np.savez(tmp_path / "two.npz", tau=other, unused=np.zeros(3))
    paths = saved(tmp_path, mine=given.scores, masks=given.masks.astype(int))
    save_file({"measurements": given.measurements}, tmp_path / "truth.safetensors")
    found, printed = judged(
        tmp_path,
        f"task.scores={{mine: {paths['mine']}, theirs: {tmp_path / 'two.npz'}:tau}}",
        f"task.masks={paths['masks']}",
        f"task.measurements={tmp_path / 'truth.safetensors'}",
    )
    target = given.measurements.mean(0)
    mine, theirs = by_hand(given.scores, given.masks, target), by_hand(other.astype(np.float32), given.masks, target)
    assert value(found, "mine") == pytest.approx(mine)
    assert value(found, "theirs") == pytest.approx(theirs)
    assert value(found, "mine − theirs") == pytest.approx(mine - theirs)
    ceiling = noise_ceiling(given.measurements.transpose(0, 2, 1), Bootstrap(50)).value
    assert value(found, "noise ceiling") == pytest.approx(100 * ceiling)
    assert found["mine", "lds_%"]["ceiling"] == pytest.approx(100 * ceiling)
    assert found["mine", "lds_%"]["low"] < mine < found["mine", "lds_%"]["high"]
    seeds = [given.measurements[k] for k in range(K)]
    exact = np.mean([[spearmanr(seeds[k][:, q], seeds[1 - k][:, q]).statistic for q in range(Q)] for k in range(K)])
    assert value(found, "exact retraining") == pytest.approx(100 * exact)
    assert {row["data"] for row in found.values()} == {"truth"}
    assert (found["mine", "lds_%"]["subsets"], found["mine", "lds_%"]["seeds"]) == (M, K)
    with (tmp_path / "out" / "proponents.csv").open() as file:
        lines = [line for line in csv.DictReader(file) if line["estimator"] == "mine" and line["query"] == "1"]
    assert [int(line["position"]) for line in lines] == [*np.argsort(-given.scores[1])[:5], *np.argsort(given.scores[1])[:5]]
    assert (tmp_path / "out" / "lds.png").stat().st_size > 5000
    page = (tmp_path / "out" / "index.html").read_text()
    assert "lds on truth" in page
    assert "unet_digits" not in page
    assert "UNet" not in page
    assert "warning" not in printed
    assert not (tmp_path / "store").exists()


def test_runs_in_several_files_and_tables(tmp_path):
    """Claim: K tables with ids are the runs; scores with these ids in another order are put in order, transposed or not."""
    given = world()
    names = [f"img{i}" for i in range(N)]

    def table(path, values, rows_, columns):
        lines = [["", *columns], *([row, *map(repr, line)] for row, line in zip(rows_, values.tolist(), strict=True))]
        path.write_text("\n".join(",".join(line) for line in lines))
        return str(path)

    subsets, queries = [f"s{m}" for m in range(M)], [f"q{q}" for q in range(Q)]
    masks = table(tmp_path / "masks.csv", given.masks.astype(int), subsets, names)
    runs = [table(tmp_path / f"run{k}.csv", given.measurements[k], subsets, queries) for k in range(K)]
    order = np.random.default_rng(1).permutation(N)
    mine = table(tmp_path / "mine.csv", given.scores[:, order], queries, [names[i] for i in order])
    turned = table(tmp_path / "turned.csv", given.scores.T[order], [names[i] for i in order], queries)
    found, printed = judged(
        tmp_path, f"task.scores=[{mine},{turned}]", f"task.masks={masks}", f"task.measurements=[{','.join(runs)}]"
    )
    expected = by_hand(given.scores, given.masks, given.measurements.mean(0))
    assert value(found, "mine") == pytest.approx(expected)
    assert value(found, "turned") == pytest.approx(expected)
    assert "turned: " in printed
    assert "were transposed" in printed
    with (tmp_path / "out" / "proponents.csv").open() as file:
        first = next(csv.DictReader(file))
    assert first["query_name"] == "q0"
    assert first["name"] == names[int(given.scores[0].argmax())]


def test_scores_of_other_programs(tmp_path):
    """Claim: dattri's tensors [N, Q] and pair (measurements, positions), TRAK's stores, folders of task=attribute are read."""
    given = world()
    positions = np.stack([np.flatnonzero(mask) for mask in given.masks])
    # dattri gives the negative of what it is told to measure: of a loss, something that is larger where the model is better.
    torch.save((-torch.from_numpy(given.measurements.mean(0)), torch.from_numpy(positions)), tmp_path / "truth.pt")
    torch.save(torch.from_numpy(given.scores.T.copy()), tmp_path / "dattri.pt")
    (tmp_path / "trak" / "scores").mkdir(parents=True)
    (tmp_path / "trak" / "metadata.json").write_text('{"JL dimension": 8, "JL matrix type": "normal", "train set size": 20}')
    stored = np.lib.format.open_memmap(tmp_path / "trak" / "scores" / "mine.mmap", "w+", np.float16, (N, Q))
    stored[:] = given.scores.T
    stored.flush()
    (tmp_path / "attributed").mkdir()
    both = np.stack([given.scores, -given.scores])
    Scores(both, np.arange(Q), np.arange(N), {"damping": [1e-3, 1e-8]}).save(tmp_path / "attributed")
    found, _ = judged(
        tmp_path,
        "task.scores={dattri: dattri.pt, trak: trak, kfac: attributed}",
        "task.measurements=truth.pt",
        "task.measure=utility",
    )
    expected = by_hand(given.scores, given.masks, given.measurements.mean(0))
    assert value(found, "dattri") == pytest.approx(expected)
    assert value(found, "trak") == pytest.approx(by_hand(given.scores.astype(np.float16), given.masks, given.measurements.mean(0)))
    kfac = {row["settings"]["estimator.damping"]: row["value"] for row in rows(tmp_path / "out") if row["estimator"] == "kfac"}
    assert kfac == {1e-3: pytest.approx(expected), 1e-8: pytest.approx(-expected)}
    assert "noise ceiling" not in {name for name, _ in found}


@pytest.mark.slow
def test_reversed_signs_are_said_and_not_changed(tmp_path):
    """Claim: a clearly negative LDS is warned of, with the settings that turn it; these do, exactly."""
    given = world(noise=0.1)
    paths = saved(tmp_path, mine=given.scores, theirs=-given.scores, masks=given.masks, measured=given.measurements)
    truth = [f"task.masks={paths['masks']}", f"task.measurements={paths['measured']}"]
    found, printed = judged(tmp_path, f"task.scores=[{paths['mine']},{paths['theirs']}]", *truth)
    right = value(found, "mine")
    assert value(found, "theirs") == pytest.approx(-right)
    assert "the LDS of theirs is clearly negative" in printed
    assert "task.flip=[theirs]" in printed
    assert "task.measure=utility" not in printed  # mine is positive
    found, printed = judged(tmp_path, f"task.scores=[{paths['mine']},{paths['theirs']}]", "task.flip=[theirs]", *truth)
    assert value(found, "theirs") == right
    assert "warning" not in printed
    found, printed = judged(tmp_path, f"task.scores=[{paths['theirs']}]", *truth)
    assert "task.measure=utility" in printed
    found, printed = judged(tmp_path, f"task.scores=[{paths['theirs']}]", "task.measure=utility", *truth)
    assert value(found, "theirs") == right
    assert "warning" not in printed


DEFAULTS = {"bundle": None, "queries": None, "measure": "cost", "flip": (), "data": None, "top": 5, "resamples": 50}

BAD: dict[str, dict[str, Any]] = {
    "task.scores is missing": {"scores": None},
    "task.measurements is missing": {"measurements": None},
    "task.masks=null: name the file of masks": {"masks": None},
    r"task.scores=\S*none.npy: no such file": {"scores": "none.npy"},
    r"task.scores=\S*bad.txt: must be one of": {"scores": b"1 2", "suffix": "txt"},
    r"task.scores: \S*bad.npy cannot be read": {"scores": b"no array"},
    r"task.scores=\S*bad.pt: cannot be read as tensors": {"scores": b"no tensor", "suffix": "pt"},
    r"task.scores=\S*bad.csv: .*could not convert string": {"scores": b"1,2\n3,x", "suffix": "csv"},
    r"task.scores=\S*bad.csv: has lines of different lengths": {"scores": b"1,2\n3", "suffix": "csv"},
    r"task.scores=\S*bad.npy: has scores \[4, 19\].*N=19, not 20": {"scores": np.zeros((4, 19))},
    r"has scores \[3, 20\].*Q=3, not 4": {"scores": np.zeros((3, 20))},
    r"1 scores are not finite, the first of query 1 and training image 2": {"scores": np.where(np.arange(80) == 22, np.nan, 1)},
    r"task.masks=\S*bad.npy: has the shape \[20, 12\].*transpose them": {"masks": np.zeros((20, 12), bool)},
    r"task.masks=\S*bad.npy: has the value 2: masks are 1": {"masks": np.full((12, 20), 2)},
    r"task.masks=\S*bad.npy: all 12 leave out the same images": {"masks": np.tile(np.arange(20) < 10, (12, 1))},
    r"task.masks=\S*bad.npy: subset 0 keeps every training image": {"masks": np.ones((12, 20), bool)},
    r"task.measurements=\S*bad.npy: has the shape \[12\]": {"measurements": np.zeros(12)},
    r"48 measurements are not finite, the first of run 0, subset 0, query 0": {"measurements": np.full((12, 4), np.inf)},
    r"task.measurements=\S*bad.npy: query 0 has the same measurement under every subset": {"measurements": np.ones((12, 4))},
    r"task.measurements=\S*bad.npy: training runs 0 and 1 are equal": {
        "measurements": np.stack([np.arange(48.0).reshape(12, 4)] * 2)
    },
    r"task.masks=\S*bad.npy: has 2 subsets.*at least 3": {"measurements": "two.npy", "masks": np.eye(2, 20).astype(bool)},
    r"task.scores=\S*two.npz: .*arrays a \[2\], b \[2\].*two.npz:NAME": {"scores": "two.npz"},
    r"task.scores=\S*two.npz:c: the file has no array of this name, but a \[2\], b \[2\]": {"scores": "two.npz:c"},
    r"task.flip=\['x'\]: x is none of task.scores \(mine\)": {"more": {"flip": ["x"]}},
    r"task.queries=validation: chooses a kind of queries of task.bundle": {"more": {"queries": "validation"}},
    r"task.top=-1: must be at least 0": {"more": {"top": -1}},
    r"task.bundle: has masks and measurements of its own": {"more": {"bundle": "here"}},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_files_are_refused(message, tmp_path):
    """Claim: each is one sentence that begins with the setting, says what is wrong, and how to fix it."""
    given, bad = world(), BAD[message]
    paths = saved(tmp_path, mine=given.scores, masks=given.masks, measurements=given.measurements, two=given.measurements[:, :2])
    np.savez(tmp_path / "two.npz", a=np.zeros(2), b=np.zeros(2))
    named: dict[str, str | None] = {"scores": paths["mine"], "masks": paths["masks"], "measurements": paths["measurements"]}
    for setting, content in bad.items():
        file = tmp_path / f"bad.{bad.get('suffix', 'npy')}"
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif isinstance(content, np.ndarray):
            np.save(file, content.reshape(Q, N) if content.size == Q * N and content.ndim == 1 else content)
        if setting in named:
            named[setting] = None if content is None else str(file if not isinstance(content, str) else tmp_path / content)
    settings: dict[str, Any] = {**DEFAULTS, **named, **bad.get("more", {})}
    with pytest.raises(ValueError, match=re.compile(f"^.*{message}")):
        judge(OmegaConf.create({"seed": 0}), **settings)


def test_settings_of_the_task(tmp_path):
    """Claim: the types of all settings are checked by name."""
    with pytest.raises(SystemExit, match=re.escape("error: task.measure=loss: must be cost or utility")):
        judged(tmp_path, "task.measure=loss")
