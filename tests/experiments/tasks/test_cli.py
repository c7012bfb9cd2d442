"""The command line as its user meets it."""

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import run as program
from attribution.estimators.scores import Scores
from tests import forked
from tests.experiments.report.page.made import data_of
from tests.experiments.tasks.compositions import composed_once

ROOT = Path(__file__).parents[3]
FINAL = [
    "data.n_train=40",
    "data.n_validation=24",
    "trainer.steps=20",
    "trainer.batch_size=10",
    "model.block_out_channels=[8,8]",
    "checkpoints.every=5",
    "hardware.interval=5",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
    "samples.n=4",
]
"""For estimators of the final model."""
REPLAY = ["estimator.checkpoints=2", "estimator.draws.n=4"]
"""For those that replay training."""
TINY = [*FINAL, "estimator=retrac", *REPLAY]
SMALL_BENCHMARK = [
    "benchmark=targeted",
    "benchmark.n=4",
    "benchmark.k=[5,10]",
    "benchmark.queries.validation.n=8",
    "benchmark.queries.generated.n=6",
    "benchmark.rows=2",
]
MAIN = [
    *FINAL,
    "benchmark.subsets.count=6",
    "benchmark.repeats=3",
    "benchmark.draws.n=4",
    "benchmark.queries.validation.n=5",
    "benchmark.queries.generated.n=4",
    "benchmark.rows=2",
    "estimator.draws.n=2",
    "curvature.draws.n=2",
]
"""The main job, small."""


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """``python run.py`` with its store in ``folder``, as the shell runs it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, str(ROOT / "run.py"), *arguments, f"store.root={folder / 'store'}"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


def run(folder: Path, *arguments: str, store: Path | None = None) -> str:
    """The same within this process, which saves the imports and a composition; what it printed. Another ``store`` may be given."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), composed_once():
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["run.py", *arguments, f"store.root={store or folder / 'store'}"])
        program.main()
    return printed.getvalue()


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def written(store: Path) -> dict[Path, int]:
    """When each file of the store was written."""
    return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_the_main_job_and_again(tmp_path):
    """Claim: python run.py trains, retrains, scores and judges, in two processes, and a second run computes nothing.

    The table has every estimator with an interval, exact retraining and the noise ceiling; there are bars and proponents.
    """
    folder = tmp_path / "it's the (1)"
    first = process(tmp_path, *MAIN, "workers=2", f'hydra.run.dir="{folder}"')
    assert first.returncode == 0, first.stdout + first.stderr
    assert "noise ceiling" in first.stdout
    assert "GPU available" not in first.stdout + first.stderr  # Lightning is silent
    assert str(folder / "rows.jsonl") in first.stdout
    found = rows(folder)
    names = ["kfac", "balanced_kfac", "window_kfac", "shared_kfac", "standard_average", "trak", "dtrak", "raw_cos", "random"]
    for kind in ("validation", "generated"):
        of_kind = [row for row in found if row["queries"] == kind]
        by_name = {row["estimator"]: row for row in of_kind if row["metric"] == "lds_%"}
        assert by_name.keys() == {*names, "exact retraining", "noise ceiling", *(f"kfac − {name}" for name in names[1:])}
        for row in of_kind:
            most = 200 if "−" in row["estimator"] else 100
            assert -most <= row["low"] <= row["high"] <= most
            assert row["command"].startswith("python run.py")
        assert 0 <= by_name["kfac"]["ceiling"] <= 100
        tuned = ["balanced_kfac", "window_kfac", "shared_kfac", "trak", "dtrak"]
        drawing = [by_name[name] for name in ("kfac", *tuned)]
        count = {"validation": 5, "generated": 4}[kind]
        assert {(row["draws_query"], row["draws_train"], row["passes"]) for row in drawing} == {(2, 2, 2 * count + 2 * 40)}
        held_out = {row["estimator"] for row in of_kind if row["metric"] == "lds_%_held_out_damping"}
        assert held_out == {"kfac", *tuned, *(f"kfac − {name}" for name in tuned)}
        with (folder / "lds_of_queries.csv").open() as file:
            lines = list(csv.DictReader(file))
            assert {line["passes"] for line in lines if line["estimator"] == "kfac"} == {"90", "88"}
            own = [float(line["lds_%"]) for line in lines if (line["queries"], line["estimator"]) == (kind, "kfac")]
        assert len(own) == {"validation": 5, "generated": 4}[kind]
        assert np.mean(own) == pytest.approx(by_name["kfac"]["value"])
    for name in ("lds", "proponents_validation", "proponents_generated", "training", "samples"):
        assert (folder / f"{name}.png").stat().st_size > 5000
    assert first.stdout.splitlines()[-1] == str(folder / "index.html")
    assert {path.name for path in (folder / "images").iterdir()} == {"queries_validation", "queries_generated"}
    log = (folder / "worker-1.log").read_text()
    assert "rror" not in log, log
    assert len(list((tmp_path / "store" / "Retrained").iterdir())) == 6 + 3
    before = written(tmp_path / "store")
    run(tmp_path, *MAIN, f"hydra.run.dir={tmp_path / 'second'}")
    assert written(tmp_path / "store") == before
    assert [{**row, "command": None} for row in rows(tmp_path / "second")] == [{**row, "command": None} for row in found]


