"""Files about groups of training images."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from attribution.estimators.scores import Scores
from attribution.images import Images
from experiments.datasets.groups import groups_of
from experiments.metrics.replicates import standard_errors
from experiments.report.group_files import write_groups, write_members

NAMES = ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png"]
TRAIN = Images(np.zeros((4, 1, 2, 2), np.uint8), np.array([3, 5, 6, 7]), np.array([0, 10, 2, 2]), names=np.array(NAMES))
QUERIES = Images(np.zeros((2, 1, 2, 2), np.uint8), np.array([0, 1]), np.array([-1, -1]), names=np.array(["a.png", "b.png"]))


def test_the_score_of_a_group_is_the_sum_of_its_images(tmp_path):
    """Claim: groups of a query are ordered by their sums, and errors are those of the sums of cross scores."""
    cross = np.random.default_rng(0).normal(size=(4, 4, 2, 4)).astype(np.float32)
    cross[..., 1, 2] += 50
    scores = Scores(cross.mean((0, 1)), QUERIES.index, TRAIN.index, cross=cross)
    groups = {"cats": np.array([0, 1]), "dogs": np.array([2, 3])}
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


def test_members_can_be_read_as_groups_again(tmp_path):
    """Claim: the file of the images of groups is a file of these groups."""
    groups = {"x": np.array([0, 3]), "y": np.array([1])}
    again = groups_of(TRAIN, str(write_members(tmp_path, TRAIN, groups)), distance=0.02)
    assert {name: rows.tolist() for name, rows in again.items()} == {"x": [0, 3], "y": [1]}
