"""Images with a condition, and with names."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.images import Images


def images(condition=None) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 2, 2)).astype(np.uint8)
    return Images(pixels, np.arange(10, 15), np.arange(5) % 2, condition=condition)


def test_a_condition_goes_with_its_images(tmp_path):
    """Claim: rows, saving and loading keep the condition of each image, of any type and shape."""
    for condition in (np.array([3, 1, 4, 1, 5]), np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)):
        given = images(condition)
        folder = tmp_path / str(condition.ndim)
        folder.mkdir()
        given.save(folder)
        for other in (given, Images.load(folder)):
            assert torch.equal(other.conditions([4, 0]), torch.from_numpy(condition[[4, 0]]))
            np.testing.assert_array_equal(other.take([4, 0]).condition, condition[[4, 0]])
            assert other.digest() == given.digest()


def test_without_a_condition_nothing_changes(tmp_path):
    """Claim: None adds no file, is None after loading and in rows, and leaves the digest what it was; a condition changes it."""
    plain = images()
    plain.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"pixels.npy", "index.npy", "label.npy", "levels.npy"}
    for other in (plain, Images.load(tmp_path), plain.take(slice(0, 5))):
        assert other.condition is None
        assert other.conditions() is None
        assert other.digest() == "a621eb8b0a221e7df7e2b782081e596bcea31c84a3bbc743c79ce925b8492e39"
    assert images(np.arange(5)).digest() != plain.digest()
    assert images(np.arange(5)).digest() != images(np.arange(5)[::-1]).digest()


def test_names_go_with_their_images(tmp_path):
    """Claim: rows, saving and loading keep each image's name; names are no part of the content, and may be of any script."""
    names = np.array(["cats/1.png", "x", "写真.png", "é $a_b$.jpg", "x,\n"])
    given = replace(images(), names=names)
    given.save(tmp_path)
    for other in (given, Images.load(tmp_path)):
        assert [other.name(row) for row in range(5)] == names.tolist()
        assert other.take([4, 0]).names.tolist() == names[[4, 0]].tolist()
        assert other.take(np.array([False, False, True, False, False])).name(0) == "写真.png"
        assert other.digest() == images().digest()
        assert other.named("train").names.tolist() == names.tolist()


def test_images_without_names_are_known_by_their_id():
    """Claim: without names, an image is its id, or its data set and its id."""
    assert (images().names, images().name(2)) == (None, "12")
    assert images().named("train").take([2, 0]).names.tolist() == ["train/12", "train/10"]


def test_every_image_has_its_own_id():
    """Claim: duplicate ids are an error that names one, and so are arrays of different lengths, however the images were made."""
    pixels, label = np.zeros((3, 1, 2, 2), np.float32), np.zeros(3, np.int64)
    images = Images(pixels, np.array([4, 7, 9]), label)
    with pytest.raises(ValueError, match="two images have the id 7"):
        Images(pixels, np.array([7, 4, 7]), label)
    with pytest.raises(ValueError, match="two images have the id 9"):
        images.take([2, 0, 2])
    with pytest.raises(ValueError, match="3 pixels, 2 index, 3 label"):
        Images(pixels, np.array([4, 7]), label)
    with pytest.raises(ValueError, match="1 names"):
        Images(pixels, images.index, label, names=np.array(["a"]))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.int64])
def test_classes_are_int64_however_they_are_kept(kind):
    """Claim: tables of classes take int64, and -1, which stands for no class, is no uint8."""
    classes = images(np.array([2, 0, 1, 0, 1], kind)).conditions([2, 0])
    assert (classes.dtype, classes.tolist()) == (torch.int64, [1, 2])