@pytest.mark.slow
def test_a_worker_started_by_hand(tmp_path):
    """Claim: task=work leaves in the store all that the run with its settings needs, and nothing else anywhere."""
    run(tmp_path, *MAIN, "benchmark.compare=[]", "task=work", "hydra.output_subdir=null", f"hydra.run.dir={tmp_path / 'work'}")
    assert not list(tmp_path.rglob("*.png")) + list(tmp_path.rglob("rows.jsonl"))
    before = written(tmp_path / "store")
    run(tmp_path, *MAIN, "benchmark.compare=[]", f"hydra.run.dir={tmp_path / 'out'}")
    assert written(tmp_path / "store") == before


@pytest.mark.slow
def test_another_target_and_weights_instead_of_removal(tmp_path):
    """Claim: the target need not be the estimator's measurement, and halves may be weighed down, for as many steps as the model."""
    settings = ["+measurement@benchmark.measurement=square_norm", "benchmark.subsets.weight=0.5", "benchmark.compare=[retraining]"]
    run(tmp_path, *MAIN, *settings, f"hydra.run.dir={tmp_path / 'out'}")
    assert {row["estimator"] for row in rows(tmp_path / "out")} >= {"kfac", "retraining", "exact retraining"}
    for kind, name, expected in (("Retrained", "steps", 20), ("Measured", "class", "SquareNorm")):
        described = [json.loads(path.read_text())["description"] for path in (tmp_path / "store" / kind).glob("*/node.json")]
        assert {of["recipe" if kind == "Retrained" else "measure"][name] for of in described} == {expected}


