"""Figures of compressions, matrices and swept settings, read from their artists."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from experiments import figures
from experiments.metrics.estimate import Estimate
from experiments.report.row import Levels, Row, Subject
from tests.experiments.figures.drawn import overlaps, texts


def compressed(value: float, ratio: float, name: str, kind: str, metric: str = "pearson", **ends: float) -> Row:
    """A row of the compression benchmark."""
    estimate = Estimate(value, **{"low": value - 0.3 * (1 - value), "high": value + 0.3 * (1 - value), **ends})
    swept = {"compression": name, "kind": kind, "ratio": ratio}
    shared: dict[str, Any] = {"benchmark": "compression", "queries": "validation", "seed": 0}
    return Row(metric=metric, subject=Subject("kfac"), estimate=estimate, swept=swept, **shared)


def compressions(metric: str) -> list[Row]:
    quantized = [(16, 1 - 1e-8), (8, 0.9995), (4, 0.95)]
    rows = [compressed(value, 32 / bits, f"int{bits}", "quantized", metric) for bits, value in quantized]
    return rows + [compressed(1 - 0.5 / rank, 40 / rank, f"svd rank {rank}", "svd", metric) for rank in (1, 2, 4, 8, 16)]


def test_compression_shows_distance_to_one_by_ratio():
    """Claim: each kind is one curve of 1 - ρ over the ratio with intervals, better above worse; every point is named once."""
    figure = figures.compression([*compressions("pearson"), *compressions("spearman")])
    assert [axes.get_title() for axes in figure.axes] == [f"{m} correlation, validation queries" for m in ("Pearson", "Spearman")]
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        curves = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
        assert curves["quantized"] == pytest.approx(np.array([[2, 1e-8], [4, 5e-4], [8, 0.05]]), rel=1e-6)
        assert curves["svd"] == pytest.approx(np.array([[40 / r, 0.5 / r] for r in (16, 8, 4, 2, 1)]))
        ends = [sorted(np.asarray(line.get_ydata())) for line in axes.lines if str(line.get_label()).startswith("_")]
        assert len(ends) == len(compressions("pearson"))
        assert [0.7 * 0.05, 1.3 * 0.05] in [pytest.approx(pair) for pair in ends]
        bottom, top = axes.get_ylim()
        assert bottom > top
        assert sorted(text.get_text() for text in axes.texts) == sorted(row.swept["compression"] for row in compressions("pearson"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["quantized", "svd", "95 % interval"]
    assert overlaps(figure) == []


def test_ticks_of_correlations_are_true():
    """Claim: the tick at distance d says 1 - d, in figures or in powers of ten."""
    axes = figures.compression(compressions("pearson")).axes[0]
    assert len(axes.get_yticks()) >= 5
    for distance, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True):
        said = label.get_text()
        if "10^" in said:
            times, _, exponent = said.strip("$}").removeprefix("1-").partition("10^{")
            assert distance == pytest.approx(float(times.removesuffix(r"\cdot ") or 1) * 10.0 ** int(exponent))
        else:
            assert 1 - distance == pytest.approx(float(said), abs=1e-12)


def test_exact_and_negative_correlations_have_a_place():
    """Claim: ρ = 1 stands on top at a tick that says 1, ρ < 0 at the bottom; NaN is left out; nothing is out of sight."""
    rows = [
        compressed(1.0, 2, "int16", "quantized"),
        compressed(0.999, 4, "int8", "quantized"),
        compressed(-0.4, 40, "svd rank 1", "svd", low=-0.6, high=0.1),
        compressed(float("nan"), 20, "svd rank 2", "svd"),
    ]
    axes = figures.compression(rows).axes[0]
    heights = {str(line.get_label()): np.asarray(line.get_ydata(), dtype=float) for line in axes.lines}
    assert len(heights["svd"]) == 1
    ticks = {label.get_text(): tick for tick, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    assert ticks["1"] == heights["quantized"][0] == min(axes.get_yticks())
    bottom, top = axes.get_ylim()
    assert top < heights["quantized"].min()
    assert bottom > 1.6
    assert figures.compression([]).axes == []


def test_names_of_close_points_stand_beside_each_other():
    """Claim: where points crowd, names give way to each other."""
    rows = [compressed(0.99 - 0.001 * i, 8 * 1.04**i, f"svd rank {9 - i}", "svd") for i in range(8)]
    rows.append(compressed(0.5, 100, "svd rank 1", "svd"))
    assert overlaps(figures.compression(rows)) == []


def test_estimators_and_settings_have_curves_of_their_own():
    """Claim: two estimators at two dampings on two kinds of queries: four curves a kind of compression, in colors of their own."""
    rows = [
        replace(row, queries=queries, subject=Subject(name, {"estimator.damping": damping}))
        for row in compressions("pearson")
        for queries in ("validation", "generated")
        for name in ("kfac", "ekfac")
        for damping in (1e-8, 1e-4)
    ]
    figure = figures.compression(rows)
    assert len(figure.axes) == 2
    for axes in figure.axes:
        named = ("_", "95 % interval")
        curves = [line for line in axes.lines if not str(line.get_label()).startswith(named)]
        assert len(curves) == 8
        assert len({line.get_color() for line in curves}) == 4
    assert "ekfac, damping=0.0001, svd" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert overlaps(figure) == []


def test_matrix_by_hand():
    """Claim: numbers stand in their cells, rows downwards; blue and red are equally far from 0; NaN is a dash."""
    values = np.array([[1.0, -1.5, 0.0], [0.5, np.nan, 2.0]])
    rows, columns = ["1-500", "501-1000"], ["a", "b", "c"]
    figure = figures.matrix(values, rows, columns, "LDS", "LDS, %", row_name="query timesteps", column_name="training timesteps")
    axes, bar = figure.axes
    cells = {tuple(round(x) for x in text.get_position()): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "1.00", (1, 0): "-1.50", (2, 0): "0.00", (0, 1): "0.50", (1, 1): "–", (2, 1): "2.00"}
    assert axes.images[0].get_clim() == (-2, 2)
    red, blue = axes.images[0].to_rgba(np.array([-2.0, 2.0]))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    assert axes.yaxis_inverted()
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == ("training timesteps", "query timesteps", "LDS, %")
    assert overlaps(figure) == []


@pytest.mark.parametrize(("size", "scale"), [(1, 0.0), (1, 0.3), (8, 0.0), (8, 1e-7), (8, 0.3), (8, 1e6), (45, 1e6)])
def test_matrices_of_every_size_are_readable(size, scale):
    """Claim: within 16 inches; numbers without overlap where there is room, else none; the scale holds all values."""
    values = scale * np.random.default_rng(0).standard_normal((size, size))
    labels = [f"{i}-{i + 1}" for i in range(size)]
    figure = figures.matrix(values, labels, labels, "score for each pair of timesteps " * 4, "score", symmetric=size != 8)
    assert figure.get_figwidth() <= 16
    assert len(texts(figure)) == (size**2 if size <= 8 else 0)
    low, high = figure.axes[0].images[0].get_clim()
    assert low <= values.min() <= values.max() <= high
    assert overlaps(figure) == []


def test_labels_must_fit_the_matrix():
    """Claim: labels of another number are an error that names both."""
    with pytest.raises(ValueError, match=r"\(2, 3\) with 2 row and 2 column"):
        figures.matrix(np.zeros((2, 3)), ["a", "b"], ["a", "b"], "t", "v")


def swept(estimator: str, x: float | str | None, value: float, kind: str = "validation", metric: str = "lds", **settings) -> Row:
    """A row at one damping, or of an estimator without, with further ``settings``."""
    settings = {**({} if x is None else {"damping": x}), **settings}
    subject = Subject(estimator, {f"estimator.{name.replace('_', '.')}": value for name, value in settings.items()})
    estimate = Estimate(value, value - 0.1, value + 0.05)
    return Row(benchmark="lds", metric=metric, queries=kind, subject=subject, estimate=estimate, seed=0)


def test_curves_by_hand():
    """Claim: a line for each estimator through its values in the order of the setting, NaN a gap, intervals at their places."""
    rows = [swept("kfac", x, v) for x, v in ((1e-3, 0.3), (1e-9, 0.1), (1e-5, np.nan), (1e-7, 0.2))]
    rows += [swept("ekfac", x, 0.25) for x in (1e-9, 1e-7, 1e-5, 1e-3)]
    figure = figures.curve([replace(row, levels=Levels(random=0.0, ceiling=0.6)) for row in rows], "estimator.damping")
    (axes,) = figure.axes
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    assert lines["kfac"] == pytest.approx(np.array([[1e-9, 0.1], [1e-7, 0.2], [1e-5, np.nan], [1e-3, 0.3]]), nan_ok=True)
    (cross,) = (line for line in axes.lines if line.get_marker() == "x")
    assert list(cross.get_xdata()) == [1e-5]
    others = [line for line in axes.lines if line is not cross]
    spans = [np.asarray(line.get_ydata()).tolist() for line in others if len(set(np.asarray(line.get_xdata()))) == 1]
    assert sorted(spans) == [pytest.approx(s) for s in ([0, 0.15], [0.1, 0.25], *[[0.15, 0.3]] * 4, [0.2, 0.35])]
    assert lines["random level"][:, 1].tolist() == [0, 0]
    assert lines["noise ceiling"][:, 1].tolist() == [0.6, 0.6]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1e-09", "1e-07", "1e-05", "0.001"]
    left, right = axes.get_xlim()
    assert left < 1e-9 < 1e-3 < right
    bottom, top = axes.get_ylim()
    assert bottom < 0 < 0.6 < top
    assert overlaps(figure) == []


def test_estimators_without_the_setting_are_levels():
    """Claim: a row without the swept setting is a line across with its interval as a band."""
    axes = figures.curve(
        [swept("kfac", 1e-3, 0.3), swept("kfac", 1e-5, 0.2), swept("retrac", None, 0.15)], "estimator.damping"
    ).axes[0]
    (level,) = [line for line in axes.lines if line.get_label() == "retrac"]
    assert np.asarray(level.get_ydata()).tolist() == [0.15, 0.15]
    (band,) = axes.patches
    box = band.get_extents().transformed(axes.transData.inverted())
    assert (box.y0, box.y1) == pytest.approx((0.05, 0.2))


def test_panels_and_other_settings():
    """Claim: a panel for each metric and kind of queries; other swept settings make lines of their own; a short axis is linear."""
    rows = [
        swept("kfac", damping, 0.1 * n, kind, metric, draws_n=n)
        for n in (2, 3, 4)
        for damping in (1e-8, 1e-4)
        for kind in ("validation", "generated")
        for metric in ("lds", "distinct_share@10")
    ]
    figure = figures.curve(rows, "estimator.draws.n", "draws per example")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [
        "lds, validation queries", "distinct share@10, validation queries", "lds, generated queries",
        "distinct share@10, generated queries",
    ]  # fmt: skip
    assert {axes.get_xlabel() for axes in panels} == {"draws per example"}
    assert {axes.get_xscale() for axes in panels} == {"linear"}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "kfac, damping=1e-08", "kfac, damping=0.0001", "95 % interval",
    ]  # fmt: skip
    assert overlaps(figure) == []


def test_many_long_names_leave_room_for_the_curves():
    """Claim: the page grows by its legend; a damping of 0 has a place beside powers of ten."""
    rows = [
        swept("balanced_kfac", x, 0.2, draws_n=n).with_swept({"measurement": "elbo_weighted" * (n % 2)})
        for x in (0.0, 1e-9, 1e-5)
        for n in range(20)
    ]
    figure = figures.curve(rows, "estimator.damping")
    assert overlaps(figure) == []
    assert figure.axes[0].get_position().height * figure.get_figheight() > 2
    assert figure.axes[0].get_xlim()[0] < 0


@pytest.mark.parametrize(
    ("rows", "said"), [([swept("a", None, 0.1)], "no row was swept"), ([swept("a", "big", 0.1)], "not a number")]
)
def test_what_cannot_be_a_curve(rows, said):
    """Claim: no setting, or one that is not a number, is an error that names it."""
    with pytest.raises(ValueError, match=f"estimator.damping.*{said}|{said}.*estimator.damping"):
        figures.curve(rows, "estimator.damping")
