"""What tests compose is what Hydra composes."""

import shutil

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from tests.experiments.tasks.compositions import CONF, composed, forgotten_files


def composed_in(folder, *overrides, hydra=True):
    """Hydra's composition of the configs in a folder, with its own settings."""
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config", [*overrides], return_hydra_config=hydra)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("seed=5", "benchmark=targeted", "benchmark.queries.validation.n=24", "~benchmark.queries.generated", "scale=small"),
        ("estimator=dtrak", "feature=loss", "+optimizer.lrr=1", "++data.levels=16", "estimator.damping=[1e-3,1e-1]", "tracker=csv"),
        ("estimator=lissa", "product@estimator.product=hessian", "~tracker", "++estimator.product={_target_: x.Y, a: 1}"),
        ("experiment=digits_1000", "task=plan", "data.root=nowhere", "model.block_out_channels=[8,8]", "hydra.job.chdir=true"),
        ("experiment=kfac/fig4", "scale=paper", "estimator=trak", "+queries@benchmark.queries.more=validation"),
    ],
    ids=str,
)  # fmt: skip
def test_the_compositions_of_tests_are_hydra_s(overrides):
    """Claim: what tests get, partly from memory, is what Hydra composes: keys in order, values, interpolations, flags, and what
    Hydra says of the run."""
    with forgotten_files():
        expected, with_hydra = composed_in(CONF, *overrides, hydra=False), composed_in(CONF, *overrides)
    for _ in range(2):
        found = composed(*overrides)
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected)
        assert found._metadata.flags == expected._metadata.flags
        assert OmegaConf.to_yaml(composed_in(CONF, *overrides)) == OmegaConf.to_yaml(with_hydra)
        with pytest.raises(ConfigAttributeError):  # no new settings
            found.nonsense = 1
        found.estimator = None  # changes no later composition


@pytest.mark.parametrize(
    "wrong", ["nonsense=1", "~nonsense", "+seed=1", "estimator=nonsense", "seed@data=1", "+estimator=kfac", "~draws", "seed=1,2"]
)
def test_wrong_overrides_of_tests_are_refused_as_by_hydra(wrong):
    """Claim: what Hydra refuses is refused here with the same message, also a second time."""
    with forgotten_files(), pytest.raises(HydraException) as expected:
        composed_in(CONF, wrong)
    for _ in range(2):
        with pytest.raises(type(expected.value)) as found:
            composed(wrong)
        assert str(found.value) == str(expected.value)


def test_files_of_a_test_are_not_remembered(tmp_path):
    """Claim: a file that changes in a test's own folder changes what is composed."""
    shutil.copytree(CONF, tmp_path / "conf")
    before = composed_in(tmp_path / "conf").trainer.steps
    file = tmp_path / "conf" / "experiment" / "digits_1000.yaml"
    file.write_text(f"# @package _global_\ntrainer:\n  steps: {before + 1}\n")
    assert composed_in(tmp_path / "conf", "experiment=digits_1000").trainer.steps == before + 1
    file.write_text(f"# @package _global_\ntrainer:\n  steps: {before + 2}\n")
    assert composed_in(tmp_path / "conf", "experiment=digits_1000").trainer.steps == before + 2
