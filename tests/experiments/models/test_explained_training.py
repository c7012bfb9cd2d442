"""Models with several given checkpoints (``explained=checkpoints``) or a given record (``explained=recorded``)."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attribution.gradients.per_example import per_example_gradients
from attribution.images.draws import random_draws
from attribution.nodes import InMemory
from attribution.training import RecordError
from experiments.models.experiment import Experiment
from experiments.models.explained_training import FromCheckpoints, read_listing
from experiments.tasks.composition import experiment_of, named
from experiments.tasks.settings import SettingError, build
from tests.experiments.tasks.compositions import composed

SMALL = ("data.n_train=6", "data.n_validation=4", "queries.n=2", "execution.device=cpu", "hardware.accelerator=cpu")
SIZES = ("estimator.draws.n=2", "model.block_out_channels=[8,8]")
TRAINING = ("trainer.steps=6", "trainer.batch_size=3", "checkpoints.every=2", "optimizer.lr=1e-2")
STEPS, RATES = [2, 4, 6], [0.5, 0.25, 2.0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(files of the checkpoints of a training run here and its record, scores of an estimator under it)."""
    get, folder = InMemory(), tmp_path_factory.mktemp("checkpoints")
    record = get(experiment_of(composed(*SMALL, *SIZES, *TRAINING)).recorded)
    for step in STEPS:
        torch.save({"model": record.parameters(step)}, folder / f"{step}.pt")
    shutil.copytree(record.folder, folder / "record")

    def recorded_scores(*settings: str) -> np.ndarray:
        config = composed(*SMALL, *SIZES, *TRAINING, *settings)
        return scores(experiment_of(config), config, get)

    return folder, recorded_scores


def given(folder: Path, rates: list[float] | None = RATES) -> tuple[str, ...]:
    paths = ",".join(str(folder / f"{step}.pt") for step in STEPS)
    of_rates = () if rates is None else (f"explained.learning_rates={rates}",)
    return ("explained=checkpoints", f"explained.paths=[{paths}]", f"explained.steps={STEPS}", *of_rates, *SMALL, *SIZES)


def scores(experiment: Experiment, config: Any, get: Any = None) -> np.ndarray:
    queries = build(config, "queries").node(experiment)
    return build(config, "estimator").score(experiment.trained, experiment.train, queries, get or InMemory()).values


def scored(*settings: str) -> np.ndarray:
    config = composed(*settings)
    return scores(experiment_of(config), config)


