"""Sweeps with jobs that fail."""

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from experiments.report.report import read_rows, write_rows
from experiments.tasks import multirun
from tests.experiments.report.test_report import ROW
from tests.experiments.tasks.test_cli import FINAL, run

SWEEP = [
    *FINAL,
    "task=attribute",
    "estimator=tracin",
    "estimator.draws.n=2",
    "queries.n=2",
    "estimator.checkpoints=choice(last,9,all)",
]


def swept_with(folder: Path, *arguments: str) -> str:
    """Run the sweep, and return the text with which it exits."""
    with pytest.raises(SystemExit) as ended:
        run(folder, "-m", *arguments, f"hydra.sweep.dir={folder / 'sweep'}")
    return str(ended.value.code)


@pytest.mark.parametrize("launcher", ["basic", "local"])
@pytest.mark.slow
def test_a_job_that_fails_does_not_end_the_others(tmp_path, capfd, launcher):
    """Claim: the other jobs run, their rows are joined, and the sweep ends with an error that names the job and its settings."""
    if launcher == "local":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    said = swept_with(tmp_path, *SWEEP, *([f"hydra/launcher={launcher}"] if launcher != "basic" else []))
    sentence = "estimator.checkpoints=9: training will record 4 checkpoints"
    first, second = said.splitlines()
    assert first == "error: 1 job of the sweep failed; all others are in the table"
    assert second.startswith(f"job 1 (estimator.checkpoints=9): {sentence}")
    assert (tmp_path / "sweep" / "1" / "error.txt").read_text().startswith(sentence)
    assert [row.settings["estimator.checkpoints"] for row in read_rows(tmp_path / "sweep")] == ["last", "all"]
    shown = capfd.readouterr()
    assert f"error in job 1: {sentence}" in shown.err
    assert "Traceback" not in shown.err


def test_an_earlier_sweep_in_the_same_folder(tmp_path):
    """Claim: errors and rows of an earlier sweep are not taken for those of the present one."""
    one, two = replace(ROW, seed=1), replace(ROW, seed=2)
    sweep = tmp_path / "sweep"
    write_rows(sweep, [one])
    write_rows(sweep / "0", [two])
    (sweep / "1").mkdir()
    (sweep / "1" / "error.txt").write_text("of yesterday\n")
    said = swept_with(tmp_path, *FINAL, "task=attribute", "seed=0", "estimator=tracin", "estimator.checkpoints=9")
    assert len(said.splitlines()) == 2
    assert said.splitlines()[1].startswith("job 0")
    assert not (sweep / "rows.jsonl").exists()
    assert not (sweep / "0" / "rows.jsonl").exists()
    assert not (sweep / "1" / "error.txt").exists()


def test_an_error_that_nobody_expected(tmp_path, monkeypatch, capsys):
    """Claim: such an error does not end the sweep either, and its traceback is shown and kept."""
    hydra = OmegaConf.create({"runtime": {"output_dir": str(tmp_path)}, "job": {"num": 3}})
    monkeypatch.setattr(multirun.HydraConfig, "get", lambda: hydra)
    try:
        raise RuntimeError("a defect")
    except RuntimeError as error:
        multirun.record_failure(error)
    kept = (tmp_path / "error.txt").read_text()
    assert kept.startswith("RuntimeError: a defect\nTraceback")
    assert capsys.readouterr().err == f"error in job 3: {kept}"


def test_a_launcher_that_fails(tmp_path, capsys):
    """Claim: if a launcher fails, the rows of the finished jobs are joined before its error ends the sweep."""

    def launch() -> None:
        multirun.MultirunReport().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
        write_rows(tmp_path / "0", [ROW])
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "error.txt").write_text("bad\n")
        raise RuntimeError("a job was killed")

    with pytest.raises(OSError, match=r"the launcher stopped.*a job was killed") as raised, multirun.finished_jobs_reported():
        launch()
    assert str(raised.value).splitlines()[1:] == ["job 1: bad"]
    assert read_rows(tmp_path) == [ROW]
    assert "all jobs" in capsys.readouterr().out
