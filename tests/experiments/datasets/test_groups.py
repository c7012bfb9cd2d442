"""Groups of training images: classes, folders, near-duplicates and files."""

from dataclasses import replace

import numpy as np
import pytest

from attribution.images import Images
from experiments.datasets.groups import GroupError, groups_of, summary

NAMES = ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png"]
TRAIN = Images(np.zeros((4, 1, 2, 2), np.uint8), np.array([3, 5, 6, 7]), np.array([0, 10, 2, 2]), names=np.array(NAMES))
NEAR = 0.02


def rows(groups) -> dict[str, list[int]]:
    return {name: members.tolist() for name, members in groups.items()}


def test_groups_are_classes_folders_or_those_of_a_file(tmp_path):
    """Claim: each names the rows of its images; classes are in the order of numbers; a file may leave out images or repeat them."""
    assert rows(groups_of(TRAIN, "label", NEAR)) == {"0": [0], "2": [2, 3], "10": [1]}
    assert rows(groups_of(TRAIN, "folder", NEAR)) == {"cats": [0, 1], "dogs": [2, 3]}
    (tmp_path / "ids.csv").write_text("id,group\n3,x\n6,y\n5,x\n3,y\n")
    assert rows(groups_of(TRAIN, str(tmp_path / "ids.csv"), NEAR)) == {"x": [0, 1], "y": [0, 2]}
    (tmp_path / "names.csv").write_text("group, name\nMonet, dogs/2.png\n")
    assert rows(groups_of(TRAIN, str(tmp_path / "names.csv"), NEAR)) == {"Monet": [3]}


def test_near_duplicates_are_clusters_of_chains():
    """Claim: an image joins those that it is near to, however long the chain; copies too; others are in no group."""
    pixels = np.zeros((7, 1, 5, 5), np.float32)
    pixels[1:4, 0, 0, 0] = [0.1, 0.2, 0.3]  # each 0.01 of the range, by root mean square, from the next
    pixels[4:6], pixels[6] = 0.5, -0.5
    train = Images(pixels, 10 + np.arange(7), np.full(7, -1), names=np.array(list("abcdefg")))
    assert rows(groups_of(train, "duplicates", 0.011)) == {"a": [0, 1, 2, 3], "e": [4, 5]}
    assert rows(groups_of(train, "duplicates", 0.009)) == {"e": [4, 5]}
    assert rows(groups_of(train, "duplicates", 0.5)) == {"a": [0, 1, 2, 3, 4, 5, 6]}
    said = summary(groups_of(train, "duplicates", 0.011), "duplicates", 0.011, 7)
    assert said.startswith("2 groups (clusters of near-duplicates, which differ by at most 0.011 of the range of pixels) of 2 to 4")
    assert said.endswith("6 of 7 training images together")
    with pytest.raises(GroupError, match="no two training images are as near: raise it") as error:
        groups_of(train.take([0, 4, 6]), "duplicates", 0.009)
    assert error.value.distance


@pytest.mark.parametrize(
    ("by", "content", "said"),
    [
        ("nowhere.csv", None, "choose label, folder, duplicates or a CSV file that exists"),
        ("a.csv", "image,group\n3,x\n", "the file has the columns 'image', 'group': give group and id, or name"),
        ("a.csv", "", "the file is empty: give a line with the columns group and id"),
        ("a.csv", "id,group\n", "the file has no lines"),
        ("a.csv", "id,group\n3,x\n4,x\n", "line 3 names the image '4', which is not a training image"),
        ("a.csv", "id,group\n3,\n", "line 2 has no group"),
        ("a.csv", "id,group\n3,\xe9".encode("latin-1"), "it cannot be read as CSV in UTF-8"),
    ],
)
def test_bad_files_of_groups_are_refused(by, content, said, tmp_path):
    """Claim: the sentence says what is wrong where."""
    if content is not None:
        (tmp_path / by).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GroupError, match=said):
        groups_of(TRAIN, str(tmp_path / by), NEAR)


def test_images_without_classes_or_folders_are_refused():
    """Claim: a group for each needs them."""
    with pytest.raises(GroupError, match="not every training image has a class"):
        groups_of(replace(TRAIN, label=np.array([0, -1, 1, 1])), "label", NEAR)
    with pytest.raises(GroupError, match=r"have the same folder \(train\)"):
        groups_of(replace(TRAIN, names=np.array(["train/1", "train/2", "train/3", "train/4"])), "folder", NEAR)
