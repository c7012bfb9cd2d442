"""Image tracing: its data at digits scale, its metrics against slow truths, its command line."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from attribution.images import Images
from attribution.nodes import InMemory, Node
from experiments import figures
from experiments.datasets import DataError, PatchesDigits, Split
from experiments.datasets.patches_digits import CONTRAST, FACTORS, HELD_OUT, SIZE, STRIDE
from experiments.metrics.estimate import exact_share
from experiments.queries import HeldOutOfEach
from experiments.queries.by_source import round_robin
from experiments.queries.pixel_classifier import PixelClassifier
from experiments.report.row import Estimate, Levels, Row, Subject
from experiments.tasks.composition import experiment_of
from experiments.tasks.settings import build, by_setting
from tests.experiments.figures.drawn import overlaps
from tests.experiments.tasks.test_cli import rows, run
from tests.experiments.tasks.test_configs import composed

TINY = [
    "data=patches_digits",
    "estimator=retrac",
    "data.patches=60",
    "data.zeros=10",
    "trainer.steps=30",
    "trainer.batch_size=16",
    "model.block_out_channels=[8,8]",
    "checkpoints.every=10",
    "hardware.accelerator=cpu",
    "execution.device=cpu",
    "samples.n=4",
    "estimator.checkpoints=2",
    "estimator.draws.n=4",
]
TRACING = [
    "benchmark=image_tracing",
    "benchmark.queries.validation.n=6",
    "benchmark.queries.generated.n=5",
    "benchmark.queries.generated.pool=7",
    "benchmark.k=[1,5,20]",
]


def planned(*arguments: str) -> list[Node]:
    """The nodes that the benchmark of a command line takes from the store; errors as the command line has them."""
    config = composed(*arguments)
    try:
        estimators = {"chosen": build(config, "estimator")}
        return build(config, "benchmark").nodes(experiment_of(config), estimators)
    except ValueError as error:
        raise by_setting(config, error) from error


def cut(position: int) -> tuple[np.ndarray, float, float]:
    """The patch with this id, cut in a loop as the class says it is, and which columns of its photograph it shows."""
    for photograph in load_sample_images().images:
        gray = photograph @ [0.299, 0.587, 0.114]
        for factor in FACTORS:
            height, width = (side // factor for side in gray.shape)
            for top in range(0, height - SIZE + 1, STRIDE):
                across = range(0, width - SIZE + 1, STRIDE)
                if position >= len(across):
                    position -= len(across)
                    continue
                left = across[position]
                squares = [
                    [gray[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor].mean() for x in range(left, left + SIZE)]
                    for y in range(top, top + SIZE)
                ]
                return np.rint(np.array(squares) * 16 / 255), left * factor / 640, (left + SIZE) * factor / 640
    raise AssertionError(position)


def test_patches_are_what_their_ids_say():
    """Claim: a patch is the square of means that a loop cuts at its id; no column of a photograph is in both splits."""
    splits = PatchesDigits().load()
    for images, held_out in ((splits.train, False), (splits.validation, True)):
        for row in np.flatnonzero(images.label == 0)[::23]:
            pixels, left, right = cut(int(images.index[row]))
            np.testing.assert_array_equal(images.pixels[row, 0], pixels)
            assert (left >= HELD_OUT[0] and right <= HELD_OUT[1]) == held_out
            assert held_out or right <= HELD_OUT[0] or left >= HELD_OUT[1]


def test_patches_are_distinct_and_of_something():
    """Claim: no two images are equal, within and across the splits; none of the patches is flat."""
    splits = PatchesDigits(patches=None, validation_patches=None).load()
    both = np.concatenate([splits.train.pixels, splits.validation.pixels]).reshape(-1, SIZE * SIZE).astype(int)
    assert len(np.unique(both, axis=0)) == len(both)
    assert np.ptp(both, axis=1).min() >= CONTRAST


def test_zeros_are_scikit_learns_and_disjoint():
    """Claim: zeros come last, labeled 1, as their rows of load_digits; one end moves nothing at the other, patches neither."""
    digits, splits = load_digits(), PatchesDigits().load()
    train, validation = (images.take(images.label == 1) for images in (splits.train, splits.validation))
    assert (len(train), len(validation), splits.train.label.tolist()) == (40, 100, [0] * 1000 + [1] * 40)
    first = int(train.index[0]) - next(i for i, image in enumerate(digits.images) if (image == train.pixels[0, 0]).all())
    for images in (train, validation):
        np.testing.assert_array_equal(images.pixels[:, 0], digits.images[images.index - first])
        assert (digits.target[images.index - first] == 0).all()
    assert not set(train.index) & set(validation.index)
    more = PatchesDigits(zeros=60, validation_patches=7).load()
    assert set(train.index) < set(more.train.index)
    np.testing.assert_array_equal(more.validation.index[-100:], validation.index)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zeros": 100}, r"data\.zeros=100 and data\.validation_zeros=100.* 178 zeros"),
        ({"zeros": 0}, r"data\.zeros=0"),
        ({"patches": 9999}, r"data\.patches=9999"),
        ({"validation_patches": 0}, r"data\.validation_patches=0"),
    ],
)
def test_more_than_there_is_is_an_error(settings, message):
    with pytest.raises(DataError, match=message):
        PatchesDigits(**settings).load()


def test_the_classifier_keeps_labels_and_tells_the_rest():
    """Claim: an image's own label is never replaced; unlabeled patches and zeros are told apart, held-out recall says how well."""
    splits = PatchesDigits(patches=200).load()
    classifier = PixelClassifier(splits.train)
    unlabeled = Images(splits.validation.pixels, splits.validation.index, np.full(200, -1), levels=16)
    assert (classifier.labels(unlabeled) == splits.validation.label).mean() > 0.98
    wrong = Images(splits.validation.pixels, splits.validation.index, 1 - splits.validation.label, levels=16)
    np.testing.assert_array_equal(classifier.labels(wrong), wrong.label)
    predicted = classifier.labels(unlabeled)
    for label, hits in classifier.recall(splits.validation).items():
        estimate = exact_share(hits)
        of_label = splits.validation.label == label
        assert estimate.value == pytest.approx((predicted[of_label] == label).mean())
        assert estimate.low < estimate.value <= estimate.high


