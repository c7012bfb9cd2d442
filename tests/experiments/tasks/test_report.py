"""``task=report``: rows of finished runs, and the notes beside them."""

import os

import pytest
from hydra import compose, initialize_config_dir
from hydra.conf import ConfigSourceInfo
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, read_write

from experiments.report.report import write_rows
from experiments.report.row import Estimate, Row, Subject
from experiments.tasks.report import experiments, files_of, report, smallest, swept
from experiments.tasks.settings import SettingError
from tests.experiments.tasks.test_configs import CONF, options


@pytest.fixture
def config() -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", ["task=report"], return_hydra_config=True)
    with read_write(composed.hydra.runtime):
        composed.hydra.runtime.config_sources = [ConfigSourceInfo(path=str(CONF), schema="file", provider="main")]
    HydraConfig.instance().set_config(composed)
    return composed


def test_sweeps_and_scales_are_read_from_the_files_of_an_experiment(config):
    """Claim: an experiment that extends another one has its sweep and its scales."""
    assert swept(files_of("kfac/fig4")) == ["curvature.fisher", "curvature.sharing"]
    assert swept(files_of("dtrak/fig_eta")) == ["feature.eta", "estimator.draws.n"]
    assert swept(files_of("kfac/projection_dim")) == ["projection.k"]  # other values at each scale
    assert swept(files_of("kfac/fig2a_cifar10")) == []
    assert {name for name in experiments() if smallest(files_of(name)) != "digits"} == {"kfac/fig18"}  # it trains nothing


def row(value: float, experiment: str | None) -> Row:
    return Row(benchmark="lds", metric="lds_%", subject=Subject("kfac"), estimate=Estimate(value), data="digits", seed=0,
               experiment=experiment, scale=experiment and "digits")  # fmt: skip


def test_every_paper_experiment_has_a_title(config):
    """Claim: the page lists every experiment of a paper; its title is the first comment of its file."""
    titles = experiments()
    assert titles.keys() == {name for name in options("experiment") if "/" in name}
    assert all(titles.values())


def test_the_newest_rows_count(config, tmp_path, capsys):
    """Claim: rows in subfolders are found, those of no experiment are left out, and of equal ones the newest file's are shown."""
    for age, (name, value) in enumerate([("new", 20.0), ("old", 10.0)]):
        path = write_rows(tmp_path / "rows" / name, [row(value, "kfac/fig2a"), row(99.0, None)])
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "rows" / "notes.yaml").write_text("kfac/fig2a: K-FAC leads.\n")
    report(config, str(tmp_path / "rows"), str(tmp_path / "docs" / "page.md"))
    text = (tmp_path / "docs" / "page.md").read_text()
    assert "| kfac |  | lds % | 20 |" in text
    assert "99" not in text
    assert "K-FAC leads." in text
    assert "1 of" in capsys.readouterr().out


def test_bad_folders_and_notes_are_refused(config, tmp_path):
    """Claim: a folder that is not there, and a note for no experiment, are errors that name them."""
    with pytest.raises(SettingError, match=r"task\.rows=.*nowhere: no such folder"):
        report(config, str(tmp_path / "nowhere"), "page.md")
    (tmp_path / "notes.yaml").write_text("kfac/fig99: wrong\n")
    with pytest.raises(SettingError, match="kfac/fig99: no such experiment"):
        report(config, str(tmp_path), str(tmp_path / "page.md"))
