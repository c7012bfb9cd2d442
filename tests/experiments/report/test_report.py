"""Rows, tables and what a multirun puts together."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from experiments.report.report import Report, command_line, merge, read_rows
from experiments.report.row import Effort, Estimate, Levels, Row, Subject
from experiments.report.tables import number, print_rows

ROW = Row(benchmark="targeted", subject=Subject("retrac"), metric="share@10", estimate=Estimate(0.5, 0.4, 0.625))
FLAT = {
    "benchmark": "targeted",
    "estimator": "retrac",
    "metric": "share@10",
    "value": 0.5,
    "low": 0.4,
    "high": 0.625,
    "level": 0.95,
    "data": "digits",
    "seed": 0,
}
RUN = {"data": "digits", "seed": 0}


def shown(report: Report, width: int = 140) -> str:
    """What ``close`` prints."""
    console = Console(file=io.StringIO(), width=width)
    report.close(console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def line_of(text: str, *words: str) -> str:
    """The one line of ``text`` that has all the words."""
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    assert len(lines) == 1, (words, text)
    return lines[0]


def test_rows_survive_the_file(tmp_path):
    """What is added is what is read back; NumPy numbers are numbers, and what is not finite is null in strict JSON."""
    report = Report(tmp_path, **RUN, command="python run.py")
    other = Estimate(np.float32(0.25), np.nan, np.inf)
    report.add([ROW, replace(ROW, estimate=other, about={"k": np.int64(10), "ids": np.arange(2)})])
    shown(report)
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "rows.jsonl").read_text().splitlines())
    assert first == {**FLAT, "command": "python run.py"}
    unknown = {name: value for name, value in FLAT.items() if name != "level"} | {"low": None, "high": None}
    assert second == {**unknown, "value": 0.25, "k": 10, "ids": [0, 1], "command": "python run.py"}
    read = [row.to_dict() for row in read_rows(tmp_path)]
    assert read == [row.to_dict() for row in read_rows(tmp_path / "rows.jsonl")]
    assert read == [first, second] == [row.to_dict() for row in report.rows]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        replace(ROW, levels=Levels(0.0, 0.5, 1.0), queries="generated", about={"n": 3, "quartiles": [0.1, 0.2, 0.3]}),
        replace(ROW, subject=Subject("kfac", {"estimator.damping": 1e-7}, "abc"), swept={"measured_t": 5}),
        replace(
            ROW,
            subject=Subject("kfac", {"estimator.damping": 1e-7}, "abc"),
            minus=Subject("trak", {"estimator.damping": 1e-7}, "def"),
            swept={"benchmark.steps": 4},
        ),
    ],
)
def test_a_row_is_restored_from_its_fields(row):
    """Claim: from_dict inverts to_dict, without reading names; a difference states both sides in a field of its own."""
    row = replace(row, data="digits", seed=0, command="python run.py")
    flat = json.loads(json.dumps(row.to_dict()))
    assert Row.from_dict(flat) == row
    if row.minus is not None:
        assert flat["estimator"] == "kfac damping=1e-07 − trak damping=1e-07"
        assert flat["scores"] == ["abc", "def"]
        assert flat["swept"] == {"benchmark.steps": 4}
        assert flat["difference"]["minus"] == {"name": "trak", "settings": {"estimator.damping": 1e-7}, "scores": "def"}
    elif row.subject.settings:
        assert flat["swept"] == {"measured_t": 5, "estimator.damping": 1e-7}


def test_incomplete_rows_are_refused(tmp_path):
    """A row without a required field, with text for a number, or with what JSON cannot hold is an error that says which."""
    with pytest.raises(ValueError, match=r"lacks low, seed:"):
        Row.from_dict({name: value for name, value in FLAT.items() if name not in ("low", "seed")})
    with pytest.raises(ValueError, match=r"value='high' of metric share@10 must be a number"):
        Row.from_dict({**FLAT, "value": "high"})
    with pytest.raises(ValueError, match=r"has low, scores, which are fields of a row"):
        replace(ROW, about={"low": 1, "scores": "abc", "k": 3})
    report = Report(tmp_path, **RUN)
    with pytest.raises(TypeError, match="object"):
        report.add([ROW, replace(ROW, about={"extra": object()})])
    assert report.rows == []


def test_the_run_identifies_rows_and_never_overwrites_their_settings(tmp_path):
    """Data, seed and swept settings of the run reach every row; a row's own settings win."""
    report = Report(tmp_path, "cifar2", 7, swept={"estimator.draws.n": 3, "a": 1, "b": 2})
    report.add([replace(ROW, subject=Subject("kfac", {"estimator.draws.n": 5}), swept={"a": 9}), ROW])
    assert [(row.data, row.seed) for row in report.rows] == [("cifar2", 7)] * 2
    assert report.rows[0].settings == {"estimator.draws.n": 5, "a": 9, "b": 2}
    assert report.rows[1].settings == {"estimator.draws.n": 3, "a": 1, "b": 2}