def test_the_interval_of_few_images_is_wide():
    """Claim: three of three is not certainty: Clopper and Pearson's lower end is 0.025^(1/3)."""
    estimate = exact_share(np.array([True, True, True]))
    assert (estimate.value, estimate.high) == (1, 1)
    assert estimate.low == pytest.approx(0.025 ** (1 / 3))


def test_queries_of_each_source():
    """Claim: as many held-out images of the rare source as of the common one, by the seed; more than there are is an error."""
    experiment = experiment_of(composed("data=patches_digits"))
    node = HeldOutOfEach(n=9, seed=0).node(experiment)
    images = InMemory()(node)
    assert np.bincount(images.label).tolist() == [9, 9]
    assert node.count == 18
    assert isinstance(node, Split)
    assert node.name == "validation"
    assert set(InMemory()(HeldOutOfEach(n=9, seed=1).node(experiment)).index) != set(images.index)
    with pytest.raises(ValueError, match=r"HeldOutOfEach\.n=101: label 0 has 100 held-out images"):
        HeldOutOfEach(n=101, seed=0).node(experiment)


def test_rare_sources_come_first():
    """Claim: all of a source that the pool has few of, and of the others equally many, the first of each."""
    labels = np.array([0, 0, 1, 0, 2, 0, 2, 2, 0])
    assert round_robin(labels, 6).tolist() == [0, 1, 2, 3, 4, 6]
    assert round_robin(labels, 3).tolist() == [0, 2, 4]
    assert round_robin(labels, 9).tolist() == list(range(9))


def row(name: str, k: int, kind: str, value: float) -> Row:
    return Row(
        benchmark="image_tracing",
        metric=f"precision@{k}",
        subject=Subject(name),
        estimate=Estimate(value, value - 0.1, value + 0.05),
        levels=Levels(random=0.2, maximum=min(1, 40 / k)),
        queries=kind,
        about={"k": k, "queries_n": 9},
    )


@pytest.mark.parametrize("kinds", [["a"], ["a", "b", "c"], ["a", "b", "c", "d"], ["a", "b", "c", "d", "e", "f"]])
def test_curves_show_values_bands_and_levels(kinds):
    """Claim: a panel per kind with a line per estimator, its band, both levels; nothing covers anything."""
    found = [row(name, k, kind, v) for name, v in (("retrac", 0.8), ("tracin", 0.3)) for k in (1, 10, 100) for kind in kinds]
    figure = figures.over_k(found, "own source among the top k")
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in panels] == [f"{kind} queries (n = 9)" for kind in kinds]
    for axes in panels:
        lines = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
        assert lines.pop("95 % interval") == []  # only in the legend
        assert lines == {"retrac": [0.8] * 3, "tracin": [0.3] * 3, "random level": [0.2] * 3, "maximum": [1, 1, 0.4]}
        assert len(axes.collections) == 2
    assert not overlaps(figure)


