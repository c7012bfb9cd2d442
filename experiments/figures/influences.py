"""Queries with the training images that have the largest, nearly zero and smallest scores (K-FAC influence, fig. 1)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attribution.images import Images
from experiments.figures.style import FAINT, INK, TALLEST, WIDEST, text_width, wrapped
from experiments.figures.thumbnails import canvas, caption, foot, names_height, thumbnail
from experiments.metrics.ranking import top_k

SECTIONS = 3
"""The largest number of variants with a section each; more variants are rows in a section for each query."""
_SIZE, _GAP, _TEXT, _LARGE = 0.62, 0.06, 0.33, 1.1
_STEP = _SIZE + _GAP
_MARGIN, _BETWEEN, _HEADING, _NAMES, _NARROWEST = 0.1, 0.22, 0.28, 2.2, 6.5
_MEANING = (
    "Below each training image: its id, its name if it has one, and its score. "
    "A score above 0: training on the image lowered the query's cost. Top: the largest scores; most negative: the smallest"
)

_NOISE = "Grey: the score is within the noise of the draws (95 %)."


@dataclass(frozen=True)
class _Group:
    """Training images side by side from ``x`` on: the ``count`` with the largest ``rank`` of the scores."""

    title: str
    rank: Callable[[np.ndarray], np.ndarray]
    count: int
    x: float = 0.0

    @property
    def width(self) -> float:
        return self.count * _STEP - _GAP


@dataclass(frozen=True)
class _Section:
    """Rows of images, ``line`` inches high, under one heading: for each, the position of a query and the name of a variant."""

    title: Sequence[str]
    lines: Sequence[tuple[int, str]]
    line: float

    @property
    def height(self) -> float:
        return 0.24 * len(self.title) + _HEADING + len(self.lines) * self.line


def proponents(
    queries: Images,
    train: Images,
    scores: Mapping[str, np.ndarray],
    rows: Sequence[int],
    top: int = 6,
    neutral: int = 3,
    boxed: Mapping[str, Collection[int]] | None = None,
    noise: Mapping[str, np.ndarray] | None = None,
    box_caption: str = "generally influential: among the top proponents of many queries",
) -> Figure:
    """For each query, the training images with the largest scores, the scores nearest 0 and the smallest (K-FAC influence, fig. 1).

    Up to three variants (estimators, or one at several settings) have a section each, with a row for each query. For more
    variants, every query has a section with a row for each variant, without the neutral images. The figure has at most 16 × 30
    inches; it leaves out the last queries, or variants in even steps, that do not fit, and says how many.

    Args:
        queries: Q images, real or generated; ``rows`` are positions of those to show.
        train: N images, in the order of the columns of the scores.
        scores: for each variant τ ``[Q, N]``.
        top: the number of images with the largest scores, and of those with the smallest.
        neutral: the number of images with scores nearest 0.
        boxed: for each variant, positions of generally influential training images, which get a red box (ReTrac §6.2).
        noise: for some variants, half the width of the interval of each score, ``[Q, N]``; a score within it is grey.
        box_caption: the explanation of a red box in the legend.
    """
    by_query = len(scores) > SECTIONS
    names = min(_NAMES, max(text_width(name, 9) for name in scores)) + _BETWEEN if by_query else 0.0
    query = _LARGE if by_query else _SIZE
    groups = _groups(_MARGIN + query + _BETWEEN + names, top, 0 if by_query else neutral, len(train))
    width = max(_NARROWEST, groups[-1].x + groups[-1].width + _MARGIN)

    line_height = _SIZE + _TEXT + names_height(train, queries.take(list(rows)))
    notes = [_MEANING + ("." if by_query or not neutral else "; neutral: those nearest 0.")]
    if noise:
        notes.append(_NOISE)
    if groups[0].count < min(top, len(train)):
        notes.append(f"{groups[0].count} of {top} top and most negative images shown.")
    legend = wrapped(box_caption, width - 0.5, 9) if boxed else []
    room = TALLEST - 0.2 * (len(legend) + 4) - 0.4
    sections_of = _sections_of_queries if by_query else _sections_of_variants
    sections, left_out = sections_of(list(scores), list(rows), width - 2 * _MARGIN, room, line_height)
    below = [line for note in [*notes, *left_out] for line in wrapped(note, width - 2 * _MARGIN, 8)]

    body = sum(section.height + 0.12 for section in sections)
    figure, axes = canvas(width, body + 0.2 * len(legend) + 0.16 * len(below) + 0.2)
    y = 0.05
    for section in sections:
        red = {name: {int(position) for position in (boxed or {}).get(name, ())} for name in scores}
        line_y = _head(axes, section, groups, query, y, width)
        for number, (row, name) in enumerate(section.lines):
            if number == 0 or not by_query:
                thumbnail(axes, queries, row, _MARGIN, line_y, query, caption(queries, row, query))
            if by_query:
                label = "\n".join(wrapped(name, names - _BETWEEN, 9))
                axes.text(_MARGIN + query + _BETWEEN, line_y + _SIZE / 2, label, va="center", fontsize=9, color=INK)
            values, within = np.asarray(scores[name][row]), (noise or {}).get(name)
            grey = np.zeros(len(values), bool) if within is None else np.abs(values) <= within[row]
            _line(axes, train, values, groups, line_y, red[name], grey)
            line_y += line_height
        y += section.height + 0.12
    foot(axes, _MARGIN, y, legend, below)
    return figure


def _groups(left: float, top: int, neutral: int, examples: int) -> list[_Group]:
    """Top, neutral and most negative images from ``left`` on; the largest groups shrink if the width is not sufficient."""
    counts = [min(count, examples) for count in (top, neutral, top)]
    while left + sum(counts) * _STEP + 2 * _BETWEEN + _MARGIN > WIDEST:
        counts = [min(count, max(counts) - 1) for count in counts]
    groups = []
    for count, title, rank in zip(counts, ("top", "neutral", "most negative"), (np.positive, _near_zero, np.negative), strict=True):
        if count:
            groups.append(_Group(title, rank, count, left))
            left += max(groups[-1].width, text_width(title, 9)) + _BETWEEN
    return groups


def _near_zero(scores: np.ndarray) -> np.ndarray:
    return -np.abs(scores)


def _sections_of_variants(
    names: list[str], rows: list[int], width: float, room: float, line: float
) -> tuple[list[_Section], list[str]]:
    titles = [wrapped(name, width, 12, "bold") for name in names]
    heads = sum(_Section(title, (), line).height + 0.12 for title in titles)
    kept = rows[: max(1, int((room - heads) / (len(names) * line)))]
    sections = [_Section(title, [(row, name) for row in kept], line) for title, name in zip(titles, names, strict=True)]
    return sections, _left_out(len(rows) - len(kept))


def _sections_of_queries(
    names: list[str], rows: list[int], width: float, room: float, line: float
) -> tuple[list[_Section], list[str]]:
    lines = min(len(names), int((room - _HEADING - 0.12) / line))
    kept_names = [names[i] for i in np.linspace(0, len(names) - 1, lines).round().astype(int)]
    kept = rows[: max(1, int(room / (_HEADING + lines * line + 0.12)))]
    notes = _left_out(len(rows) - len(kept))
    if lines < len(names):
        notes.append(f"{len(names) - lines} of {len(names)} variants are left out, in even steps.")
    return [_Section((), [(row, name) for name in kept_names], line) for row in kept], notes


def _left_out(queries: int) -> list[str]:
    return [f"{queries} more {'queries are' if queries > 1 else 'query is'} left out."] if queries else []


def _head(axes: Axes, section: _Section, groups: list[_Group], query: float, y: float, width: float) -> float:
    """Draw the title and the headings, and return the vertical position of the first row."""
    for line in section.title:
        axes.text(_MARGIN, y, line, va="top", fontsize=12, weight="bold", color=INK)
        y += 0.24
    bottom = y + _HEADING - 0.06
    axes.text(_MARGIN + query / 2, bottom, "query", ha="center", va="bottom", fontsize=9, color=INK)
    for group in groups:
        middle = group.x + max(group.width, text_width(group.title, 9)) / 2 if group.count == 1 else group.x + group.width / 2
        axes.text(middle, bottom, group.title, ha="center", va="bottom", fontsize=9, color=INK)
    axes.plot([_MARGIN, width - _MARGIN], [bottom + 0.02] * 2, color=FAINT, linewidth=0.6)
    return y + _HEADING


def _line(
    axes: Axes, train: Images, scores: np.ndarray, groups: list[_Group], y: float, red: Collection[int], grey: np.ndarray
) -> None:
    for group in groups:
        for place, position in enumerate(top_k(group.rank(scores[None]), group.count)[0]):
            text = f"{caption(train, int(position), _SIZE)}\n{_short(float(scores[position]))}"
            color = FAINT if grey[position] else INK
            thumbnail(axes, train, position, group.x + place * _STEP, y, _SIZE, text, int(position) in red, color)


def _short(score: float) -> str:
    return f"{score:+.2f}" if score == 0 or 0.01 <= abs(score) < 1000 else f"{score:+.1e}"
