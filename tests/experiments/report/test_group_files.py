"""Scores of groups of training images."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.metrics.replicates import standard_errors
from experiments.report.group_files import GroupError, groups_of, write_groups

NAMES = ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png"]
TRAIN = Images(np.zeros((4, 1, 2, 2), np.uint8), np.array([3, 5, 6, 7]), np.array([0, 10, 2, 2]), names=np.array(NAMES))
QUERIES = Images(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]), np.array([-1, -1]), names=np.array(["a.png", "b.png"]))


def rows(groups) -> dict[str, list[int]]:
    return {name: members.tolist() for name, members in groups.items()}


def test_groups_are_classes_folders_or_those_of_a_file(tmp_path):
    """Claim: each names the rows of its images; classes are in the order of numbers; a file may leave out images or repeat them."""
    assert rows(groups_of(TRAIN, "label")) == {"0": [0], "2": [2, 3], "10": [1]}
    assert rows(groups_of(TRAIN, "folder")) == {"cats": [0, 1], "dogs": [2, 3]}
    (tmp_path / "ids.csv").write_text("id,group\n3,x\n6,y\n5,x\n3,y\n")
    assert rows(groups_of(TRAIN, str(tmp_path / "ids.csv"))) == {"x": [0, 1], "y": [0, 2]}
    (tmp_path / "names.csv").write_text("group, name\nMonet, dogs/2.png\n")
    assert rows(groups_of(TRAIN, str(tmp_path / "names.csv"))) == {"Monet": [3]}


def test_the_score_of_a_group_is_the_sum_of_its_images(tmp_path):
    """Claim: groups of a query are ordered by their sums, and errors are those of the sums of cross scores."""
    cross = np.random.default_rng(0).normal(size=(4, 4, 2, 4)).astype(np.float32)
    cross[..., 1, 2] += 50
    scores = Scores(cross.mean((0, 1)), QUERIES.index, TRAIN.index, cross=cross)
    groups = groups_of(TRAIN, "folder")
    for given in (scores, replace(scores, cross=None)):
        with write_groups(tmp_path, given, QUERIES, groups).open() as file:
            lines = list(csv.DictReader(file))
        assert [(line["query_name"], line["rank"]) for line in lines] == [(q, r) for q in ("a.png", "b.png") for r in ("1", "2")]
        for line in lines:
            members, query = groups[line["group"]], ["a.png", "b.png"].index(line["query_name"])
            assert line["images"] == "2"
            assert float(line["score"]) == pytest.approx(given.values[query, members].sum(), rel=1e-5)
            assert float(line["mean_score"]) == pytest.approx(given.values[query, members].mean(), rel=1e-5)
            if given.cross is not None:
                error = standard_errors(cross[:, :, query, members].sum(-1))
                assert float(line["standard_error"]) == pytest.approx(error, rel=1e-3)
        assert lines[2]["group"] == "dogs"
        if given.cross is not None:
            assert lines[2]["within_noise"] == "0"


@pytest.mark.parametrize(
    ("by", "content", "said"),
    [
        ("nowhere.csv", None, "choose label, folder or a CSV file that exists"),
        ("a.csv", "image,group\n3,x\n", "the file has the columns image, group: give group and id, or name"),
        ("a.csv", "", "columns of nothing"),
        ("a.csv", "id,group\n", "the file has no lines"),
        ("a.csv", "id,group\n3,x\n4,x\n", "line 3 names the image '4', which is not a training image"),
        ("a.csv", "id,group\n3,\n", "line 2 has no group"),
        ("a.csv", "id,group\n3,\xe9".encode("latin-1"), "it is not a CSV file in UTF-8"),
    ],
)
def test_bad_files_of_groups_are_refused(by, content, said, tmp_path):
    """Claim: the sentence says what is wrong where."""
    if content is not None:
        (tmp_path / by).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GroupError, match=said):
        groups_of(TRAIN, str(tmp_path / by))


def test_images_without_classes_or_folders_are_refused():
    """Claim: a group for each needs them."""
    with pytest.raises(GroupError, match="not every training image has a class"):
        groups_of(replace(TRAIN, label=np.array([0, -1, 1, 1])), "label")
    with pytest.raises(GroupError, match=r"have the same folder \(train\)"):
        groups_of(replace(TRAIN, names=np.array(["train/1", "train/2", "train/3", "train/4"])), "folder")
