"""Subsets of whole groups of training images."""

from dataclasses import replace

import numpy as np
import pytest

from attribution.checks import FieldError
from attribution.nodes import InMemory
from experiments.models.group_subsets import GroupSubsets, with_groups
from tests.worlds import Blobs

TRAIN = replace(InMemory()(Blobs(n=24)), label=np.arange(24) % 6)


def subsets(**fields):
    return GroupSubsets(**{"groups": "label", "distance": 0.02, "count": 8, **fields})


def test_whole_groups_are_kept_or_left_out():
    """Claim: half of the groups each, all different, the first of more; images of a group stay together."""
    masks = subsets().masks(TRAIN)
    assert masks.shape == (8, 24)
    kept = np.stack([masks[:, TRAIN.label == label].all(1) for label in range(6)], 1)
    assert np.array_equal(kept, np.stack([masks[:, TRAIN.label == label].any(1) for label in range(6)], 1))
    assert (kept.sum(1) == 3).all()
    assert len({tuple(row) for row in kept.tolist()}) == 8
    assert np.array_equal(kept, subsets().kept_groups(6))
    assert np.array_equal(subsets(count=20).masks(TRAIN)[:8], masks)
    assert not np.array_equal(subsets(seed=1).masks(TRAIN), masks)


def test_images_outside_of_clusters_stay():
    """Claim: a subset leaves out nothing but groups."""
    masks = with_groups(np.array([[True, False]]), {"a": np.array([0]), "b": np.array([2, 3])}, 5)
    assert masks.tolist() == [[True, True, False, False, True]]


def file(folder, lines):
    (folder / "groups.csv").write_text("id,group\n" + "\n".join(f"{TRAIN.index[row]},{group}" for row, group in lines))
    return str(folder / "groups.csv")


ALL = [(row, f"g{row % 4}") for row in range(24)]


@pytest.mark.parametrize(
    ("fields", "lines", "said"),
    [
        ({}, [(row, "one") for row in range(24)], "group one has all training images, and nothing would be left without it"),
        (
            {},
            [(row, f"g{row % 2}") for row in range(24)],
            "needs at least 3, but the training images have 2",
        ),
        ({}, [*ALL, (1, "g0")], r"1 training images are in several groups \(such as .*103\)"),
        ({}, ALL[:-2], r"2 training images are in no group \(such as .*166\)"),
        ({"count": 7}, ALL, "count=7: there are only 6 different subsets of 2 of 4 groups: give at most 6"),
        ({"kept": 0.1}, ALL, "kept=0.1: that is 0 of 4 groups"),
        ({"groups": "nowhere.csv"}, ALL, "groups=nowhere.csv: choose label, folder, duplicates or a CSV file that exists"),
        ({"groups": "duplicates", "distance": 0.0}, ALL, "distance=0.0: no two training images are as near: raise it"),
        ({"groups": "duplicates", "distance": 1.0}, ALL, "distance=1.0: group .* has all training images, .*: lower it"),
    ],
)
def test_groups_that_are_no_units_are_refused(fields, lines, said, tmp_path):
    """Claim: the error names the field and says what to do."""
    with pytest.raises(FieldError, match=said):
        subsets(**{"groups": file(tmp_path, lines), "count": 4, **fields}).masks(TRAIN)


@pytest.mark.parametrize(
    "wrong", [{"distance": -0.1}, {"distance": 1.1}, {"count": 1}, {"kept": 0.0}, {"kept": 1.0}, {"weight": 1.0}]
)
def test_fields_have_ranges(wrong):
    """Claim: refused when it is made."""
    with pytest.raises(FieldError, match=next(iter(wrong))):
        subsets(**wrong)
