"""What figures of images show, read from their artists; that nothing overlaps, from where these are drawn."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from attribution.images import Images
from experiments import figures
from experiments.figures.style import RED, text_width
from experiments.figures.thumbnails import caption
from tests.experiments.figures.drawn import overlaps, texts


def images(n: int, channels: int = 1, first: int = 0) -> Images:
    """n random 8×8 images with ids from ``first``."""
    pixels = np.random.default_rng(n).integers(0, 17, size=(n, channels, 8, 8)).astype(np.uint8)
    return Images(pixels, np.arange(first, first + n), np.full(n, -1), levels=16)


def named(figure: Figure) -> list[str]:
    """The texts below thumbnails."""
    return [text for text in texts(figure) if text.startswith("#")]


def boxes(figure: Figure) -> list[Rectangle]:
    """The red rectangles of the first axes, the one in the legend included."""
    patches = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]
    return [patch for patch in patches if to_hex(patch.get_edgecolor()) == RED]


def random_scores(names: list[str], queries: int, examples: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """τ ``[Q, N]`` for each name."""
    random = np.random.default_rng(0)
    return {name: (scale * random.standard_normal((queries, examples))).astype(np.float32) for name in names}


def test_proponents_by_hand():
    """Claim: the largest scores first, those nearest 0, the smallest first, each image with dataset id and score; per variant."""
    scores = {
        "retrac": np.array([[0.0, 0, 0, 0], [0.1, -3.0, 2.0, -5e-6]]),
        "tracin": np.array([[0.0, 0, 0, 0], [4, 3, 2, 1]]),
    }
    figure = figures.proponents(images(2, first=70), images(4, first=500), scores, rows=[1], top=2, neutral=1)
    assert named(figure) == [
        "#71", "#502\n+2.00", "#500\n+0.10", "#503\n-5.0e-06", "#501\n-3.00", "#503\n-5.0e-06",
        "#71", "#500\n+4.00", "#501\n+3.00", "#503\n+1.00", "#503\n+1.00", "#502\n+2.00",
    ]  # fmt: skip
    words = texts(figure)
    assert [words.count(word) for word in ("query", "retrac", "tracin", "top", "neutral", "most negative")] == [2, 1, 1, 2, 2, 2]
    assert len(figure.axes[0].images) == 12
    assert boxes(figure) == []


def test_more_variants_are_lines_of_each_query():
    """Claim: from four variants on each query is shown once, with a line for each variant, named, without neutral images."""
    names = [f"kfac damping={damping}" for damping in ("1e-09", "1e-07", "1e-05", "0.001")]
    scores = {name: np.array([[0.0, 1, 2], [0.0, 1, 2]]) + number for number, name in enumerate(names)}
    figure = figures.proponents(images(2, first=70), images(3), scores, rows=[0, 1], top=1)
    assert named(figure)[:9] == ["#70", *(t for n in range(4) for t in (f"#2\n{2 + n:+.2f}", f"#0\n{n:+.2f}"))]
    assert named(figure).count("#71") == 1
    words = [" ".join(text.split()) for text in texts(figure)]
    assert [words.count(name) for name in names] == [2] * 4
    assert "neutral" not in words


@pytest.mark.parametrize(("variants", "rows"), [(1, 40), (3, 12), (4, 9), (60, 2)])
def test_pages_stay_within_their_size_and_say_what_is_missing(variants, rows):
    """Claim: at most 16 × 30 inches whatever is asked for; queries and variants shown and left out add up to those asked for."""
    names = [f"balanced_kfac damping=1e-{i:02}" for i in range(variants)]
    figure = figures.proponents(images(rows), images(50), random_scores(names, rows, 50), range(rows), top=20, neutral=2)
    width, height = figure.get_size_inches()
    assert width <= 16
    assert height <= 30
    words = [" ".join(text.split()) for text in texts(figure)]
    lines = [word for word in words if word in names]
    missing = {kind: [int(w.split()[0]) for w in words if kind in w and "left out" in w] for kind in ("quer", "variants")}
    shown = len({name for name in named(figure) if "\n" not in name})
    assert shown + sum(missing["quer"]) == rows
    assert len(set(lines)) + sum(missing["variants"]) == variants
    assert {names[0], names[-1]} <= set(lines)
    (images_left_out,) = [word for word in words if "of 20 top" in word]
    assert int(images_left_out.split()[0]) < 20


def test_images_are_those_that_are_named():
    """Claim: pixels map from [-1, 1] to black..white, one channel or three, and stand above their own id."""
    for channels in (1, 3):
        train = images(5, channels)
        figure = figures.proponents(images(1, channels), train, {"a": np.arange(5.0)[None]}, rows=[0], top=1, neutral=0)
        shown = np.asarray(figure.axes[0].images[1].get_array())
        assert shown.shape == (8, 8, 3)
        assert shown == pytest.approx(np.broadcast_to(train.pixels[4].transpose(1, 2, 0) / 16, (8, 8, 3)), abs=1e-6)


def test_generated_queries_are_clipped():
    """Claim: a generated image beyond [-1, 1] is shown with its excess as black or white, the rest unchanged."""
    pixels = np.linspace(-2, 2, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    queries = Images(pixels, np.array([3]), np.array([-1]))
    figure = figures.proponents(queries, images(2), {"a": np.zeros((1, 2))}, rows=[0], top=1)
    shown = np.asarray(figure.axes[0].images[0].get_array())[..., 0]
    assert shown == pytest.approx(np.minimum(np.maximum((pixels[0, 0] + 1) / 2, 0), 1), abs=1e-6)


@pytest.mark.parametrize("variants", [2, 5])
def test_generally_influential_images_are_boxed_per_estimator(variants):
    """Claim: red boxes around the given positions of this estimator only; the legend says what they mean."""
    scores = {name: np.tile(np.arange(6.0), (3, 1)) for name in "abcde"[:variants]}
    boxed = {"a": {5, 3}, "b": set()}
    figure = figures.proponents(images(3), images(6), scores, [0, 2], 2, neutral=0, boxed=boxed, box_caption="in all tops")
    assert len(boxes(figure)) == 2 * 1 + 1
    assert "in all tops" in texts(figure)


@pytest.mark.parametrize(
    ("names", "top", "scale"),
    [
        (["retrac"], 1, 1.0),
        (["retrac", "kfac damping=1e-08 draws.n=250"], 6, 1e-5),
        ([f"balanced_kfac damping=1e-{i} draws.n=250 measurement.t={i}" for i in range(4)], 1, 1e5),
        ([f"k{i}" for i in range(5)], 30, 1e-5),
    ],
)
def test_nothing_overlaps_in_a_full_page(names, top, scale):
    """Claim: however many variants, long ids and names, small and large scores: no text covers another or an image."""
    scores = random_scores(names, 3, 40, scale)
    boxed = {names[0]: set(range(9))}
    train = images(40, 3, first=60_000)
    assert overlaps(figures.proponents(images(3, 3, first=60_000), train, scores, range(3), top, 1, boxed)) == []


def test_nothing_overlaps_in_a_grid():
    """Claim: ids of five digits have room."""
    assert overlaps(figures.grid(images(30, first=60_000))) == []


def test_the_overlap_check_can_fail():
    """Claim: a text that is put on another is found, as is one beyond the page."""
    figure = figures.grid(images(4))
    figure.axes[0].text(0.4, 0.8, "here")
    figure.axes[0].text(0.4, -0.3, "beyond")
    found = overlaps(figure)
    assert ("beyond", "page") in found
    assert any("here" in pair for pair in found)


def test_small_training_sets_show_all():
    """Claim: fewer training images than ``top``: all of them, and nothing is said to be left out."""
    figure = figures.proponents(images(1), images(3), {"a": np.arange(3.0)[None]}, [0], top=6, neutral=0)
    assert len(figure.axes[0].images) == 1 + 2 * 3
    assert not [word for word in texts(figure) if "left out" in word or "of 6" in word]


def test_grid_shows_every_image():
    """Claim: seven images in three columns, with their ids."""
    figure = figures.grid(images(7, 3, first=10))
    assert texts(figure) == [f"#{i}" for i in range(10, 17)]
    assert len({image.get_extent()[0] for image in figure.axes[0].images}) == 3


def files(n: int, channels: int = 1, size: tuple[int, int] = (8, 8)) -> Images:
    """n images from files with long names, of other scripts and with signs that mean something in formulas."""
    kinds = ["cats/IMG_20240131_{}.jpg", "写真 {}.png", "price $1_{}$ {{.webp", "{}.gif", "line\nbreak\t{}.bmp"]
    names = np.array([kinds[i % 5].format(i) for i in range(n)])
    pixels = np.random.default_rng(n).integers(0, 255, size=(n, channels, *size)).astype(np.uint8)
    return Images(pixels, np.arange(n), np.full(n, -1), names=names)


def test_files_have_their_names_below():
    """Claim: below the id stands the name of a file without its folder, or the end of a long one; unknown characters are boxes."""
    captions = [caption(files(5), row, 0.62) for row in range(5)]
    assert captions[3] == "#3\n3.gif"
    assert captions[0].startswith("#0\n…")
    assert captions[0].endswith("131_0")
    assert captions[1] == "#1\n□□ 1.png"
    assert captions[4].endswith("□4")
    assert all(text_width(line, 7) <= 0.62 for text in captions for line in text.split("\n"))
    assert caption(replace(files(1), names=np.array(["train/0"])), 0, 0.62) == "#0"
    assert caption(images(3, first=7), 2, 0.62) == "#9"


@pytest.mark.parametrize(("variants", "size"), [(1, (8, 8)), (3, (6, 12)), (5, (16, 4))])
@pytest.mark.slow
def test_nothing_overlaps_in_pages_with_names(variants, size):
    """Claim: names, and images that are not square, have room in every figure of images, and the figures can be drawn."""
    names = [f"tracin damping=1e-{i}" for i in range(variants)]
    queries, train, scores = files(4, 3, size), files(30, 3, size), random_scores(names, 4, 30)
    assert overlaps(figures.proponents(queries, train, scores, range(4))) == []
    assert overlaps(figures.side_by_side(queries, train, scores, range(4))) == []
    assert overlaps(figures.grid(train)) == []
    assert overlaps(figures.ranked(train, {"all": range(30)}, scores[names[0]][0], {1}, "boxed")) == []
    distances = {"a": np.ones(4), "b": np.ones(4)}
    assert overlaps(figures.regenerated("title", queries, {"a": queries, "b": queries}, distances, range(4))) == []


def test_images_keep_their_proportions():
    """Claim: an image of H × W pixels is drawn H/W as high as wide."""
    figure = figures.grid(files(3, 3, (6, 12)))
    for image in figure.axes[0].images:
        left, right, bottom, top = image.get_extent()
        assert abs((bottom - top) / (right - left)) == pytest.approx(0.5)
