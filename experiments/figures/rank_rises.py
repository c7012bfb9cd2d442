"""How many ranks examples gain when their timestep is replaced (ReTrac §4.2)."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.figures.intervals import draw_interval, draw_level
from experiments.figures.style import COLORS, DPI, HATCHES, INK, legend, plain_frame
from experiments.report.interval_kinds import common_kind
from experiments.report.row import Row

_SETTING = "timestep"
_LABELS = {"t_max": "timestep replaced by t_max", "random": "timestep replaced by a random one"}
_LEVELS = {"random": "new rank at random", "maximum": "new rank 1"}


def rank_rises(rows: Sequence[Row]) -> Figure:
    """Mean rise of the rank of |score|, in % of the training set, with intervals; a panel for each kind of queries.

    The setting ``timestep`` of a row says what replaced the timestep. Lines across an estimator's bars are its reference levels.
    """
    rows = [row for row in rows if math.isfinite(row.estimate.value)]
    kinds = list(dict.fromkeys(row.queries for row in rows)) or [None]
    names = list(dict.fromkeys(row.estimator for row in rows))
    interval = common_kind(row.estimate for row in rows)
    timings = list(dict.fromkeys(row.settings[_SETTING] for row in rows))
    width = max(3.0, 1.0 + 1.1 * len(names))
    figure = Figure((max(6.0, 0.8 + width * len(kinds)), 3.6), dpi=DPI, layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        for row in (row for row in rows if row.queries == kind):
            timing = row.settings[_SETTING]
            group, rank = names.index(row.estimator), timings.index(timing)
            x = group + (rank - (len(timings) - 1) / 2) * 0.4
            look = {"color": COLORS[rank], "hatch": HATCHES[rank], "edgecolor": "white", "linewidth": 0}
            axes.bar(x, row.estimate.value, 0.36, label=_LABELS.get(timing, timing), **look)
            draw_interval(axes, x, row.estimate, label=interval)
            for level, label in _LEVELS.items():
                if (value := getattr(row.levels, level)) is not None:
                    draw_level(axes, level, value, (group - 0.46, group + 0.46), label=label)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(names)), names)
        axes.set_title(f"{kind} queries" if kind else "", fontsize=11)
        plain_frame(axes)
    figure.axes[0].set_ylabel("mean rise of the rank of |score|,\n% of the training set")
    legend(figure, figure.axes)
    return figure