def test_command_hides_the_folder_of_the_program(monkeypatch, tmp_path):
    """The command is what a user would type, quoted for a shell."""
    monkeypatch.setattr(sys, "argv", ["/some/where/run.py", "-m", "estimator=tracin,retrac", "benchmark.compare=[a, b]"])
    assert command_line() == "python run.py -m estimator=tracin,retrac 'benchmark.compare=[a, b]'"
    report = Report(tmp_path, **RUN)
    report.add([ROW])
    assert report.rows[0].command == command_line()


def test_a_table_without_rows_is_an_empty_file(tmp_path):
    """Claim: a CSV has a header and its rows, and is empty if there are none."""
    report = Report(tmp_path, **RUN)
    assert report.table("some", [{"a": 1, "b": 2}]).read_text() == "a,b\n1,2\n"
    assert report.table("none", []).read_text() == ""


def test_table_has_every_number_with_its_interval_levels_and_command(tmp_path):
    """One table per kind of queries: estimators by metrics, interval in brackets, levels below, the command last."""
    report = Report(tmp_path, **RUN, command="python run.py x=[1]")
    for queries, value in (("validation", 0.111), ("generated", 0.222)):
        report.add(
            replace(
                ROW,
                queries=queries,
                subject=Subject(name),
                estimate=Estimate(value, 0.4, 0.625),
                levels=Levels(random=0.9, maximum=1.0),
            )
            for name in ("retrac", "tracin")
        )
        report.add([replace(ROW, queries=queries, metric="other", estimate=Estimate(0.333))])
    text = shown(report)
    first, second = text.split("targeted on digits, generated queries")
    assert "targeted on digits, validation queries" in first
    assert "0.111 [0.400, 0.625]" in line_of(first, "tracin")
    assert "0.333 │" in line_of(first, "retrac", "0.111 [0.400, 0.625]")
    assert "0.222 [0.400, 0.625]" in line_of(second, "tracin")
    assert "0.900" in line_of(second, "random level")
    assert "1.000" in line_of(second, "maximum")
    assert line_of(text, "made by") == "made by: python run.py x=[1]"
    assert str(tmp_path / "rows.jsonl") in text


def test_no_number_hides_another(tmp_path):
    """Swept settings become columns; rows that nothing tells apart get lines of their own; equal rows are shown once."""
    report = Report(tmp_path, **RUN)
    swept = {"estimator": "retrac"}
    report.add(
        replace(ROW, subject=Subject("retrac", {"estimator.draws.n": n}), estimate=Estimate(n / 1000), swept=swept)
        for n in (10, 50)
    )
    text = shown(report)
    assert "0.010" in line_of(text, "retrac", "│ 10 ")
    assert "0.050" in line_of(text, "retrac", "│ 50 ")
    report = Report(tmp_path, **RUN)
    report.add([ROW, replace(ROW, estimate=Estimate(0.75)), ROW])
    text = shown(report)
    assert line_of(text, "0.500")
    assert line_of(text, "0.750")


def test_narrow_terminals_keep_the_numbers(tmp_path):
    """In 60 columns words and numbers are whole, on lines of their own; in 30 they are broken, but nothing is cut off."""
    report = Report(tmp_path, **RUN)
    report.add(replace(ROW, metric=f"distinct_share@{k}", estimate=Estimate(k / 1000, 0.4, 0.625)) for k in (10, 50, 100))
    texts = []
    for width in (60, 30):
        console = Console(file=io.StringIO(), width=width, force_terminal=True)
        report.close(console)
        texts.append(console.file.getvalue())  # pyright: ignore[reportAttributeAccessIssue]
        assert "…" not in texts[-1]
    assert all(word in texts[0] for word in ("@10", "@50", "@100", "0.010", "0.050", "0.100"))


@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "–"), (0, "0.000"), (-0.1234, "-0.123"), (4287.4, "4287"), (2.3e-5, "2.30e-05"), (1e9, "1.00e+09")]
)
def test_numbers_are_short_and_never_vanish(value, text):
    """Small numbers do not become 0.000."""
    assert number(value) == text


def test_figures_are_saved_with_their_command(tmp_path):
    """A PNG by name, its path among what is printed, the command in its metadata."""
    report = Report(tmp_path, **RUN, command="python run.py seed=3")
    figure = Figure((1, 1))
    figure.subplots().plot([1, 2])
    path = report.figure("curve", figure)
    assert path == tmp_path / "curve.png"
    assert Image.open(path).text["Comment"] == "python run.py seed=3"  # pyright: ignore[reportAttributeAccessIssue]
    assert str(path) in shown(report)


def test_damaged_rows_are_an_error_with_their_place(tmp_path):
    """A truncated line is an error that names file and line."""
    report = Report(tmp_path, **RUN)
    report.add([ROW])
    shown(report)
    path = tmp_path / "rows.jsonl"
    path.write_text(path.read_text() + '{"benchmark": "targ')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is not a row"):
        read_rows(path)


