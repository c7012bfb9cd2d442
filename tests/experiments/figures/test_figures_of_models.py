"""Figures of changes, of pairs of models and of boxes over queries, read from their artists."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from attribution.diffusion import DDPM, EDM, NoiseSchedule, RectifiedFlow
from experiments import figures
from experiments.figures.noise_axis import log_snr_labels
from experiments.metrics.correlation import pearson, spearman
from experiments.metrics.estimate import Estimate
from experiments.report.row import Row, Subject
from tests.experiments.figures.drawn import overlaps

RANDOM = np.random.default_rng(0)


def test_changes_have_a_dot_for_each_query_and_model():
    """Claim: predicted against actual, one color a query, and the shares of increases above."""
    predicted, actual = RANDOM.normal(size=(3, 5)), np.abs(RANDOM.normal(size=(3, 5)))
    panels = [figures.Changes("measurement", predicted, actual), figures.Changes("loss at t = 5", -predicted, actual)]
    figure = figures.changes(panels, "kfac")
    first, second, *_ = figure.axes
    (dots,) = first.collections
    np.testing.assert_allclose(dots.get_offsets(), np.stack([predicted.ravel(), actual.ravel()], 1))
    colors = dots.get_facecolors().reshape(3, 5, 4)
    assert (colors == colors[:, :1]).all()
    assert len(np.unique(colors[:, 0], axis=0)) == 3
    assert first.get_title() == f"measurement\nincreases: predicted {(predicted > 0).mean():.0%}, actual 100%"
    assert f"predicted {(predicted < 0).mean():.0%}" in second.get_title()
    assert overlaps(figure) == []


def test_every_pair_of_models_has_a_panel():
    """Claim: the lower triangle, each pair once, with its own correlations above."""
    values = RANDOM.normal(size=(4, 6))
    names = ["all images", "subset 1", "subset 2", "subset 3"]
    figure = figures.scatter_matrix(values, names, "loss", {"r": pearson, "ρ": spearman})
    panels = [axes for axes in figure.axes if axes.collections]
    assert len(panels) == 6
    for axes, (row, column) in zip(panels, [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)], strict=True):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([values[column], values[row]], 1))
        r, rho = pearson(values[column], values[row]), spearman(values[column], values[row])
        assert axes.get_title() == f"r = {float(r):.3f}, ρ = {float(rho):.3f}"
    assert overlaps(figure) == []


def test_boxes_show_medians_and_means_of_queries():
    """Claim: a panel for each outcome and a box for each subject; unknown numbers are left out."""
    values = RANDOM.normal(size=9)
    panels = {"image ℓ2": {"trak": values, "random removal": values - 3}, "embedding": {"trak": np.append(values, np.nan)}}
    figure = figures.boxes(panels, "20% removed, 9 queries")
    first, second, *_ = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["trak", "random removal"]
    for axes, drawn in ((first, [values, values - 3]), (second, [values])):
        x = [np.asarray(line.get_xdata(), float) for line in axes.lines]
        for numbers in drawn:
            assert any(line.shape == (2,) and np.allclose(line, np.median(numbers)) for line in x)
            assert any(line.shape == (1,) and np.allclose(line, numbers.mean()) for line in x)
    assert overlaps(figure) == []


@pytest.mark.parametrize("unknown", [(0,), (0, 2), ()])
def test_unknown_values_of_a_curve_have_a_cross(unknown):
    """Claim: a setting without a finite number is marked × at the bottom of the axes, at its place; others are not."""
    values = [float("nan") if k in unknown else 10.0 + k for k in range(4)]
    rows = [
        Row(
            benchmark="lds",
            metric="lds_%",
            queries="generated",
            subject=Subject("trak", {"damping": 10.0**k}),
            estimate=Estimate(v),
        )
        for k, v in enumerate(values)
    ]
    axes = figures.curve(rows, "damping").axes[0]
    crosses = [line for line in axes.lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses] == ([[10.0**k for k in unknown]] if unknown else [])
    bottom = axes.transAxes.transform((0, 0))[1]
    for line in crosses:
        x, y = line.get_transform().transform(np.column_stack([line.get_xdata(), line.get_ydata()])).T
        np.testing.assert_allclose(x, axes.transData.transform([(10.0**k, 11.0) for k in unknown])[:, 0], atol=1)
        assert (y - bottom > 0).all()
        assert (y < bottom + 30).all()


@pytest.mark.parametrize(
    "process", [DDPM(NoiseSchedule()), EDM(), RectifiedFlow(T=200)], ids=lambda process: type(process).__name__
)
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_timesteps_are_labeled_by_their_log_snr(process, scale):
    """Claim: round values stand at the timesteps that have them, and apart from each other."""
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(1, process.T), xscale=scale, title="title")
    figures.log_snr_axis(axes, process.log_snr)
    (noise,) = axes.child_axes
    labels = [label.get_text() for label in noise.get_xticklabels()]
    assert len(labels) >= 3
    for t, label in zip(noise.get_xticks(), labels, strict=True):
        known = np.interp(t, np.arange(1, process.T + 1), process.log_snr)
        assert known == pytest.approx(float(label.replace("−", "-")), abs=1e-9)
    assert overlaps(figure) == []


def test_single_timesteps_are_labeled_by_their_log_snr():
    """Claim: to one decimal; pure noise has −∞, and a value that is rounded to 0 has no sign."""
    axes = Figure().subplots()
    log_snr_labels(axes, np.array([7.26, -0.04, -3.0, -np.inf]), {1: 0.0, 2: 1.0, 3: 2.0, 4: 3.0})
    (noise,) = axes.child_axes
    assert [label.get_text() for label in noise.get_xticklabels()] == ["7.3", "0.0", "−3.0", "−∞"]


def test_matrices_of_groups_have_a_unit_for_each_query():
    """Claim: a panel for each method; colors are deviations from the mean of the query, so that scales do not matter."""
    values = RANDOM.normal(size=(6, 4))
    matrices = {"retraining": values, "kfac": 1e6 * values, "trak": -values, "constant": np.zeros((6, 4))}
    figure = figures.group_matrices(matrices, list("001122"), ["0", "1", "2", "3"], "groups")
    shown = {axes.get_title(): np.asarray(axes.images[0].get_array()) for axes in figure.axes if axes.get_title()}
    np.testing.assert_allclose(shown["retraining"].mean(1), 0, atol=1e-12)
    np.testing.assert_allclose(shown["retraining"].std(1), 1)
    np.testing.assert_allclose(shown["kfac"], shown["retraining"])
    np.testing.assert_allclose(shown["trak"], -shown["retraining"])
    assert not shown["constant"].any()
    assert overlaps(figure) == []
    assert overlaps(figures.group_matrices(matrices, list("001122"), ["a long name", "and a longer one", "c", "d"], "groups")) == []
