"""The page of a sweep."""

from dataclasses import replace
from pathlib import Path

from experiments.metrics.estimate import Estimate
from experiments.report.page.sweep import write_sweep_page
from experiments.report.row import Subject
from tests.experiments.report.page.made import ROW, attributions, page
from tests.experiments.report.page.test_page import HOSTILE, Checked


def job(folder: Path, *overrides: str, failed: bool = False) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {override}\n" for override in overrides))
    if not failed:
        page(folder, attributions())
    return folder


def test_a_sweep_has_a_table_and_links_to_its_jobs(tmp_path):
    """Claim: every job is listed with its settings and a link that leads to its page, or with its error; all rows are in tables."""
    jobs = [
        job(tmp_path / "0", "estimator=kfac", "seed=0"),
        job(tmp_path / "a b#1", "estimator=trak", "seed=0"),
        job(tmp_path / "2", "estimator=x", "seed=0", failed=True),
    ]
    rows = [ROW, replace(ROW, subject=Subject("trak"), estimate=Estimate(12.5))]
    rows = [replace(row, data="digits") for row in rows]
    path = write_sweep_page(tmp_path, jobs, rows, [], {jobs[2]: HOSTILE[0]}, "python run.py -m estimator=kfac,trak,x")
    assert path is not None
    assert path == tmp_path / "index.html"
    parsed = Checked(path.read_text())
    links = [str(link["href"]) for link in parsed.all("a") if str(link["href"]).endswith("index.html")]
    assert links == ["0/index.html", "a%20b%231/index.html"]
    assert "job estimator result 0 kfac page a b#1 trak page 2 x failed:" in parsed.text
    assert HOSTILE[0] in parsed.text
    assert "Sweep: lds on digits" in parsed.text
    assert "12.5" in parsed.text
    assert "python run.py -m estimator=kfac,trak,x" in parsed.text
    assert len(parsed.all("script")) == 1


def test_a_sweep_without_pages_has_none(tmp_path):
    """Claim: if no job has a page, the sweep has none."""
    assert write_sweep_page(tmp_path, [job(tmp_path / "0", failed=True)], [], [], {}, "python run.py -m") is None
    assert not (tmp_path / "index.html").exists()
