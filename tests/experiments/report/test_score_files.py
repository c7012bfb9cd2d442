"""The files of ``task=attribute``: ids and names stand side by side."""

import csv

import numpy as np
import pytest

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.bootstrap import Bootstrap
from experiments.report.score_files import write_images, write_proponents, write_self_influence

NAMES = ["cats/1.png", "写真.png", 'x, "y"\n.gif', "train/7"]
TRAIN = Images(np.zeros((4, 1, 2, 2), np.uint8), np.array([3, 5, 6, 7]), np.array([0, 1, -1, 2]), names=np.array(NAMES))
QUERIES = Images(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]), np.array([-1, -1]), names=np.array(["img2.png", "img10.png"]))


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_line_names_the_query_and_the_training_image(tmp_path):
    """Claim: ids, names, labels and scores of a line belong to the same images; names of any script survive."""
    scores = Scores(np.array([[0.1, 0.4, 0.3, 0.2], [4.0, 1, 2, 3]], np.float32), QUERIES.index, TRAIN.index)
    paths = write_proponents(tmp_path, scores, QUERIES, TRAIN, top=2)
    assert [path.name for path in paths] == ["query-0.csv", "query-1.csv"]
    for row, path in enumerate(paths):
        lines = read(path)
        assert {(line["query"], line["query_name"]) for line in lines} == {(str(row), ["img2.png", "img10.png"][row])}
        assert [line["side"] for line in lines] == ["proponent"] * 2 + ["opponent"] * 2
        for line in lines:
            position = int(line["position"])
            assert line["index"] == str(TRAIN.index[position])
            assert line["name"] == NAMES[position]
            assert line["label"] == str(TRAIN.label[position])
            assert float(line["score"]) == np.float32(scores.values[row, position])
    assert [line["name"] for line in read(paths[0])][:2] == NAMES[1:3]


def test_scores_with_replicates_have_their_errors(tmp_path):
    """Claim: a line has the error of its score, whether its interval contains 0, and how sure its place is."""
    cross = np.zeros((4, 4, 2, 4), np.float32) + np.array([[9.0, 5, 5, -3], [4, 1, 2, 3]], np.float32)
    cross[..., 0, 1] += np.array([-5, 5, -4, 4])[:, None]  # a group of query draws moves this score only
    cross[..., 1, :] = np.random.default_rng(0).normal(0, 1, (4, 4, 4))
    scores = Scores(cross.mean((0, 1)), QUERIES.index, TRAIN.index, cross=cross)
    first, second = (read(path) for path in write_proponents(tmp_path, scores, QUERIES, TRAIN, top=2, bootstrap=Bootstrap(200)))
    certain, moved = first[:2]
    assert (certain["position"], certain["within_noise"], certain["probability"]) == ("0", "0", "1.000")
    assert float(certain["standard_error"]) == 0
    assert moved["position"] == "1"
    assert float(moved["standard_error"]) == pytest.approx(np.std([-5, 5, -4, 4], ddof=1) / 2, rel=1e-3)
    assert moved["within_noise"] == "1"
    assert 0.2 < float(moved["probability"]) < 0.8
    assert next(line for line in first if line["side"] == "opponent")["probability"] == "1.000"
    assert {line["within_noise"] for line in second} == {"1"}


def test_rows_and_columns_of_the_scores_are_listed(tmp_path):
    """Claim: the list of images is in the order of the scores, by position."""
    write_images(tmp_path / "train.csv", TRAIN)
    lines = read(tmp_path / "train.csv")
    assert [(line["position"], line["index"], line["name"], line["label"]) for line in lines] == [
        (str(i), str(TRAIN.index[i]), NAMES[i], str(TRAIN.label[i])) for i in range(4)
    ]


def test_self_influence_is_listed_with_names(tmp_path):
    write_self_influence(tmp_path / "self.csv", np.array([1.0, 3, 2, 4]), TRAIN)
    lines = read(tmp_path / "self.csv")
    assert [(line["rank"], line["name"], float(line["self_influence"])) for line in lines] == [
        ("1", NAMES[3], 4.0), ("2", NAMES[1], 3.0), ("3", NAMES[2], 2.0), ("4", NAMES[0], 1.0)
    ]  # fmt: skip
