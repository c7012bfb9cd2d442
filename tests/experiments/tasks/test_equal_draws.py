"""Compared estimators get as many draws of each side as the chosen one."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from attribution.images.draws import Even, Fixed, Uniform
from attribution.images.window import Window
from experiments.tasks.composition import estimators_of, evaluation_of
from experiments.tasks.settings import SettingError
from tests.experiments.tasks.test_configs import CONF, options

DRAWING = [name for name in options("estimator") if "draws" in (CONF / "estimator" / f"{name}.yaml").read_text()]


def estimators(*overrides: str, conf: Path = CONF) -> dict[str, Any]:
    """The estimators of a run with the configs in ``conf``."""
    with initialize_config_dir(str(conf), version_base="1.3"):
        config = compose("config", [*overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return estimators_of(config)


def compared(*names: str) -> str:
    return f"benchmark.compare=[{','.join(names)}]"


def numbers(found: dict[str, Any]) -> dict[str, tuple[int, int] | None]:
    return {name: estimator.draws_of({}) for name, estimator in found.items()}


@pytest.fixture(scope="module")
def main_job():
    """The estimators of the main job."""
    return estimators()


@pytest.mark.slow
def test_the_main_job_s_draws_are_equal(main_job):
    """Claim: by default every estimator that chooses its draws has the same number, of queries and of training images."""
    found = numbers(main_job)
    assert found.pop("raw_cos") is found.pop("random") is found.pop("standard_average") is None
    assert set(found) == {"kfac", "balanced_kfac", "window_kfac", "shared_kfac", "trak", "dtrak"}
    assert len(set(found.values())) == 1


@pytest.mark.slow
def test_all_estimators_have_the_same_defaults():
    """Claim: the default numbers of all estimators agree; only recorded draws and Journey-TRAK's steps are others."""
    found = {name: next(iter(estimators(f"estimator={name}", compared()).values())).draws_of({}) for name in ("kfac", "tracin")}
    query, train = found["kfac"]
    assert query == train
    assert found["tracin"] == (query, 1)
    names = ("lissa", "trak", "gas", "relative_if", "ekfac", "retrac", "guided", "journey_trak")
    of = numbers(estimators(compared(*names)))
    assert of.pop("journey_trak") == (50, query)
    assert of.pop("retrac") == of.pop("guided") == (query, 1)
    assert set(of.values()) == {(query, query)}


@pytest.mark.parametrize("chosen", ["kfac", "trak"])
@pytest.mark.slow
def test_compared_estimators_follow(chosen):
    """Claim: numbers of the command line hold for all that choose them; Journey-TRAK keeps its steps, recorded draws their one."""
    names = ("kfac", "trak", "dtrak", "gas", "lissa", "tracin", "journey_trak", "window_kfac", "random")
    found = estimators(f"estimator={chosen}", "estimator.draws.n=12", "estimator.draws.train=5", compared(*names))
    of = numbers(found)
    assert of.pop("random") is None
    assert of.pop("journey_trak") == (50, 5)
    assert of.pop("tracin") == (12, 1)
    assert set(of.values()) == {(12, 5)}
    assert found["window_kfac"].draws == Window(12, 100, 500, train=5)


def test_those_that_replay_training_pass_on_the_queries_number():
    """Claim: if the chosen estimator has recorded draws, the others have its number of query draws, on both sides."""
    found = numbers(estimators("estimator=tracin", "estimator.draws.n=12", compared("retrac", "kfac")))
    assert found == {"tracin": (12, 1), "retrac": (12, 1), "kfac": (12, 12)}


def test_without_draws_the_default_holds(main_job):
    """Claim: beside an estimator without draws, all have the common default."""
    found = numbers(estimators("estimator=random", compared("kfac", "trak", "raw_cos")))
    assert found["kfac"] == found["trak"] == numbers(main_job)["kfac"]


@pytest.mark.slow
def test_an_experiment_s_numbers_are_for_those_who_draw():
    """Claim: the draws of an experiment hold for compared estimators too, and one without draws runs beside them."""
    found = numbers(estimators("experiment=retrac/table1", compared("tracin", "raw_cos")))
    assert found == {"retrac": (50, 1), "tracin": (50, 1), "raw_cos": None}
    found = numbers(estimators("experiment=kfac/fig2a", compared("trak", "random")))
    assert found == {"kfac": (250, 250), "trak": (250, 250), "random": None}


