"""The page of a run as a file: what is in it, what cannot break it, how large it is."""

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.metrics.estimate import Estimate
from experiments.report.attributions import Attributions
from experiments.report.page import page as page_module
from experiments.report.page.meanings import LEVELS, metric_meaning
from experiments.report.page.page import write_page
from experiments.report.row import Effort, Levels, Subject
from experiments.report.tables import REFERENCES
from tests.experiments.report.page.made import CONFIG, PROVENANCE, ROW, attributions, data_of, images, page, report

VOID = {"meta", "img", "input", "br", "hr", "link"}
HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "\"'><img src=x onerror=alert(1)>",
    "&lt;&amp; {{ 7 * 7 }}",
    "\u2028写真",
]


class Checked(HTMLParser):
    """A parser that refuses tags that do not match, and collects tags, attributes and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_page_says_what_was_run_and_what_came_out(tmp_path):
    """Claim: the page parses and has command, settings, versions, numbers with intervals, levels and their sentences."""
    rows = [
        replace(ROW, subject=Subject("kfac", {"estimator.damping": 1e-7}, effort=Effort(64, 32, 12288.0))),
        replace(ROW, subject=Subject("trak"), estimate=Estimate(20.0, 15.5, 25.0)),
        replace(ROW, minus=Subject("trak"), estimate=Estimate(30.0, 20.0, 40.0), levels=Levels()),
    ]
    made = report(tmp_path, attributions(), rows=rows)
    made.table("lds_of_queries", [{"query": 1}])
    made.warn("the model has not learned its data")
    path = write_page(made, CONFIG, PROVENANCE)
    assert path is not None
    parsed = Checked(path.read_text())
    for expected in (
        "lds on digits", "python run.py", "damping: 1.0e-07", "torch 2.11.0", "abc123, with changes", "50 [40, 60]",
        "20 [15.5, 25]", "kfac − trak 30 [20, 40]", "64 / 32", "12,288", "random level 0.000", "noise ceiling 75",
        "the model has not learned its data", "95 % confidence, over queries", LEVELS["ceiling"], metric_meaning("lds_%"),
    ):  # fmt: skip
        assert expected is not None
        assert expected in parsed.text
    links = {link["href"] for link in parsed.all("a")}
    assert {"rows.jsonl", "lds_of_queries.csv", "lds.png"} <= links
    assert all("alt" in image for image in parsed.all("img"))
    assert parsed.all("html")[0]["lang"] == "en"


def test_a_page_needs_nothing_from_elsewhere(tmp_path):
    """Claim: no address of the network, no file for images or scripts; the page's policy allows its own script only."""
    text = page(tmp_path, attributions()).read_text()
    parsed = Checked(text)
    assert not re.search(r"(?:https?:|//)[a-z0-9.-]+\.[a-z]{2,}", re.sub(r"base64,[^\"]*", "", text))
    assert all(image["src"].startswith("data:image/png;base64,") for image in parsed.all("img"))
    assert not parsed.all("link")
    assert all("src" not in script for script in parsed.all("script"))
    [policy] = [meta["content"] for meta in parsed.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[^']+';", policy)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_text_breaks_the_page(tmp_path, hostile):
    """Claim: names of images, estimators, kinds of queries, settings and warnings are shown as they are, whatever they contain."""
    queries, train = images(2, names=[hostile, "a"], seed=1), images(20, names=[f"{hostile}{i}" for i in range(20)])
    scores = {hostile: np.random.default_rng(0).random((2, 20)), "b": np.random.default_rng(1).random((2, 20))}
    row = replace(ROW, subject=Subject(hostile, {"estimator.x": hostile}), queries=hostile, metric=hostile)
    made = report(tmp_path, Attributions(hostile, queries, train, scores), rows=[row, replace(row, subject=Subject("b"))])
    made.command = hostile
    made.warn(hostile)
    path = write_page(made, f"a: {hostile}", PROVENANCE)
    assert path is not None
    harmless = Checked(page(tmp_path / "harmless", attributions(2, 20)).read_text())
    parsed = Checked(path.read_text(encoding="utf-8"))
    assert len(parsed.all("script")) == len(harmless.all("script")) == 2
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    data = data_of(path)
    assert (
        data["kinds"][0]["name"] == data["kinds"][0]["queries"][0]["name"] == data["kinds"][0]["estimators"][0]["label"] == hostile
    )
    assert {image["name"] for image in data["train"]} <= set(train.names.tolist())  # pyright: ignore
    assert parsed.text.count(" ".join(hostile.split())) >= 5


def test_the_page_of_a_main_job_is_small(tmp_path):
    """Claim: 64 queries of two kinds, seven estimators, 256 images and its usual figures are under 5 MB."""
    labels = ["kfac", "balanced_kfac", "window_kfac", "trak", "dtrak", "raw_cos", "random"]
    made = report(tmp_path, *(attributions(64, 256, labels, kind) for kind in ("validation", "generated")))
    for number, kilobytes in enumerate((410, 410, 140, 45)):
        noise = np.random.default_rng(number).integers(0, 256, 1024 * kilobytes // 3 * 3, dtype=np.uint8)
        path = tmp_path / f"figure{number}.png"
        Image.fromarray(noise[: 3 * 100 * (len(noise) // 300)].reshape(-1, 100, 3)).save(path)
        made.figures.append(path)
    path = write_page(made, CONFIG * 100, PROVENANCE)
    assert path is not None
    assert path.stat().st_size < 3_000_000
    assert [len(kind["queries"]) for kind in data_of(path)["kinds"]] == [64, 64]


def test_figures_beyond_the_limit_are_shown_from_their_files(tmp_path, monkeypatch):
    """Claim: a page with many large figures refers to the files beside it."""
    made = report(tmp_path)
    monkeypatch.setattr(page_module, "FIGURE_BYTES", made.figures[0].stat().st_size)
    figure = Figure((2, 1))
    figure.subplots().plot([2, 1])
    made.figure("a b#1", figure)
    path = write_page(made, CONFIG, PROVENANCE)
    assert path is not None
    first, second = (image["src"] for image in Checked(path.read_text()).all("img"))
    assert first.startswith("data:")
    assert second == "a%20b%231.png"


def test_a_run_without_scores_or_figures(tmp_path):
    """Claim: without scores the page has tables and figures; without figures there is no page."""
    text = page(tmp_path / "figure").read_text()
    parsed = Checked(text)
    assert "50 [40, 60]" in parsed.text
    assert 'id="explorer"' not in text
    assert "Issues" not in parsed.text
    made = report(tmp_path / "none")
    made.figures.clear()
    assert write_page(made, CONFIG, PROVENANCE) is None
    assert not (tmp_path / "none" / "index.html").exists()


def test_figures_in_other_formats(tmp_path):
    """Claim: report.formats adds vector files with the command in them, linked from the page; PNG is always there."""
    made = report(tmp_path, formats=["svg", "pdf"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lds.pdf", "lds.png", "lds.svg"]
    assert (tmp_path / "lds.pdf").read_bytes().startswith(b"%PDF")
    assert b"python run.py" in (tmp_path / "lds.pdf").read_bytes()
    assert "python run.py" in (tmp_path / "lds.svg").read_text()
    path = write_page(made, CONFIG, PROVENANCE)
    assert path is not None
    assert {"lds.png", "lds.svg", "lds.pdf"} <= {link["href"] for link in Checked(path.read_text()).all("a")}


def test_published_numbers_stand_beside_ours(tmp_path):
    """Claim: the page has a column of published numbers where there is one, and none elsewhere."""
    text = Checked(
        page(tmp_path, rows=[replace(ROW, published=42.5, source="a paper, table 1"), replace(ROW, metric="other")]).read_text()
    )
    assert "lds % published" in text.text
    assert "other published" not in text.text
    assert "42.5" in text.text
    assert "a paper, table 1" in text.text


def test_titles_name_benchmarks_and_not_their_further_tables():
    """Claim: "counterfactual images" is no benchmark of its own beside "counterfactual"."""
    rows = [replace(ROW, benchmark=name) for name in ("counterfactual", "counterfactual images", "lds", "lds_timesteps_shape")]
    assert page_module.title_of(rows, "digits") == "counterfactual, lds on digits"
    assert page_module.title_of([], "digits") == "figures on digits"


def test_every_level_has_a_sentence():
    """Claim: no reference level of a table is without its meaning."""
    assert LEVELS.keys() == REFERENCES.keys()


def test_metrics_of_the_benchmarks_have_a_sentence():
    """Claim: metrics that the documented benchmarks report are explained on the page."""
    names = ["lds_%", "lds_%_held_out_damping", "distinct_share@10", "split_half_spearman", "precision@50", "auroc", "spearman"]
    names += [
        "outlier_share@5",
        "delta_measurement@10%",
        "image_l2@2%",
        "rank_rise_%",
        "training_loss_of_last_epoch",
        "times_faster",
    ]
    assert [name for name in names if not metric_meaning(name)] == []
    assert metric_meaning("unheard_of") is None


def test_places_on_axes_are_those_of_the_numbers(tmp_path: Path):
    """Claim: dots, intervals and levels lie where their numbers are between the ends of the column."""
    text = page(tmp_path, rows=[ROW, replace(ROW, subject=Subject("trak"), estimate=Estimate(-25.0))]).read_text()
    strips = re.findall(r'<span class="strip">.*?</span>', html.unescape(text))
    assert len(strips) == 2  # the axis reaches from -25 to 75
    assert re.findall(r"left:([\d.]+)%", strips[0]) == ["25.0", "100.0", "65.0", "75.0"]  # random, ceiling, low, value
    assert re.findall(r"right:([\d.]+)%", strips[0]) == ["15.0"]
    assert re.findall(r"left:([\d.]+)%", strips[1])[-1] == "0.0"
