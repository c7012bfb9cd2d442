"""Bundles: what task=export writes and task=judge reads."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.benchmarks.lds_report import LDSInputs, LDSReport, Measurements
from experiments.benchmarks.variants import Variant
from experiments.datasets.errors import DataError
from experiments.judging.bundle import read_bundle, write_bundle
from experiments.metrics.bootstrap import Bootstrap
from experiments.report.report import Report
from experiments.report.row import Effort, Subject
from tests.experiments.judging.files import M, N, Q, world
from tests.experiments.tasks.test_cli import FINAL, rows, run

CARD = {"data": "blobs", "seed": 3, "resamples": 40, "measurement": {"_target_": "a.Loss"}, "command": "python run.py"}
LDS = [
    *FINAL,
    "estimator=random",
    "benchmark.compare=[raw_cos]",
    "benchmark.subsets.count=5",
    "benchmark.subsets.weight=0.25",
    "benchmark.repeats=3",
    "benchmark.steps=3",
    "benchmark.draws.n=2",
    "benchmark.resamples=50",
    "benchmark.queries.validation.n=5",
    "benchmark.queries.generated.n=5",
    "seed=4",
]


def images(count: int, first: int) -> Images:
    names = np.array([f'blob, "{i}"' for i in range(count)])
    return Images(np.zeros((count, 1, 2, 2), np.float32), np.arange(count) + first, np.arange(count) % 2, names=names)


def inputs(kind: str, repeats: int, weight: float) -> LDSInputs:
    """Inputs with an estimator that has groups of draws and one with several dampings; with ``repeats``, of one training run."""
    random, given = np.random.default_rng(len(kind)), world()
    queries, index = images(Q, 100), np.arange(N) + 7
    cross = random.normal(size=(2, 3, Q, N)).astype(np.float32)
    drawn = Scores(cross.mean((0, 1)), queries.index, index, {}, None, cross)
    axes = {"damping": [1e-8, 0.1], "draws": [(2, 2)]}
    whole = Scores(random.normal(size=(2, 1, Q, N)).astype(np.float32), queries.index, index, axes)
    at = Scores(whole.values[1, 0], queries.index, index)
    variants = [
        Variant(Subject("kfac", {"estimator.damping": 0.1}, "abc", Effort(2, 4, 12.5)), at),
        Variant(Subject("drawn", effort=Effort(3, 3, 7)), drawn),
    ]
    measured = given.measurements.transpose(0, 2, 1)
    both = measured if not repeats else np.stack([measured[0, :, :repeats], measured[1, :, :repeats]])
    truth = Measurements(measured[:1] if repeats else measured, both, (1 - weight) * ~given.masks)
    other = Scores(random.normal(size=(Q, N)).astype(np.float32), queries.index, index)
    again = {variants[0].label: [Variant(variants[0].subject, other)]} if repeats else {}
    return LDSInputs(kind, queries, variants, [Variant(Subject("kfac", scores="abc"), whole)], truth, again)


def reported(folder, parts):
    report = Report(folder, data="blobs", seed=3, command="python run.py")
    result = LDSReport(report, Bootstrap(40, 3))
    for part in parts:
        result.add(part)
    result.close()
    return report


@pytest.mark.parametrize(("repeats", "weight"), [(5, 0.0), (0, 0.3)])
def test_a_bundle_gives_the_same_rows(tmp_path, repeats, weight):
    """Claim: rows and tables are bit-equal to those before: sweeps, groups of draws, repeats, weights, trainings."""
    parts = [inputs("validation", repeats, weight), inputs("generated", repeats, weight)]
    first = reported(tmp_path / "first", parts)
    card = write_bundle(tmp_path / "bundle", parts, images(N, 7), first.rows, CARD)
    bundle = read_bundle(tmp_path / "bundle")
    second = reported(tmp_path / "second", bundle.inputs)
    assert [row.to_dict() for row in second.rows] == [row.to_dict() for row in first.rows]
    assert rows(tmp_path / "bundle") == [json.loads(json.dumps(row.to_dict())) for row in first.rows]
    for path in first.tables:
        assert (tmp_path / "second" / path.name).read_bytes() == path.read_bytes()
    assert len(first.tables) == 2
    assert [bundle.train.name(row) for row in range(N)] == [images(N, 7).name(row) for row in range(N)]
    assert bundle.train.label.tolist() == images(N, 7).label.tolist()
    assert (card["N"], card["M"], card["kinds"]["validation"]["Q"]) == (N, M, Q)
    assert (card["kinds"]["validation"]["K"], card["kinds"]["validation"]["repeats"]) == (1 if repeats else 2, repeats)
    assert not (tmp_path / "bundle.part").exists()
    again = write_bundle(tmp_path / "again", parts, images(N, 7), first.rows, CARD)
    assert again == card


def test_checksums_are_those_of_sha256sum(tmp_path):
    """Claim: sha256sum -c takes the file of checksums; others may read every file, and the README names license and fingerprint."""
    card = write_bundle(tmp_path / "bundle", [inputs("validation", 0, 0.0)], images(N, 7), [], CARD)
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "bundle", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files = set(os.listdir(tmp_path / "bundle"))
    assert {line.partition(":")[0] for line in done.stdout.splitlines()} == files - {"SHA256SUMS", "README.md"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "bundle").iterdir())
    text = (tmp_path / "bundle" / "README.md").read_text()
    assert text.startswith("---\nlicense:")
    assert card["fingerprint"] in text


def damaged(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: damaged(folder, "validation.scores.safetensors"), "validation.scores.safetensors is not what was written"),
        (lambda folder: damaged(folder, "card.json"), "card.json is not what was written"),
        (lambda folder: (folder / "subsets.safetensors").unlink(), "lacks subsets.safetensors: copy the bundle again"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "is no bundle: it lacks"),
        (lambda folder: shutil.rmtree(folder), "is no bundle: it lacks"),
        (lambda folder: (folder / "SHA256SUMS").write_text("00  ../other\n"), "has a line that is no checksum"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "has no checksum of card.json"),
    ],
)
def test_damaged_bundles_are_refused(tmp_path, change, message):
    """Claim: a changed, missing or foreign file is named before anything is read from the bundle; the README may change."""
    write_bundle(tmp_path / "bundle", [inputs("validation", 0, 0.0)], images(N, 7), [], CARD)
    damaged(tmp_path / "bundle", "README.md")
    assert read_bundle(tmp_path / "bundle").card["data"] == "blobs"
    change(tmp_path / "bundle")
    with pytest.raises(DataError, match=f"task.bundle=.*{message}"):
        read_bundle(tmp_path / "bundle")


@pytest.mark.slow
def test_an_exported_run_is_judged_as_it_was(tmp_path):
    """Claim: task=judge repeats every row of the run that exported, bit by bit; scores of others stand beside them.

    A score file for one of several kinds of queries of the same number is refused until the kind is chosen.
    """
    bundle = tmp_path / "bundle"
    printed = run(tmp_path, "task=export", f"task.output={bundle}", f"hydra.run.dir={tmp_path / 'first'}", *LDS)
    assert str(bundle) in printed
    run(tmp_path, "task=judge", f"task.bundle={bundle}", f"hydra.run.dir={tmp_path / 'second'}")
    own = ("command", "swept", "hardware", "difference")
    first, second = ([{k: v for k, v in row.items() if k not in own} for row in rows(tmp_path / n)] for n in ("first", "second"))
    assert second == first
    card = json.loads((bundle / "card.json").read_text())
    assert str(tmp_path) not in (bundle / "card.json").read_text() + (bundle / "rows.jsonl").read_text()
    assert card["retraining"]["subsets"]["count"] == 5
    assert set(card["estimators"]) == {"random", "raw_cos"}
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(5, 40)))
    command = ["task=judge", f"task.bundle={bundle}", f"task.scores={tmp_path / 'mine.npy'}", f"hydra.run.dir={tmp_path / 'third'}"]
    with pytest.raises(SystemExit, match=r"several: set task\.queries=validation"):
        run(tmp_path, *command)
    run(tmp_path, *command, "task.queries=generated")
    third = {(row["queries"], row["estimator"]) for row in rows(tmp_path / "third")}
    assert {("generated", "mine"), ("generated", "mine − random"), ("generated", "mine − raw_cos")} < third
    assert {kind for kind, _ in third} == {"generated"}
    with pytest.raises(SystemExit, match=r"error: task\.output=.*: exists already; name a new folder"):
        run(tmp_path, "task=export", f"task.output={bundle}", *LDS)
    with pytest.raises(SystemExit, match=r"error: task\.scores\.random: the bundle has an estimator of this name"):
        run(tmp_path, "task=judge", f"task.bundle={bundle}", f"task.scores={{random: {tmp_path / 'mine.npy'}}}")


def test_only_an_lds_is_exported(tmp_path):
    """Claim: another benchmark is refused before anything is trained."""
    with pytest.raises(SystemExit, match=r"error: task=export: .*choose this benchmark"):
        run(tmp_path, "task=export", f"task.output={tmp_path / 'bundle'}", "benchmark=agreement", *FINAL)
    assert not (tmp_path / "bundle").exists()
