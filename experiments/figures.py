"""Figures of a report. Each function returns a matplotlib ``Figure`` and touches no global state."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attribution.diffusion import NoiseSchedule
from attribution.images import Images
from attribution.measurements import elbo
from experiments.benchmarks.metrics import top_k
from experiments.tables import REFERENCES, differing_settings

DPI = 150
_COLORS = ("#3b6fb6", "#e07b39", "#4c9f70", "#8d5fb0", "#c9a227", "#4bb3c4", "#8a5a44", "#7f7f7f")
_RED = "#d62728"
_INK, _FAINT = "#222222", "#8a8a8a"


def proponents(
    queries: Images,
    train: Images,
    scores: Mapping[str, np.ndarray],
    rows: Sequence[int],
    top: int = 6,
    boxed: Mapping[str, Collection[int]] | None = None,
    boxed_means: str = "generally influential: among the top proponents of many queries",
) -> Figure:
    """A line for each query: its image, then for each estimator the ``top`` training images that speak most for and against it.

    Below each training image its id and its score. ``boxed`` are, for each estimator, positions of generally influential training
    examples; they get a red box, which the legend explains by ``boxed_means`` (ReTrac §6.2, figures of targeted attribution).

    Args:
        queries: Q images; ``rows`` are positions of those to show.
        train: N images, in the order of the columns of the scores.
        scores: for each estimator τ ``[Q, N]``, the largest first among the proponents.
    """
    top = min(top, len(train))
    size, gap, text = 0.62, 0.06, 0.33
    side, group = top * (size + gap), 0.28
    block = 2 * side + 0.14
    left, head = 0.1, 0.62
    width = left + size + len(scores) * (group + block) + left
    foot = 0.42 if boxed else 0.05
    figure, axes = _canvas(width, head + len(rows) * (size + text) + foot)

    axes.text(left + size / 2, head - 0.05, "query", ha="center", va="bottom", fontsize=9, color=_INK)
    for column, (name, values) in enumerate(scores.items()):
        start = left + size + group + column * (group + block)
        red = {int(position) for position in (boxed or {}).get(name, ())}
        axes.text(start + block / 2, 0.07, name, ha="center", va="top", fontsize=12, weight="bold", color=_INK)
        axes.plot([start, start + block - gap], [0.33, 0.33], color=_FAINT, linewidth=0.8)
        for offset, sign, title in ((0.0, 1, "proponents"), (block - side, -1, "opponents")):
            middle = start + offset + (side - gap) / 2
            axes.text(middle, head - 0.05, title, ha="center", va="bottom", fontsize=9, color=_INK)
            places = top_k(sign * np.asarray(values)[list(rows)], top)
            for line, row in enumerate(rows):
                for place, position in enumerate(places[line]):
                    x, y = start + offset + place * (size + gap), head + line * (size + text)
                    box = int(position) in red
                    _thumbnail(axes, train, position, x, y, size, f"#{train.index[position]}\n{_short(values[row, position])}", box)
    for line, row in enumerate(rows):
        _thumbnail(axes, queries, row, left, head + line * (size + text), size, f"#{queries.index[row]}")
    if boxed:
        y = head + len(rows) * (size + text) + 0.1
        axes.add_patch(Rectangle((left, y), 0.2, 0.2, fill=False, edgecolor=_RED, linewidth=2))
        axes.text(left + 0.3, y + 0.1, boxed_means, va="center", fontsize=9, color=_INK)
    return figure


def grid(images: Images, columns: int | None = None) -> Figure:
    """All images with their ids below, in about a square or in ``columns``."""
    columns = columns or max(1, int(np.ceil(np.sqrt(len(images)))))
    size, gap, text = 0.7, 0.08, 0.19
    lines = -(-len(images) // columns)
    figure, axes = _canvas(columns * (size + gap) + gap, lines * (size + text) + gap)
    for row in range(len(images)):
        line, column = divmod(row, columns)
        _thumbnail(axes, images, row, gap + column * (size + gap), gap + line * (size + text), size, f"#{images.index[row]}")
    return figure


def distinct_share(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Distinct share of the top k (ReTrac §6.2, table 1) as bars with intervals; a panel for each kind of queries.

    Shows the rows that carry a ``random`` level, grouped by metric (labelled by their ``k``); random level and maximum are lines
    across their group.
    """
    rows = [row for row in rows if row.get("random") is not None and row["value"] is not None]
    kinds = list(dict.fromkeys(row.get("queries") for row in rows))
    labels = [_label(row["estimator"], settings) for row, settings in zip(rows, differing_settings(rows), strict=True)]
    names = list(dict.fromkeys(labels))
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    bar = 0.8 / max(1, len(names))
    panel = max(3.2, 0.45 * len(metrics) * (len(names) + 1))
    figure = Figure((0.6 + max(1, len(kinds)) * panel, 3.9), dpi=DPI, layout="constrained")
    for axes, kind in zip(figure.subplots(1, max(1, len(kinds)), sharey=True, squeeze=False)[0], kinds, strict=False):
        for row, label in ((row, label) for row, label in zip(rows, labels, strict=True) if row.get("queries") == kind):
            group, rank = metrics.index(row["metric"]), names.index(label)
            x = group + (rank - (len(names) - 1) / 2) * bar
            axes.bar(x, row["value"], 0.9 * bar, color=_COLORS[rank % len(_COLORS)], label=label)
            if row["low"] is not None and row["high"] is not None:
                axes.plot([x, x], [row["low"], row["high"]], color=_INK, linewidth=1.4, label="interval")
            for level, style in (("random", "--"), ("maximum", ":")):
                if row.get(level) is not None:
                    axes.hlines(row[level], group - 0.46, group + 0.46, _INK, style, linewidth=1.2, label=REFERENCES[level])
        axes.set_xticks(range(len(metrics)), [_group(rows, metric) for metric in metrics])
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        axes.set_ylim(0, 1.08)
        _plain_frame(axes)
    figure.axes[0].set_ylabel("distinct share")
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [label for label in (*names, "interval", *REFERENCES.values()) if label in handles]
    if order:
        columns = len(order) if len(order) <= 6 else -(-len(order) // 2)
        figure.legend([handles[o] for o in order], order, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    return figure


def training_curve(
    steps: Sequence[int] | np.ndarray,
    loss: Sequence[float] | np.ndarray,
    learning_rate: Sequence[float] | np.ndarray,
    checkpoints: Sequence[int] = (),
    used: Sequence[int] = (),
) -> Figure:
    """Loss per step, raw and smoothed, on a log axis; the learning rate on another; recorded and used checkpoints as marks.

    ``checkpoints`` are the steps of all that were recorded, ``used`` those that an estimator reads.
    """
    steps, loss = np.asarray(steps), np.asarray(loss, dtype=np.float64)
    figure = Figure((8, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, loss, color=_COLORS[0], alpha=0.25, linewidth=0.7, label="loss")
    window = max(1, len(loss) // 50)
    axes.plot(steps, _moving_mean(loss, window), color=_COLORS[0], linewidth=1.6, label=f"loss, mean of {window} steps")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    rate = axes.twinx()
    rate.plot(steps, np.asarray(learning_rate), color=_COLORS[1], linewidth=1.2, label="learning rate")
    rate.set_ylabel("learning rate")
    rate.set_ylim(bottom=0)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    bottom = axes.get_xaxis_transform()
    for places, height, color, label in ((checkpoints, 0.05, _FAINT, "checkpoint"), (used, 1.0, _RED, "checkpoint in use")):
        if len(places):
            axes.vlines(places, 0, height, color, linewidth=1, alpha=0.8, transform=bottom, label=label)
    _plain_frame(axes)
    rate.spines["top"].set_visible(False)
    marks = [handle for side in (axes, rate) for handle in side.get_legend_handles_labels()[0]]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), fontsize=9, frameon=False)
    return figure


def loss_weights(schedule: NoiseSchedule) -> Figure:
    """How much the loss at each timestep counts in the measurements that are weighted losses (K-FAC paper, fig. 18).

    Every curve is relative to its mean over the timesteps: the plain loss is 1 throughout. ``elbo`` begins at t = 2, because its
    term at t = 1 is no square error but the decoder's log-probability.
    """
    t = np.arange(1, schedule.T + 1)
    bounds = (
        ("elbo", elbo.small_variances(schedule), slice(1, None), "-"),
        ("elbo_weighted", schedule.betas, slice(None), ":"),
    )
    figure = Figure((6.4, 3.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot(t, np.ones(len(t)), color=_INK, linewidth=1.4, linestyle="--", label="loss")
    for (name, variances, drawn, style), color in zip(bounds, _COLORS, strict=False):
        weights = elbo.loss_weights(schedule, variances)[drawn]
        axes.plot(t[drawn], weights / weights.mean(), style, color=color, linewidth=2, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("timestep")
    axes.set_ylabel("weight of the loss, relative to its mean")
    axes.legend(frameon=False, fontsize=9)
    _plain_frame(axes)
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """One axes over the whole figure, in inches from the top left: images and texts go where they are put."""
    figure = Figure((width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    return figure, axes


def _thumbnail(axes: Axes, images: Images, row: int, x: float, y: float, size: float, text: str, box: bool = False) -> None:
    pixels = np.clip((images.x0([int(row)])[0].numpy().transpose(1, 2, 0) + 1) / 2, 0, 1)
    pixels = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels
    axes.imshow(pixels, extent=(x, x + size, y + size, y), interpolation="nearest", aspect="auto")
    edge = {"edgecolor": _RED, "linewidth": 2.5} if box else {"edgecolor": _FAINT, "linewidth": 0.4}
    axes.add_patch(Rectangle((x, y), size, size, fill=False, **edge))
    axes.text(x + size / 2, y + size + 0.03, text, ha="center", va="top", fontsize=7, linespacing=1.0, color=_INK)


def _short(score: float) -> str:
    return f"{score:+.2f}" if 0.01 <= abs(score) < 1000 else f"{score:+.1e}"


def _label(estimator: str, settings: Mapping[str, Any]) -> str:
    return ", ".join([estimator, *(f"{name}={value}" for name, value in settings.items())])


def _group(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    k = next((row["k"] for row in rows if row["metric"] == metric and row.get("k") is not None), None)
    return metric.replace("_", " ") if k is None else f"top {k}"


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred, over as many values as there are at the ends."""
    if not len(values):
        return values
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def _plain_frame(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