@pytest.mark.slow
def test_image_tracing_on_the_command_line(tmp_path):
    """Claim: every source and kind has precision, AUROC, levels and paired differences, which are those of the stored scores."""
    out = tmp_path / "out"
    printed = run(tmp_path, *TINY, *TRACING, "benchmark.compare=[tracin,random]", f"hydra.run.dir={out}")
    found = rows(out)
    shares = {r["estimator"]: r for r in found if r["metric"] == "share_of_images"}
    assert {"classified as main by pixels", "classified as zeros by pixels"} == shares.keys()
    assert sum(r["value"] for r in shares.values()) == pytest.approx(1)
    assert {r["metric"] for r in found if r["queries"] == "generated"} == {"share_of_images", "recall_on_held_out"}
    pool = round(7 * shares["classified as zeros by pixels"]["value"])
    zeros = min(pool, max(2, 5 - (7 - pool)))
    for source, random in (("main", 60 / 70), ("zeros", 10 / 70)):
        made = zeros if source == "zeros" else 5 - zeros
        assert (f"no query out of 5 comes from source {source}" in printed) == (made == 0)
        for kind, n in (("validation", 6), ("generated", made)):
            of_kind = [r for r in found if r["queries"] == f"{kind} {source}"]
            assert bool(of_kind) == (n > 0)
            assert (out / f"proponents_{kind}_{source}.png").exists() == (n > 0)
            assert (out / f"other_sources_{kind}_{source}.png").exists() == (n > 0)
            for r in of_kind:
                assert r["queries_n"] == n
                level = {"auroc": 0.5, "first_rank_of_other_source": 71 / (71 - 70 * random)}.get(r["metric"], random)
                assert "difference" in r or r["random"] == pytest.approx(level)
            if of_kind:
                value = {(r["estimator"], r["metric"]): r["value"] for r in of_kind}
                for metric in ("precision@1", "precision@5", "precision@20", "auroc"):
                    difference = value["retrac", metric] - value["tracin", metric]
                    assert value["retrac − tracin", metric] == pytest.approx(difference)
                    assert ("retrac − random", metric) in value
    assert (out / "precision.png").exists()
    scores = {r["scores"] for r in found if r["estimator"] == "retrac" and r["queries"] == "validation zeros"}
    folder = Path(tmp_path / "store" / "TrajectoryScores" / scores.pop())
    label = PatchesDigits(patches=60, zeros=10).load().train.label
    best = np.argsort(-np.load(folder / "scores.npy"), axis=1)[:, :5]
    queries = PatchesDigits(patches=60, zeros=10).load().validation
    of_zeros = np.isin(np.load(folder / "query_index.npy"), queries.index[queries.label == 1])
    assert json.loads((folder / "axes.json").read_text()) == {}
    (at_5,) = [r for r in found if (r["estimator"], r["metric"], r["queries"]) == ("retrac", "precision@5", "validation zeros")]
    assert at_5["value"] == pytest.approx((label[best[of_zeros]] == 1).mean())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data=digits"], "benchmark.sources={0: 'main', 1: 'zeros'}"),
        (["benchmark.sources={0:zeros}"], "benchmark.sources={0: 'zeros', 1: 'zeros'}"),
        (["benchmark.k=[71]"], "benchmark.k[0]=71"),
        (["benchmark.k=[2.5]"], "benchmark.k[0]=2.5"),
        (["benchmark.k=5"], "benchmark.k=5"),
        (["benchmark.k=[]"], "benchmark.k=[]"),
        (["benchmark.rows=0"], "benchmark.rows=0"),
        (["benchmark.queries.validation.n=200"], "benchmark.queries.validation.n=200: label 0 has "),
        (["benchmark.queries.generated.n=8"], "benchmark.queries.generated.n=8: must be between 1 and pool=7"),
        (["data.zeros=100"], "data.zeros=100"),
    ],
)
def test_bad_settings_are_refused_before_training(arguments, said):
    """Claim: the dry run, which comes before any training, has an error that names the setting."""
    settings = [s for s in TINY if arguments[0] != "data=digits" or not s.startswith("data")]
    with pytest.raises(ValueError, match=re.escape(said)):
        planned(*settings, *TRACING, *arguments)
