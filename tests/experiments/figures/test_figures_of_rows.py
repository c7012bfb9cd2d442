"""Figures of measured numbers, read from their artists."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from experiments import figures
from experiments.metrics.estimate import Estimate
from experiments.report.row import Levels, Row, Subject
from tests.experiments.figures.drawn import overlaps

LABELS = ("95 % interval", "random level", "maximum")


def share_rows(**settings: Any) -> list[Row]:
    """Two estimators × two k × two kinds of queries."""
    shared: dict[str, Any] = {"benchmark": "targeted", "seed": 0, "levels": Levels(random=0.9, maximum=1.0)}
    return [
        Row(metric=f"distinct_share@{k}", queries=kind, subject=Subject(name, settings), about={"k": k},
            estimate=Estimate(value, value - 0.1, value + 0.05), **shared)
        for name, value in (("retrac", 0.8), ("tracin", 0.3)) for k in (10, 50) for kind in ("validation", "generated")
    ]  # fmt: skip


def test_distinct_share_shows_bars_intervals_and_levels():
    """A panel per kind of queries; in each a bar per estimator and k with its interval, and both levels for each k."""
    figure = figures.distinct_share(share_rows())
    assert [axes.get_title() for axes in figure.axes] == ["validation queries", "generated queries"]
    for axes in figure.axes:
        assert sorted(bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)) == [0.3, 0.3, 0.8, 0.8]
        lines = {label: [line for line in axes.lines if line.get_label() == label] for label in LABELS}
        assert sum(map(len, lines.values())) == len(axes.lines)
        spans = sorted(tuple(map(float, np.asarray(line.get_ydata()))) for line in lines["95 % interval"])
        assert spans == [pytest.approx((0.2, 0.35))] * 2 + [pytest.approx((0.7, 0.85))] * 2
        for label, level in (("random level", 0.9), ("maximum", 1.0)):
            assert {y for line in lines[label] for y in np.asarray(line.get_ydata())} == {level}
            assert {round(float(np.mean(np.asarray(line.get_xdata()))), 6) for line in lines[label]} == {0, 1}
        assert [label.get_text() for label in axes.get_xticklabels()] == ["top 10", "top 50"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "retrac",
        "tracin",
        *LABELS,
    ]


def test_swept_settings_get_bars_of_their_own():
    """Two values of a setting: no bar hides another, and the legend tells them apart."""
    rows = [row for n in (10, 50) for row in share_rows(**{"estimator.draws.n": n})]
    figure = figures.distinct_share(rows)
    places = [bar.get_x() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    assert len(places) == len({round(x, 6) for x in places}) == 8
    assert "tracin, draws.n=50" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_unknown_intervals_are_not_drawn():
    """A share without an interval is a bar alone; no rows are an empty figure, not an error."""
    figure = figures.distinct_share([replace(row, estimate=Estimate(row.estimate.value)) for row in share_rows()])
    assert all(line.get_label() != "95 % interval" for axes in figure.axes for line in axes.lines)
    FigureCanvasAgg(figures.distinct_share([])).draw()


def test_many_estimators_stay_on_a_page():
    """Claim: sixteen estimators on three kinds of queries: at most 16 inches wide, every bar with a look of its own."""
    names, kinds = [f"estimator_{i}" for i in range(16)], ("validation", "generated", "train")
    rows = [replace(row, subject=Subject(name), queries=kind) for row in share_rows()[::4] for name in names for kind in kinds]
    figure = figures.distinct_share(rows)
    assert figure.get_figwidth() <= 16
    looks = {(bar.get_facecolor(), bar.get_hatch()) for bar in figure.axes[0].patches}
    assert len(looks) == 16
    assert overlaps(figure) == []


def test_training_curve_shows_loss_rate_and_checkpoints():
    """Raw loss, its centered mean, the learning rate, short marks for recorded and full ones for used checkpoints."""
    loss = np.linspace(1, 0.1, 200)
    figure = figures.training_curve(range(1, 201), loss, np.full(200, 1e-3), checkpoints=[50, 100, 150], used=[100])
    left, right = figure.axes
    assert left.get_yscale() == "log"
    raw, smooth = (np.asarray(line.get_ydata()) for line in left.lines)
    assert (raw == loss).all()
    assert smooth[1:-2] == pytest.approx([loss[max(0, i - 2) : i + 2].mean() for i in range(1, 198)])
    assert np.asarray(right.lines[0].get_ydata()).tolist() == [1e-3] * 200
    marks = [[segment[0][0] for segment in lines.get_segments()] for lines in left.collections]  # pyright: ignore[reportAttributeAccessIssue]
    assert marks == [[50, 100, 150], [100]]
    FigureCanvasAgg(figure).draw()
    FigureCanvasAgg(figures.training_curve([1], [0.5], [1e-3])).draw()


def test_each_of_many_estimators_has_a_look_of_its_own():
    """Claim: no two curves share color, marker, filling and line, with more estimators than there are colors."""
    shared: dict[str, Any] = {"benchmark": "linearization", "queries": "validation", "estimate": Estimate(50.0, 40.0, 60.0)}
    rows = [
        Row(metric=f"spearman_with_{against}_%", subject=Subject(name), swept={"removed": size}, **shared)
        for name in ("exact", *"abcdefghijklm")
        for against in ("retraining", "exact")[: 1 + (name != "exact")]
        for size in (1, 16)
    ]
    curves = [bars.get_children()[0] for bars in figures.linearization(rows, "exact").axes[0].containers]
    assert len(curves) == 1 + 2 * 13
    looks = [
        (curve.get_color(), curve.get_marker(), curve.get_markerfacecolor(), curve.get_linestyle())
        for curve in curves
        if isinstance(curve, Line2D)
    ]
    assert len(set(looks)) == len(curves)