APP = """
import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from experiments.report.report import Report
from experiments.report.row import Estimate, Row, Subject

@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(cfg):
    report = Report(HydraConfig.get().runtime.output_dir, "digits", 0)
    report.add([Row(benchmark="targeted", subject=Subject(cfg.estimator), metric="n", estimate=Estimate(cfg.n * 1.5, 0, 9))])
    report.close()

main()
"""


@pytest.mark.slow
def test_multirun_ends_with_one_table_of_all_jobs(tmp_path):
    """Through Hydra itself: the callback collects the rows of all jobs, in order, with the settings that the sweep varied."""
    (tmp_path / "app.py").write_text(APP)
    overrides = [
        "+estimator=retrac,tracin",
        "+n=1,2,3,4,5,6",
        "+fixed=3",
        "hydra.sweep.dir=sweep",
        "+hydra.callbacks.report._target_=experiments.tasks.multirun.MultirunReport",
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "app.py", "-m", *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = merge(tmp_path / "sweep")
    assert [(row.estimator, row.estimate.value) for row in rows] == [
        (e, 1.5 * n) for e in ("retrac", "tracin") for n in range(1, 7)
    ]
    assert [row.settings for row in rows[:2]] == [{"n": 1}, {"n": 2}]
    assert read_rows(tmp_path / "sweep") == rows
    assert "raised" not in done.stderr
    table = done.stdout.split("all jobs")[1]
    assert "9.000" in line_of(table, "tracin", "│ 6 ")
    assert "1.500" in line_of(table, "retrac", "│ 1 ")
    assert "+n=1,2,3,4,5,6" in line_of(table, "made by")


def test_merge_keeps_what_jobs_say_of_themselves(tmp_path):
    """A job's own ``swept`` wins over its overrides; jobs sort by number; the merged file is not merged again."""
    for job, value in ((2, "1e-7"), (10, "1e-5"), (1, "1e-9")):
        report = Report(tmp_path / str(job), **RUN)
        report.add([replace(ROW, estimate=Estimate(job), swept={"own": job})])
        shown(report)
        (tmp_path / str(job) / ".hydra").mkdir()
        (tmp_path / str(job) / ".hydra" / "overrides.yaml").write_text(f"- estimator.damping={value}\n- data=digits\n- own=9\n")
    Report(tmp_path, **RUN).close(Console(file=io.StringIO()))
    rows = merge(tmp_path)
    assert [row.estimate.value for row in rows] == [1, 2, 10]
    assert [row.settings for row in rows] == [
        {"estimator.damping": 1e-9, "own": 1},
        {"estimator.damping": 1e-7, "own": 2},
        {"estimator.damping": 1e-5, "own": 10},
    ]


def test_draws_and_passes_are_shown_and_survive_the_file(tmp_path):
    """Claim: an estimator's row shows draws by side and passes, also after reading; differences and references show none."""
    report = Report(tmp_path, **RUN)
    one, other = Subject("kfac", effort=Effort(64, 32, 12288.0)), Subject("tracin", effort=Effort(64, 1, 4096.0))
    report.add([replace(ROW, subject=one), replace(ROW, subject=other), replace(ROW, subject=one, minus=other)])
    report.add(
        [replace(ROW, subject=Subject("raw_cos", effort=Effort(passes=0.0))), replace(ROW, subject=Subject("exact retraining"))]
    )
    for text in (shown(report), shown_rows(read_rows(tmp_path))):
        assert "64 / 32" in line_of(text, "│ kfac  ", "12,288")
        assert "64 / 1 " in line_of(text, "│ tracin ", "4,096")
        assert "12,288" not in line_of(text, "kfac − tracin")
        assert " / " not in line_of(text, "│ raw_cos ")
        assert line_of(text, "exact retraining")
        assert "without those of the curvature" in text
    first, second, difference, pixels, retraining = (
        json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()
    )
    assert [first[name] for name in ("draws_query", "draws_train", "passes")] == [64, 32, 12288]
    assert second["draws_train"] == 1
    assert difference["difference"]["minus"]["effort"] == {"draws_query": 64, "draws_train": 1, "passes": 4096}
    assert "draws_query" not in pixels
    assert pixels["passes"] == 0
    assert not {"draws_query", "draws_train", "passes"} & (retraining.keys() | difference.keys())
    assert [row.subject.effort for row in read_rows(tmp_path)] == [one.effort, other.effort, one.effort, Effort(passes=0.0), None]


def shown_rows(rows: list[Row]) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_rows(rows, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_rows_without_effort_have_no_such_columns(tmp_path):
    """Claim: a table of rows that no scores stand behind has neither draws nor passes."""
    report = Report(tmp_path, **RUN, command="python run.py")
    report.add([ROW])
    header = line_of(shown(report), "estimator")
    assert not {"draws", "passes"} & set(header.replace("┃", " ").split())
