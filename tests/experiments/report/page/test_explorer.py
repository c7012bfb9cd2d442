"""The images to explore on a page, against brute force."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from attribution.images import Images
from experiments.report.attributions import Attributions
from experiments.report.page import explorer
from experiments.report.page.explorer import TOP
from tests.experiments.report.page.made import attributions, data_of, images, page


def pixels_of(uri: str) -> np.ndarray:
    prefix = "data:image/png;base64,"
    assert uri.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix)))))


def test_every_query_has_its_proponents_and_opponents(tmp_path):
    """Claim: for both kinds of queries and each estimator, ids, order and scores are those of a full sort; images are pixels."""
    sets = [attributions(5, 50), attributions(3, 50, ("raw", "other", "third"), kind="generated", seed=7)]
    data = data_of(page(tmp_path, *sets))
    assert [kind["name"] for kind in data["kinds"]] == ["validation", "generated"]
    for kind, made in zip(data["kinds"], sets, strict=True):
        assert [query["id"] for query in kind["queries"]] == made.queries.index.tolist()
        assert kind["count"] == len(made.queries)
        assert [estimator["label"] for estimator in kind["estimators"]] == list(made.scores)
        for estimator in kind["estimators"]:
            for row, scores in enumerate(made.scores[estimator["label"]]):
                order = np.argsort(-scores, kind="stable")
                for side, values, expected in (("proponents", "up", order[:TOP]), ("opponents", "down", order[::-1][:TOP])):
                    shown = [data["train"][place]["id"] for place in estimator[side][row]]
                    assert shown == made.train.index[expected].tolist()
                    np.testing.assert_allclose(estimator[values][row], scores[expected], rtol=6e-6)
        for row, query in enumerate(kind["queries"]):
            np.testing.assert_array_equal(pixels_of(query["image"]), made.queries.pixels[row, 0])
            assert query["label"] == made.queries.label[row]


def test_scores_within_their_noise_are_marked(tmp_path):
    """Claim: of an estimator with replicates, every listed score says whether it is within its noise; others say nothing."""
    made = attributions(3, 50, ("raw", "other"))
    noise = np.full((3, 50), np.abs(made.scores["other"]).mean())
    estimators = data_of(page(tmp_path, replace(made, noise={"other": noise})))["kinds"][0]["estimators"]
    assert "up_noise" not in estimators[0]
    for values in ("up", "down"):
        expected = np.abs(estimators[1][values]) <= noise[0, 0]
        assert 0 < expected.sum() < expected.size or values == "down"
        np.testing.assert_array_equal(estimators[1][f"{values}_noise"], expected)


def test_each_training_image_is_on_the_page_once_and_only_if_it_is_listed(tmp_path):
    """Claim: the page has exactly the images that a query lists, each once, with its own pixels and id."""
    made = attributions(2, 500)
    data = data_of(page(tmp_path, made))
    ids = [image["id"] for image in data["train"]]
    listed = {
        int(made.train.index[i])
        for scores in made.scores.values()
        for row in scores
        for i in (*np.argsort(row)[:TOP], *np.argsort(row)[-TOP:])
    }
    assert set(ids) == listed
    assert len(ids) == len(listed) < 500
    for image in data["train"]:
        [position] = np.flatnonzero(made.train.index == image["id"])
        np.testing.assert_array_equal(pixels_of(image["image"]), made.train.pixels[position, 0])


def test_a_large_page_shows_fewer_queries(tmp_path, monkeypatch):
    """Claim: with too many scores or images, the first queries are on the page, and it knows how many there are."""
    made = attributions(40, 200)
    monkeypatch.setattr(explorer, "ENTRIES", 30 * 2 * 2 * TOP)
    data = data_of(page(tmp_path / "entries", made))
    assert [len(kind["queries"]) for kind in data["kinds"]] == [30]
    assert data["kinds"][0]["count"] == 40
    size = len(data["train"][0]["image"])
    monkeypatch.setattr(explorer, "IMAGE_BYTES", 120 * size)
    kind = (data := data_of(page(tmp_path / "images", made)))["kinds"][0]
    assert 1 <= len(kind["queries"]) < 30
    assert len(data["train"]) <= 1.2 * 120
    assert all(len(estimator["proponents"]) == len(kind["queries"]) for estimator in kind["estimators"])
    monkeypatch.setattr(explorer, "IMAGE_BYTES", 1)
    assert [len(kind["queries"]) for kind in data_of(page(tmp_path / "one", made))["kinds"]] == [1]


def test_fewer_training_images_than_are_listed(tmp_path):
    """Claim: with three training images, each side lists all three."""
    data = data_of(page(tmp_path, attributions(2, 3)))
    assert [len(line) for line in data["kinds"][0]["estimators"][0]["proponents"]] == [3, 3]


def test_scores_that_are_not_finite_are_left_out_and_named(tmp_path):
    """Claim: one estimator with NaN does not take the page away from the others."""
    made = attributions()
    made.scores["trak"][1, 2] = np.nan
    path = page(tmp_path, made)
    assert [estimator["label"] for estimator in data_of(path)["kinds"][0]["estimators"]] == ["kfac"]
    assert "Scores of trak for validation queries are not finite" in path.read_text()
    made.scores["kfac"][0, 0] = np.inf
    assert 'id="explorer"' not in page(tmp_path, made).read_text()


@pytest.mark.parametrize(("shape", "mode"), [((1, 6, 3), "L"), ((2, 6, 3), "L"), ((3, 6, 3), "RGB"), ((4, 6, 3), "RGB")])
def test_queries_are_saved_as_images(tmp_path, shape, mode):
    """Claim: every query is a file in its own size, whatever the number of channels; values outside [-1, 1] are clipped."""
    pixels = np.random.default_rng(0).uniform(-1.5, 1.5, (4, *shape)).astype(np.float32)
    queries = Images(pixels, np.array([3, 1, 8, 5]), np.full(4, -1))
    train = images(20, shape)
    page(tmp_path, Attributions("of source a/b", queries, train, {"kfac": np.random.default_rng(1).random((4, 20))}))
    folder = tmp_path / "images" / "queries_of source a%2Fb"
    assert sorted(path.name for path in folder.iterdir()) == ["1.png", "3.png", "5.png", "8.png"]
    with Image.open(folder / "8.png") as saved:
        assert (saved.size, saved.mode) == ((3, 6), mode)
        levels = np.asarray(saved)
    shown = np.clip((pixels[2, : 3 if mode == "RGB" else 1].transpose(1, 2, 0).squeeze() + 1) * 127.5, 0, 255)
    np.testing.assert_allclose(levels, shown, atol=0.51)
    assert not (tmp_path / "images" / "train").exists()


def test_large_images_have_reduced_thumbnails_and_files_in_full_size(tmp_path):
    """Claim: thumbnails of large images have at most 96 pixels on a side, and the page names the file of each image."""
    train, queries = images(4, (3, 200, 100)), images(2, (3, 200, 100), seed=5)
    data = data_of(page(tmp_path, Attributions("validation", queries, train, {"kfac": np.random.default_rng(0).random((2, 4))})))
    for image in (*data["train"], *data["kinds"][0]["queries"]):
        assert pixels_of(image["image"]).shape == (96, 48, 3)
        with Image.open(tmp_path / image["file"]) as saved:
            assert saved.size == (100, 200)


def test_scores_of_another_shape_are_refused():
    """Claim: scores that do not fit queries and images are an error that names the estimator."""
    with pytest.raises(ValueError, match=r"scores of kfac have the shape \(2, 5\)"):
        Attributions("validation", images(2), images(4), {"kfac": np.zeros((2, 5))})