@pytest.mark.slow
def test_an_estimator_s_own_numbers_stay(tmp_path):
    """Claim: numbers and schemes that an estimator's file sets stay, also if it extends another file; its rows show them."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    (conf / "estimator" / "few.yaml").write_text("defaults: [trak, _self_]\ndraws: {n: 3}\n")
    (conf / "estimator" / "fewer.yaml").write_text("defaults: [few, _self_]\ndraws: {train: 2}\n")
    changed = ["estimator.draws.n=12", "estimator.draws.train=5", "draws@estimator.draws=even"]
    found = estimators(*changed, compared("few", "fewer", "trak", "window_kfac"), conf=conf)
    assert numbers(found) == {"kfac": (12, 5), "few": (3, 5), "fewer": (3, 2), "trak": (12, 5), "window_kfac": (12, 5)}
    assert {type(found[name].draws) for name in ("kfac", "few", "fewer", "trak")} == {Even}
    assert isinstance(found["window_kfac"].draws, Window)


def test_lists_of_numbers():
    """Claim: those that take lists get them; others get the largest number of query draws, and the training draws of that pair."""
    found = estimators(
        "estimator.draws.n=[2,8,4]", "estimator.draws.train=[1,3,2]", compared("balanced_kfac", "window_kfac", "trak", "tracin")
    )
    assert found["kfac"].draws == Uniform([2, 8, 4], train=[1, 3, 2])
    assert found["balanced_kfac"].draws == found["kfac"].draws
    assert found["window_kfac"].draws == Window([2, 8, 4], train=[1, 3, 2])
    assert (found["trak"].draws, found["tracin"].draws) == (Uniform(8, train=3), Even(8))


@pytest.mark.parametrize(("name", "kind"), [("uniform", Uniform), ("even", Even), ("window", Window), ("fixed", Fixed)])
def test_every_scheme_is_chosen_by_its_name_alone(name, kind):
    """Claim: draws@estimator.draws=NAME needs no other setting, and the compared estimators follow."""
    found = estimators(f"draws@estimator.draws={name}", compared("trak", "tracin"))
    assert {type(estimator.draws) for estimator in found.values()} == {kind}


def test_a_window_s_ends_are_settings():
    """Claim: low and high reach the compared estimators that have a window."""
    settings = ["draws@estimator.draws=window", "estimator.draws.low=50", "estimator.draws.high=900"]
    found = estimators(*settings, compared("window_kfac", "trak"))
    assert {(estimator.draws.low, estimator.draws.high) for estimator in found.values()} == {(50, 900)}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["estimator=tracin", "estimator.draws.train=3"], "estimator.draws.train=3: every training image is taken at the draw"),
        (["estimator=retrac", "estimator.draws.train=3"], "estimator.draws.train=3: every training image is taken at the draw"),
        (["estimator=guided", "estimator.draws.train=3"], "estimator.draws.train=3: every training image is taken at the draw"),
        (["curvature.draws.train=3"], "curvature.draws.train=3: n is the number of draws of every training image"),
        (["estimator.draws.train=[3]"], "estimator.draws.train=[3]: give one number"),
        (["estimator=trak", "estimator.draws.n=[2,3]"], "estimator.draws.n=[2,3]"),
        (["estimator=window_kfac", "estimator.draws.high=50"], "estimator.draws.high=50: the window begins at low=100"),
    ],
)
def test_impossible_numbers_are_a_sentence(overrides, words):
    """Claim: the error names the setting and says what to do."""
    with pytest.raises(SettingError) as error:
        estimators(*overrides, compared("raw_cos"))
    assert words in str(error.value)


def groups_of(*overrides: str) -> dict[str, int]:
    """The number of groups of the draws of each estimator of an evaluation."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        found: dict[str, Any] = evaluation_of(config).estimators
    return {name: estimator.draws.replicates for name, estimator in found.items() if hasattr(estimator, "draws")}


def test_draws_are_in_groups_in_benchmarks_of_scores():
    """Claim: benchmarks cut draws into 4 groups by default, so that they share scores; not those that replay training."""
    assert groups_of(compared("trak", "grad_cos")) == {"kfac": 4, "trak": 4, "grad_cos": 1}
    assert groups_of(compared("trak"), "estimator.draws.replicates=1") == {"kfac": 1, "trak": 1}
    assert groups_of(compared("trak"), "estimator.draws.replicates=8") == {"kfac": 8, "trak": 8}
    assert groups_of(compared(), "estimator.draws.n=[16,64]") == {"kfac": 1}
    assert groups_of("benchmark=targeted", compared("trak")) == {"kfac": 4, "trak": 4}
    found = groups_of("benchmark=influential_timesteps", "estimator=tracin", compared(), "draws@estimator.draws=uniform")
    assert found == {"tracin": 1}
