"""How far other timesteps of training would have moved examples among the influential ones (ReTrac §4.2)."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.figures.style import COLORS, DPI, HATCHES, INK, legend, plain_frame

_WORDS = {"t_max": "timestep replaced by t_max", "random": "timestep replaced by a random one"}
_LEVELS = {"random": ("--", "new rank at random"), "maximum": (":", "new rank 1")}


def rank_rises(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Mean rise of the rank of |score|, in % of the training set, with intervals; a panel for each kind of queries.

    Shows the rows with a ``random`` level; ``swept`` says what replaced the timestep. Lines across an estimator's bars: its levels.
    """
    rows = [row for row in rows if row.get("random") is not None and row["value"] is not None]
    kinds = list(dict.fromkeys(row.get("queries") for row in rows)) or [None]
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    timings = list(dict.fromkeys(row["swept"]["timestep"] for row in rows))
    width = max(3.0, 1.0 + 1.1 * len(names))
    figure = Figure((max(6.0, 0.8 + width * len(kinds)), 3.6), dpi=DPI, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        for row in rows:
            if row.get("queries") != kind:
                continue
            group, rank = names.index(row["estimator"]), timings.index(row["swept"]["timestep"])
            x = group + (rank - (len(timings) - 1) / 2) * 0.4
            look = {"color": COLORS[rank], "hatch": HATCHES[rank], "edgecolor": "white", "linewidth": 0}
            axes.bar(x, row["value"], 0.36, label=_WORDS.get(timings[rank], timings[rank]), **look)
            if row["low"] is not None and row["high"] is not None:
                axes.plot([x, x], [row["low"], row["high"]], color=INK, linewidth=1.4, label="interval")
            for level, (style, words) in _LEVELS.items():
                axes.hlines(row[level], group - 0.46, group + 0.46, INK, style, linewidth=1.2, label=words)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        plain_frame(axes)
    figure.axes[0].set_ylabel("mean rise of the rank of |score|,\n% of the training set")
    legend(figure, figure.axes)
    return figure
