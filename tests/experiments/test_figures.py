"""What figures show, read from their artists; that nothing overlaps, from where these are drawn."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.transforms import Bbox

from attribution.images import Images
from experiments import figures


def images(n: int, channels: int = 1, first: int = 0) -> Images:
    """n random 8×8 images with ids from ``first``."""
    pixels = np.random.default_rng(n).integers(0, 17, size=(n, channels, 8, 8)).astype(np.uint8)
    return Images(pixels, np.arange(first, first + n), np.full(n, -1), levels=16)


def texts(figure: Figure) -> list[str]:
    """All texts of the first axes."""
    return [text.get_text() for text in figure.axes[0].texts]


def boxes(figure: Figure) -> list[Rectangle]:
    """The red rectangles of the first axes, the one in the legend included."""
    patches = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [patch for patch in patches if to_hex(patch.get_edgecolor()) == figures._RED]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts and images that cover each other, and what leaves the figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    drawn = [(text.get_text(), text.get_window_extent()) for text in axes.texts]
    drawn += [("image", image.get_window_extent()) for image in axes.images]
    found = [(a, b) for (a, x), (b, y) in itertools.combinations(drawn, 2) if x.padded(-0.5).overlaps(y.padded(-0.5))]
    page = Bbox.from_bounds(0, 0, *canvas.get_width_height())
    return found + [(a, "page") for a, x in drawn if not (page.containsx(x.x0) and page.containsx(x.x1) and page.containsy(x.y0))]


def test_proponents_by_hand():
    """Largest scores first among the proponents, smallest first among the opponents, each with dataset id and score."""
    scores = {"retrac": np.array([[0.0, 0, 0, 0], [0.1, -3.0, 2.0, 5e-6]]), "tracin": np.array([[0.0, 0, 0, 0], [4, 3, 2, 1]])}
    figure = figures.proponents(images(2, first=70), images(4, first=500), scores, rows=[1], top=2)
    assert [text for text in texts(figure) if text.startswith("#")] == [
        "#502\n+2.00", "#500\n+0.10", "#501\n-3.00", "#503\n+5.0e-06",
        "#500\n+4.00", "#501\n+3.00", "#503\n+1.00", "#502\n+2.00",
        "#71",
    ]  # fmt: skip
    words = texts(figure)
    assert [words.count(word) for word in ("query", "retrac", "tracin", "proponents", "opponents")] == [1, 1, 1, 2, 2]
    assert len(figure.axes[0].images) == 9
    assert boxes(figure) == []


def test_images_are_those_that_are_named():
    """Pixels map from [-1, 1] to black..white, one channel or three, and stand above their own id."""
    for channels in (1, 3):
        train = images(5, channels)
        scores = {"a": np.arange(5.0)[None]}
        figure = figures.proponents(images(1, channels), train, scores, rows=[0], top=1)
        shown = np.asarray(figure.axes[0].images[0].get_array())
        assert shown.shape == (8, 8, 3)
        assert shown == pytest.approx(np.broadcast_to(train.pixels[4].transpose(1, 2, 0) / 16, (8, 8, 3)), abs=1e-6)


def test_generally_influential_images_are_boxed_per_estimator():
    """Red boxes around the given positions of this estimator only; the legend says what they mean; none without ``boxed``."""
    scores = {"a": np.tile(np.arange(6.0), (3, 1)), "b": np.tile(np.arange(6.0), (3, 1))}
    figure = figures.proponents(images(3), images(6), scores, [0, 2], 2, boxed={"a": {5, 3}, "b": set()}, boxed_means="in all tops")
    assert len(boxes(figure)) == 2 * 1 + 1
    assert "in all tops" in texts(figure)


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_nothing_overlaps_in_a_full_page(scale):
    """Eight queries, two estimators, long ids: no text covers another or an image, and nothing leaves the page."""
    random = np.random.default_rng(0)
    scores = {name: scale * random.standard_normal((8, 40)) for name in ("retrac", "guided")}
    boxed = {"retrac": set(range(9))}
    figure = figures.proponents(images(8, 3, first=60_000), images(40, 3, first=60_000), scores, range(8), boxed=boxed)
    assert overlaps(figure) == []
    assert overlaps(figures.grid(images(30, first=60_000))) == []


def test_the_overlap_check_can_fail():
    """A text that is put on another is found."""
    figure = figures.grid(images(4))
    figure.axes[0].text(0.4, 0.8, "here")
    assert overlaps(figure)


def test_small_training_sets_show_all():
    """Fewer training images than ``top``: all of them."""
    figure = figures.proponents(images(1), images(3), {"a": np.arange(3.0)[None]}, [0], top=6)
    assert len(figure.axes[0].images) == 1 + 2 * 3


def test_grid_shows_every_image():
    """Seven images in three columns, with their ids."""
    figure = figures.grid(images(7, 3, first=10))
    assert texts(figure) == [f"#{i}" for i in range(10, 17)]
    assert len({image.get_extent()[0] for image in figure.axes[0].images}) == 3


def share_rows(**extra) -> list[dict]:
    """Two estimators × two k × two kinds of queries, and a difference, which has no random level."""
    rows = [
        {"estimator": name, "metric": f"distinct_share@{k}", "k": k, "queries": kind, "seed": 0, "value": value, "low": value - 0.1,
         "high": value + 0.05, "random": 0.9, "maximum": 1.0, **extra}
        for name, value in (("retrac", 0.8), ("tracin", 0.3)) for k in (10, 50) for kind in ("validation", "generated")
    ]  # fmt: skip
    return [*rows, {**rows[0], "estimator": "retrac − tracin", "random": None, "value": 0.5}]


def test_distinct_share_shows_bars_intervals_and_levels():
    """A panel per kind of queries; in each a bar per estimator and k with its interval, and both levels for each k."""
    figure = figures.distinct_share(share_rows())
    assert [axes.get_title() for axes in figure.axes] == ["validation queries", "generated queries"]
    for axes in figure.axes:
        assert sorted(bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)) == [0.3, 0.3, 0.8, 0.8]
        spans = sorted(tuple(map(float, np.asarray(line.get_ydata()))) for line in axes.lines)
        assert spans == [pytest.approx((0.2, 0.35))] * 2 + [pytest.approx((0.7, 0.85))] * 2
        levels = [segment[0][1] for lines in axes.collections for segment in lines.get_segments()]  # pyright: ignore[reportAttributeAccessIssue]
        assert set(levels) == {0.9, 1.0}
        assert [label.get_text() for label in axes.get_xticklabels()] == ["top 10", "top 50"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "retrac",
        "tracin",
        "interval",
        "random level",
        "maximum",
    ]


def test_swept_settings_get_bars_of_their_own():
    """Two values of a setting: no bar hides another, and the legend tells them apart."""
    rows = [*share_rows(swept={"estimator.draws.n": 10}), *share_rows(swept={"estimator.draws.n": 50})]
    figure = figures.distinct_share(rows)
    places = [bar.get_x() for bar in figure.axes[0].patches if isinstance(bar, Rectangle)]
    assert len(places) == len({round(x, 6) for x in places}) == 8
    assert "tracin, estimator.draws.n=50" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_unknown_intervals_are_not_drawn():
    """A share without an interval is a bar alone; no rows are an empty figure, not an error."""
    figure = figures.distinct_share([{**row, "low": None, "high": None} for row in share_rows()])
    assert all(len(axes.lines) == 0 for axes in figure.axes)
    FigureCanvasAgg(figures.distinct_share([])).draw()


def test_training_curve_shows_loss_rate_and_checkpoints():
    """Raw loss, its centred mean, the learning rate, short marks for recorded and full ones for used checkpoints."""
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
