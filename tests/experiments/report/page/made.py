"""Made-up runs with a page, small or of the size of the main job."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from attribution.images import Images
from experiments.metrics.estimate import Estimate
from experiments.report.attributions import Attributions
from experiments.report.page.page import write_page
from experiments.report.report import Report
from experiments.report.row import Levels, Row, Subject

PROVENANCE = {
    "versions": {"python": "3.12.1", "torch": "2.11.0", "diffusion-attribution": "0.1.0"},
    "git": {"revision": "abc123", "dirty": True},
}
CONFIG = "seed: 0\nestimator:\n  damping: 1.0e-07\n"
ROW = Row(
    benchmark="lds",
    metric="lds_%",
    queries="validation",
    subject=Subject("kfac"),
    estimate=Estimate(50.0, 40.0, 60.0, kind="confidence, over queries"),
    levels=Levels(random=0.0, ceiling=75.0),
)


def images(
    count: int, shape: Sequence[int] = (1, 4, 4), seed: int = 0, names: Sequence[str] | None = None, first: int = 0
) -> Images:
    """Images of random pixels, with the ids ``first``, ``first`` + 3, ..."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    text = None if names is None else np.array(names)
    return Images(pixels, first + 3 * np.arange(count), np.arange(count) % 3, names=text)


def attributions(
    queries: int = 5, N: int = 30, labels: Sequence[str] = ("kfac", "trak"), kind: str = "validation", seed: int = 0
) -> Attributions:
    """Random scores of random images."""
    rng = np.random.default_rng(seed)
    scores = {label: rng.standard_normal((queries, N)).astype(np.float32) for label in labels}
    return Attributions(kind, images(queries, seed=1, first=1000), images(N, seed=2), scores)


def report(folder: Path, *sets: Attributions, rows: Sequence[Row] = (ROW,), formats: Sequence[str] = ("png",)) -> Report:
    """A report with one figure."""
    made = Report(folder, "digits", 0, command="python run.py", formats=formats)
    made.add(rows)
    figure = Figure((2, 1))
    figure.subplots().plot([1, 2])
    made.figure("lds", figure)
    for one in sets:
        made.attribute(one)
    return made


def page(folder: Path, *sets: Attributions, **options: Any) -> Path:
    """The page of such a report."""
    path = write_page(report(folder, *sets, **options), CONFIG, PROVENANCE)
    assert path is not None
    assert path == folder / "index.html"
    return path


def data_of(path: Path) -> dict[str, Any]:
    """What the page lets its reader explore."""
    [text] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    return json.loads(text)