@pytest.mark.slow
def test_scores_are_those_of_the_recorded_training(files):
    """Claim: checkpoints in files have the scores of the same ones in a record, the last as the final model; weights sum them."""
    folder, recorded_scores = files
    settings = ("estimator=tracincp", "estimator.checkpoints=all")
    np.testing.assert_array_equal(scored(*given(folder), *settings), recorded_scores(*settings))
    single = [scored(*given(folder), settings[0], f"estimator.checkpoints=[{step}]") for step in STEPS]
    weighted = scored(*given(folder), *settings, "estimator.weighted=true")
    np.testing.assert_allclose(weighted, np.tensordot(RATES, single, 1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(scored(*given(folder), "estimator=grad_dot"), single[-1])


@pytest.mark.slow
def test_tracin_takes_draws_of_its_own(files):
    """Claim: scores are Σ_k η_k ⟨∇ℓ(q), ∇ℓ_t(z)⟩ with a draw of z for every checkpoint, a function of (seed, step, id)."""
    folder, _ = files
    config = composed(*given(folder), "estimator=tracin", "estimator.checkpoints=all")
    experiment, get = experiment_of(config), InMemory()
    found = scores(experiment, config, get)
    trained, estimator = experiment.trained, build(config, "estimator")
    train, queries = get(experiment.train), get(build(config, "queries").node(experiment))
    of_queries = estimator.draws.draw("query", queries.ids(), trained.process.T)
    expected = np.zeros(found.shape)
    for step, rate in zip(STEPS, RATES, strict=True):
        network = trained.network(get, step)
        draws = random_draws(0, f"training at {step}", train.ids()[:, None], torch.zeros(1, dtype=torch.int64), trained.process.T)
        q = per_example_gradients(trained.objective, network, queries.x0(), of_queries)
        z = per_example_gradients(trained.objective, network, train.x0(), draws)
        expected += rate * sum((q[layer].flatten(1).double() @ z[layer].flatten(1).double().T).numpy() for layer in q)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max())
    notes = trained.notes(replayed=True)
    assert any("drawn anew" in note for note in notes)
    assert len(trained.notes(replayed=False)) == 1  # that scores are relative to the images


@pytest.mark.slow
def test_without_learning_rates_every_checkpoint_has_weight_1(files):
    """Claim: and the notes of the model say so; weights by learning rates are then refused."""
    folder, _ = files
    settings = ("estimator=tracin", "estimator.checkpoints=all")
    ones = scored(*given(folder, [1.0, 1.0, 1.0]), *settings)
    np.testing.assert_array_equal(scored(*given(folder, None), *settings), ones)
    trained = experiment_of(composed(*given(folder, None))).trained
    assert any("weight 1" in note for note in trained.notes(replayed=True))
    config = composed(*given(folder, None), "estimator=tracincp", "estimator.checkpoints=all", "estimator.weighted=true")
    with pytest.raises(ValueError, match="without learning rates") as refused:
        scores(experiment_of(config), config)
    assert str(named(config, refused.value)).startswith("estimator.weighted=true: ")


def test_the_identity_is_content_steps_and_learning_rates(files, tmp_path):
    """Claim: copies elsewhere and a listing of them are the same model; other rates or another order make another one."""
    folder, _ = files
    for step in STEPS:
        (tmp_path / f"copy{step}.pt").write_bytes((folder / f"{step}.pt").read_bytes())
    rows = [{"path": f"copy{s}.pt", "step": s, "learning_rate": r} for s, r in zip(STEPS, RATES, strict=True)]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    lines = ["path,step,learning_rate", *(f"{row['path']},{row['step']},{row['learning_rate']}" for row in rows)]
    (tmp_path / "list.csv").write_text("\n".join(lines))

    def fingerprint(*settings: str) -> str:
        return experiment_of(composed(*settings, *SMALL, *SIZES)).trained.fingerprint

    first = fingerprint(*given(folder))
    for name in ("list.json", "list.csv"):
        assert fingerprint("explained=checkpoints", f"explained.listing={tmp_path / name}") == first
    assert fingerprint(*given(folder, None)) != first
    assert fingerprint(*given(folder), f"explained.steps={[1, 4, 6]}") != first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("explained.steps=[2,4]",), "explained.steps=[2,4]: give one step for each of the 3 checkpoints"),
        (("explained.steps=[2,6,4]",), "must ascend"),
        (("explained.learning_rates=[1]",), "give one for each of the 3 checkpoints"),
        (("explained.learning_rates=[0,0,0]",), "are all 0"),
        (("explained.paths=null",), "list the files of the checkpoints"),
        (("explained.listing=nowhere.csv",), "explained.paths="),
        (("explained.paths=null", "explained.steps=null", "explained.learning_rates=null", "explained.listing=nowhere.csv"),
         "explained.listing=nowhere.csv: must be a CSV or JSON file"),
        (("explained.paths=[a.pt,b.pt,c.pt]",), "explained.paths[0]=a.pt: is not a file"),
        (("model.block_out_channels=[8,16]",), "choose the network it is of"),
        (("estimator=tracin",), "estimator.checkpoints=4: training recorded 3 checkpoints (2, 4, 6)"),
        (("estimator=tracin", "estimator.checkpoints=[3]"), "no checkpoint at step [3]"),
        (("estimator=grad_dot", "+estimator.weighted=true"), "leave it false for the final model"),
    ],
)  # fmt: skip
def test_wrong_settings(files, settings, message):
    """Claim: what does not fit together is refused by the setting's name before anything is computed."""
    config = composed(*given(files[0]), *settings)

    def make_node() -> None:
        experiment = experiment_of(config)
        queries = build(config, "queries").node(experiment)
        build(config, "estimator").scores(experiment.trained, experiment.train, queries)

    with pytest.raises((ValueError, SettingError)) as refused:
        make_node()
    assert message in str(named(config, refused.value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "path;step\na.pt;1", "no column path in its first line"),
        ("a.csv", "path, steps\na.pt, 1", "no column step in its first line"),
        ("a.csv", "path, step\na.pt, 1.5", "'1.5'"),
        ("a.json", '[{"path": "a.pt", "step": 1.5}]', "'1.5'"),
        ("a.json", '[{"path": "a.pt"}]', "'step'"),
    ],
)
def test_wrong_listings(tmp_path, name, text, message):
    """Claim: what a listing lacks is named; steps are not rounded."""
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="must be a CSV or JSON file with path, step and") as refused:
        FromCheckpoints(listing=str(tmp_path / name))
    assert message in str(refused.value)


def test_spaces_in_listings(tmp_path):
    """Claim: a space after a comma belongs to no name."""
    (tmp_path / "a.csv").write_text("path, step\na.pt, 1\n")
    assert read_listing(None, str(tmp_path / "a.csv")) == ([str(tmp_path / "a.pt")], [1], None)


def test_what_needs_visits_is_refused(files):
    """Claim: benchmarks of recorded timesteps and losses are refused; those of checkpoints are not."""
    experiment = experiment_of(composed(*given(files[0])))
    with pytest.raises(RecordError, match="has checkpoints only"):
        _ = experiment.recorded
    assert experiment.checkpointed is experiment.trained


@pytest.mark.parametrize("estimator", ["retrac", "guided"])
@pytest.mark.slow
def test_a_given_record_has_the_scores_of_its_training(files, estimator, tmp_path):
    """Claim: visits, learning rates and checkpoints are those of the record, wherever its folder lies."""
    folder, recorded_scores = files
    settings = (f"estimator={estimator}", "estimator.checkpoints=2")
    shutil.copytree(folder / "record", tmp_path / "copy")
    fingerprints = set()
    for path in (folder / "record", tmp_path / "copy"):
        config = composed(*SMALL, *SIZES, "explained=recorded", f"explained.path={path}", *settings)
        experiment = experiment_of(config)
        fingerprints.add(experiment.trained.fingerprint)
    assert len(fingerprints) == 1
    assert experiment.recorded is experiment.trained
    np.testing.assert_array_equal(scores(experiment, config), recorded_scores(*settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("explained.path=nowhere",), "explained.path=nowhere: is no folder with a record"),
        (("diffusion=edm",), "has timesteps, but the process is EDM"),
        (("data.n_train=7",), "has no visit of 1 of the 7 training images"),
        (("model.block_out_channels=[8,16]",), "choose the network it is of"),
    ],
)
def test_records_that_do_not_fit(files, settings, message):
    """Claim: a record of another process, other images or another network is refused before anything is computed."""
    config = composed(*SMALL, *SIZES, "explained=recorded", f"explained.path={files[0] / 'record'}", *settings)
    with pytest.raises(ValueError, match=r"path|network|record") as refused:
        _ = experiment_of(config).trained
    assert message in str(named(config, refused.value))