def test_targeted_attribution(tmp_path):
    """Claim: distinct shares of both estimators and both kinds of queries, their difference, and figures."""
    printed = run(tmp_path, *TINY, *SMALL_BENCHMARK, f"hydra.run.dir={tmp_path / 'out'}")
    assert "distinct share@5" in printed
    found = rows(tmp_path / "out")
    for row in found:
        assert {"benchmark", "estimator", "metric", "value", "low", "high", "data", "seed", "swept", "command"} <= row.keys()
    assert {row["estimator"] for row in found} == {"retrac", "tracin", "retrac − tracin"}
    assert {row["queries"] for row in found} == {"validation", "generated"}
    for name in ("proponents_validation", "proponents_generated", "distinct_share"):
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_a_sweep_trains_once(tmp_path):
    """Claim: -m over estimators and draws is one training and four results, joined in one table and one file."""
    sweep = ["estimator=tracin,retrac", "estimator.draws.n=2,4", "benchmark.compare=[]", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    printed = run(tmp_path, "-m", *FINAL, "estimator.checkpoints=2", *SMALL_BENCHMARK, *sweep)
    assert len([p for p in (tmp_path / "store" / "TrainedModel").iterdir() if p.is_dir()]) == 1
    assert printed.splitlines()[-1] == str(tmp_path / "sweep" / "index.html")
    page = (tmp_path / "sweep" / "index.html").read_text()
    assert " estimator.checkpoints=2 " in page  # as it was typed
    assert all(f'href="{job}/index.html"' in page and (tmp_path / "sweep" / str(job) / "index.html").exists() for job in range(4))
    joined = rows(tmp_path / "sweep")
    assert {(row["estimator"], row["swept"]["estimator.draws.n"]) for row in joined} == {
        ("tracin", 2), ("tracin", 4), ("retrac", 2), ("retrac", 4),
    }  # fmt: skip


@pytest.mark.slow
def test_what_attribute_leaves(tmp_path):
    """Claim: scores with their reader, a CSV of proponents and opponents for each query, self-influence, reliability."""
    out = tmp_path / "out"
    run(tmp_path, *TINY, "task=attribute", "task.self_influence=true", "task.top=7", "queries.n=3", f"hydra.run.dir={out}")
    scores = Scores.load(out / "scores")
    assert scores.values.shape == (3, 40)
    for row, query in enumerate(scores.query_index):
        lines = list(csv.DictReader((out / "scores" / f"query-{query}.csv").read_text().splitlines()))
        best = [int(line["position"]) for line in lines if line["side"] == "proponent"]
        assert best == np.argsort(-scores.values[row], kind="stable")[:7].tolist()
        assert [int(line["index"]) for line in lines[:7]] == scores.train_index[best].tolist()
        worst = [float(line["score"]) for line in lines if line["side"] == "opponent"]
        np.testing.assert_allclose(worst, np.sort(scores.values[row])[:7], rtol=1e-6)
    assert len((out / "self_influence.csv").read_text().splitlines()) == 41
    [kind] = data_of(out / "index.html")["kinds"]
    assert [query["id"] for query in kind["queries"]] == scores.query_index.tolist()
    assert len(list((out / "images" / f"queries_{kind['name']}").iterdir())) == 3
    (reliability,) = rows(out)
    assert reliability["metric"] == "split_half_spearman"
    assert -1 <= reliability["value"] <= 1


@pytest.mark.parametrize("queries", [["queries=generated"], ["queries=train", "queries.index=ID"], ["queries=folder"]])
@pytest.mark.slow
def test_queries_of_every_kind(tmp_path, queries):
    """Claim: generated and training images and a folder of the user's own can be explained."""
    from PIL import Image

    from experiments.datasets import Digits

    data = Digits(channels=1, size=8, flips=False, n_train=40, n_validation=24)
    arguments = [q.replace("ID", f"[{data.load().train.index[3]}]") for q in queries]
    if queries == ["queries=folder"]:
        (tmp_path / "mine").mkdir()
        Image.fromarray((data.load().train.pixels[3, 0] * 15).astype(np.uint8)).save(tmp_path / "mine" / "a.png")
        arguments.append(f"queries.path={tmp_path / 'mine'}")
    if queries == ["queries=generated"]:
        arguments.append("queries.n=1")
    out = tmp_path / "out"
    run(tmp_path, *TINY, "task=attribute", *arguments, f"hydra.run.dir={out}")
    assert Scores.load(out / "scores").values.shape == (1, 40)
    (query,), train_listed = (
        list(csv.DictReader((out / "scores" / f"{name}.csv").read_text().splitlines())) for name in ("queries", "train")
    )
    origin = {"queries=generated": "generated/", "queries=train": "train/", "queries=folder": "a.png"}[queries[0]]
    assert query["name"] == (origin if origin == "a.png" else origin + query["index"])
    assert [line["name"] for line in train_listed] == [f"train/{i}" for i in data.load().train.index]


@pytest.mark.slow
def test_images_of_one_s_own(tmp_path, capsys):
    """Claim: a folder of images of many kinds and sizes is trained on and explained, and every file says which image is meant."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(24):
        suffix = ["png", "JPG", "webp", "bmp", "gif", "tif"][number % 6]
        path = tmp_path / "mine" / ["cats", "dogs"][number % 2] / f"img{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = rng.integers(10, 30, 2).tolist()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    (tmp_path / "mine" / "cats" / "._img0.png").write_bytes(bytes([0, 5, 22, 7]) + b"Mac OS X")
    (tmp_path / "mine" / "cats" / "photo.heic").write_bytes(b"?")
    data = ["data=folder", f"data.root={tmp_path / 'mine'}", "data.n_train=null", "data.n_validation=4"]
    with pytest.raises(SystemExit, match=r"24 of 24 images .* not 12×8 pixels .*, with data.resize=none"):
        run(tmp_path, *TINY, *data, "data.size=[8,12]", "task=attribute")
    capsys.readouterr()
    out = tmp_path / "out"
    settings = ["data.size=[8,12]", "data.resize=area", "data.crop=center", "queries=folder", f"queries.path={tmp_path / 'mine'}"]
    run(tmp_path, *TINY, *data, *settings, "task=attribute", "task.top=3", f"hydra.run.dir={out}")
    assert "not read: cats/photo.heic\n" in capsys.readouterr().err
    scores = Scores.load(out / "scores")
    assert scores.values.shape == (24, 20)
    queries, train = (
        list(csv.DictReader((out / "scores" / f"{name}.csv").read_text().splitlines())) for name in ("queries", "train")
    )
    names = [line["name"].partition(".")[0] for line in queries]
    assert names == [f"cats/img{i}" for i in range(0, 24, 2)] + [f"dogs/img{i}" for i in range(1, 24, 2)]
    assert {(line["name"].split("/")[0], line["label"]) for line in train} == {("cats", "0"), ("dogs", "1")}
    best, *_ = csv.DictReader((out / "scores" / "query-5.csv").read_text().splitlines())
    assert best["query_name"].startswith("cats/img10.")
    assert best["name"] == train[int(scores.values[5].argmax())]["name"]


@pytest.mark.parametrize(
    ("arguments", "variants"),
    [
        (["estimator=kfac"], []),
        (["estimator=kfac", "estimator.damping=[1e-8,1e-3]"], ["kfac damping=1e-08", "kfac damping=0.001"]),
        pytest.param(["estimator=kfac", "estimator.draws.n=[1,2]"], ["kfac draws.n=1", "kfac draws.n=2"], marks=pytest.mark.slow),
        (["estimator=retrac", "estimator.draws.bins=2"], []),
        pytest.param(["estimator=trak"], [], marks=pytest.mark.slow),
    ],
)
def test_attribute_leaves_every_variant(tmp_path, arguments, variants):
    """Claim: task=attribute leaves the scores of every kind of estimator, and a CSV for each query and swept value."""
    out = tmp_path / "out"
    settings = [*FINAL, *REPLAY] if "estimator=retrac" in arguments else FINAL
    run(tmp_path, *settings, "task=attribute", "queries.n=2", *arguments, f"hydra.run.dir={out}")
    assert Scores.load(out / "scores").values.shape[-2:] == (2, 40)
    for folder in [out / "scores" / name for name in variants] or [out / "scores"]:
        assert len(list(folder.glob("query-*.csv"))) == 2
    assert (out / "proponents.png").exists()


@pytest.mark.slow
def test_a_scheme_of_draws_is_for_those_who_have_one(tmp_path):
    """Claim: draws@estimator.draws reaches the compared estimators that draw, and the others run beside them as they are."""
    settings = ["estimator=trak", "draws@estimator.draws=even", "estimator.draws.n=3", "benchmark.compare=[dtrak,raw_cos]"]
    run(tmp_path, *FINAL, *SMALL_BENCHMARK, *settings, f"hydra.run.dir={tmp_path / 'out'}")
    assert {"trak", "dtrak", "raw_cos"} <= {row["estimator"] for row in rows(tmp_path / "out")}
    described = [json.loads(path.read_text())["description"] for path in (tmp_path / "store" / "KernelScores").glob("*/node.json")]
    assert {of["estimator"]["draws"]["class"] for of in described} == {"Even"}


@pytest.mark.slow
def test_lists_of_draws_are_for_those_who_take_them(tmp_path):
    """Claim: a list of numbers of draws, and bins, go to who answers for them; others get the largest number, and no bins."""
    out, compared = tmp_path / "out", "benchmark.compare=[tracin,trak]"
    settings = ["estimator.draws.n=[1,2]", "estimator.draws.bins=2", compared]
    run(tmp_path, *FINAL, *SMALL_BENCHMARK, "estimator=kfac", *settings, f"hydra.run.dir={out}")
    names = {(row["estimator"], (row.get("swept") or {}).get("estimator.draws.n")) for row in rows(out)}
    assert {("kfac", 1), ("kfac", 2)} <= names
    assert {"tracin", "trak"} <= {name for name, _ in names}
    assert {(row["estimator"], row["draws_query"]) for row in rows(out) if row["estimator"] in ("tracin", "trak")} == {
        ("tracin", 2), ("trak", 2),
    }  # fmt: skip
    assert {row["estimator"] for row in rows(out) if (row.get("swept") or {}).get("query_bin") == "1-500"} >= {"kfac", "tracin"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["estimator=retrack"], "retrac"),
        (["trainer.stepz=3"], "stepz"),
        (["benchmark.compare=[nobody]"], "nobody"),
        (["benchmark.k=[41]"], "benchmark.k"),
        (["benchmark.n=9"], "benchmark.n=9"),
        (["estimator.draws.n=1001"], "draws.n"),
        (["estimator.checkpoints=[7]"], "no checkpoint at step [7]"),
        (["data=cifar2", "model=unet_small", "data.root=nowhere"], "nowhere"),
        (["optimizer.lr=1e30", "trainer.clip=null", "optimizer=sgd"], "lower the learning rate"),
        (["task=store", "task.action=explain", "task.node=abc"], "abc"),
        (["estimator.checkpoints=[]"], "estimator.checkpoints"),
        (["estimator.checkpoints=2.5"], "estimator.checkpoints"),
        (["trainer.clip=-1"], "trainer.clip"),
        (["trainer.lr_schedule=foo"], "trainer.lr_schedule"),
        (["trainer.steps=20.5"], "trainer.steps"),
        (["hardware.interval=0"], "hardware.interval"),
        (["execution.device=gpu"], "execution.device"),
        (["threads=0"], "threads"),
        (["workers=0"], "workers"),
        (["optimizer.lr=0"], "learning rate is 0"),
        (["estimator=kfac", "estimator.damping=abc"], "estimator.damping=abc"),
        (["estimator=kfac", "estimator.damping=[1e-8,abc]"], "estimator.damping"),
        (["estimator=kfac", "estimator.damping=true"], "estimator.damping"),
        (["estimator=lissa", "estimator.query_batch=2.5"], "estimator.query_batch"),
        (["task=plan", "task.tflops=-1"], "task.tflops"),
        (["estimator=kfac", "estimator.draws.n=4.5"], "draws.n=4.5"),
        (["estimator=kfac", "estimator.draws.n=[]"], "draws.n=[]"),
        (["estimator.draws.bins=2000"], "draws.bins=2000"),
        (["estimator=kfac", "curvature.draws.n=[2,3]"], "curvature.draws"),
        (["estimator=kfac", "compression=svd", "compression.rank=2.5"], "compression.rank"),
        (["estimator=balanced_kfac", "estimator.balance.by=[a,b]"], "estimator.balance.by"),
        (["estimator=kfac", "measurement=trajectory", "diffusion.sampler.eta=1"], "use generated queries"),
        (["estimator=trak", "estimator.models=0"], "estimator.models"),
    ],
)
def test_errors_are_a_sentence(tmp_path, monkeypatch, capfd, arguments, said):
    """Claim: bad input ends with an exit code and a message that names the setting, not with a traceback."""
    settings = [] if "data=cifar2" in arguments else FINAL if arguments[0].startswith("estimator=") else TINY
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, *settings, *SMALL_BENCHMARK, *arguments, f"hydra.run.dir={tmp_path / 'out'}")
    printed = capfd.readouterr()
    assert ended.value.code not in (0, None)
    assert said in f"{ended.value.code}{printed.err}{printed.out}"
    assert "Traceback" not in printed.err


@pytest.mark.slow
def test_an_error_s_exit_code(tmp_path):
    """Claim: the shell sees 1, and stderr says why."""
    done = process(tmp_path, *TINY, *SMALL_BENCHMARK[:1], "benchmark.k=[41]")
    assert done.returncode == 1
    assert "benchmark.k" in done.stderr


@pytest.mark.slow
def test_two_processes_train_with_an_average(tmp_path, monkeypatch):
    """Claim: ``hardware.devices=2`` gives the model of one process to rounding, also its average, and samples from it."""
    forked.fork_spawned(monkeypatch)
    parameters = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        settings = (*FINAL, "model.dropout=0", "trainer.ema=0.9", "trainer.precision=64-true", "task=train", "workers=1")
        words = (*settings, f"hardware.devices={devices}", f"hydra.run.dir={folder / 'out'}")
        run(folder, *words)
        assert (folder / "out" / "samples.png").exists()
        (average,) = (folder / "store").glob("TrainedModel/*/average.safetensors")
        parameters.append(load_file(average))
    one, two = parameters
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_plan_and_store(tmp_path):
    """Claim: the dry run says what is missing and computes nothing; afterwards nothing is missing and the store explains itself."""
    settings = [*TINY, *SMALL_BENCHMARK]
    before = run(tmp_path, *settings, "task=plan")
    assert "│ training " in before
    assert "0.1 TFLOP/s" in run(tmp_path, *settings, "task=plan", "task.tflops=0.1")
    assert not (tmp_path / "store").exists()
    run(tmp_path, *settings)
    assert "│ training " not in run(tmp_path, *settings, "task=plan")
    listing = run(tmp_path, "task=store")
    assert "TrainedModel" in listing
    assert "TrajectoryScores" in listing
    fingerprint = next(p.name for p in (tmp_path / "store" / "TrainedModel").iterdir())
    assert "AdamW" in run(tmp_path, "task=store", "task.action=explain", f"task.node={fingerprint[:8]}")
    run(tmp_path, "task=store", "task.action=prune", "task.node_class=Samples")
    assert list((tmp_path / "store" / "Samples").iterdir())
    run(tmp_path, "task=store", "task.action=prune", "task.node_class=Samples", "task.apply=true")
    assert not list((tmp_path / "store" / "Samples").iterdir())


@pytest.mark.slow
def test_a_conditional_model_has_a_plan(tmp_path):
    """Claim: the passes that a plan counts and times get a condition."""
    settings = [*TINY, *SMALL_BENCHMARK, "condition=labels", "model=unet_digits_classes"]
    assert "│ generated images, in shards " in run(tmp_path, *settings, "task=plan")


@pytest.mark.slow
def test_one_run_of_an_experiment_that_is_a_sweep(tmp_path):
    """Claim: without -m the first line says what the experiment sweeps, unless the command sets it."""
    plan = ["experiment=dtrak/table_lds", "scale=digits", "task=plan"]
    assert run(tmp_path, *plan).startswith("experiment=dtrak/table_lds sweeps estimator.draws.n,")
    assert " sweeps " not in run(tmp_path, *plan, "estimator.draws.n=10")
    assert " sweeps " not in run(tmp_path, "task=plan")


@pytest.mark.slow
def test_a_sweep_over_estimators_compares_them_once(tmp_path):
    """Claim: an estimator that runs beside each of several others stands in the joint rows once, under its own name."""
    sweep = tmp_path / "sweep"
    run(tmp_path, "-m", *FINAL, *REPLAY, *SMALL_BENCHMARK, "estimator=tracin,retrac", f"hydra.sweep.dir={sweep}")
    shares = [r for r in rows(sweep) if r["metric"] == "distinct_share@5" and r["queries"] == "validation"]
    assert sorted(r["estimator"] for r in shares) == ["retrac", "retrac − tracin", "tracin"]


@pytest.mark.slow
def test_double_precision_and_trajectories(tmp_path):
    """Claim: a model trained in float64 can be sampled, and on request every state of the sampling is stored."""
    out = tmp_path / "out"
    run(tmp_path, *TINY, "task=train", "trainer.precision=64-true", "samples.trajectory=true", f"hydra.run.dir={out}")
    (states,) = (tmp_path / "store" / "SampleTrajectories").glob("*/states.npy")
    (samples,) = (tmp_path / "store" / "Samples").glob("*/pixels.npy")
    assert np.load(states).shape == (4, 51, 1, 8, 8)
    np.testing.assert_allclose(np.load(states)[:, -1], np.load(samples), atol=1e-5)


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    """Claim: tracker=wandb needs no network and leaves a run to upload."""
    out = tmp_path / "out"
    run(tmp_path, *TINY, "task=train", "tracker=wandb", f"hydra.run.dir={out}")
    assert list((out / "wandb").glob("offline-run-*/*.wandb"))


def in_a_process(begun: Event, folder: Path, *arguments: str) -> None:
    """``run`` in a process of its own, which says when it begins."""
    torch.set_num_threads(1)
    begun.set()
    with contextlib.redirect_stderr(io.StringIO()):
        run(folder, *arguments)


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_the_same(tmp_path, monkeypatch):
    """Claim: SIGKILL again and again, then the same command: bit-equal scores, parameters and rows."""
    settings = [
        *TINY,
        *SMALL_BENCHMARK,
        "trainer.steps=120",
        "execution.shard=8",
        "execution.query_shard=2",
        "estimator.draws.n=50",
    ]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    run(tmp_path / "whole", *settings, f"hydra.run.dir={tmp_path / 'whole' / 'out'}")
    processes, kills = forked.context(monkeypatch), 0
    for patience in np.linspace(0.5, 4, 8):
        begun = processes.Event()
        started = processes.Process(target=in_a_process, args=(begun, tmp_path / "killed", *settings))
        started.start()
        assert begun.wait(60)
        started.join(float(patience))
        if not started.is_alive():
            break
        started.kill()
        started.join()
        kills += 1
    assert kills >= 2, "the machine was too fast for this test to kill anything"
    run(tmp_path / "killed", *settings, f"hydra.run.dir={tmp_path / 'killed' / 'out'}")
    for kind in ("TrainedModel", "TrajectoryScores", "Samples"):
        whole, killed = (sorted((tmp_path / name / "store" / kind).iterdir()) for name in ("whole", "killed"))
        assert [p.name for p in whole] == [p.name for p in killed]
        for a, b in zip(whole, killed, strict=True):
            for path in a.rglob("*"):
                if path.is_file() and path.name not in ("node.json", "manifest.json"):
                    assert path.read_bytes() == (b / path.relative_to(a)).read_bytes(), path
    a, b = rows(tmp_path / "whole" / "out"), rows(tmp_path / "killed" / "out")
    assert [(r["estimator"], r["metric"], r["value"]) for r in a] == [(r["estimator"], r["metric"], r["value"]) for r in b]


@pytest.mark.slow
def test_two_at_once_compute_everything_once(tmp_path, monkeypatch):
    """Claim: two identical runs started together share the work: no node is made twice, and both report the same."""
    processes = forked.context(monkeypatch)
    begun, settings = processes.Event(), [*TINY, *SMALL_BENCHMARK]
    arguments = [(begun, tmp_path, *settings, f"hydra.run.dir={tmp_path / name}") for name in ("a", "b")]
    both = [processes.Process(target=in_a_process, args=given) for given in arguments]
    for one in both:
        one.start()
    for one in both:
        one.join(300)
        assert one.exitcode == 0
    strip = re.compile(r'"command": "[^"]*"')
    assert strip.sub("", (tmp_path / "a" / "rows.jsonl").read_text()) == strip.sub("", (tmp_path / "b" / "rows.jsonl").read_text())
    assert not list((tmp_path / "store").rglob("*.part"))
