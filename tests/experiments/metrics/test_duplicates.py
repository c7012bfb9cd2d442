"""Equal and nearly equal images, against all pairs."""

import numpy as np
import pytest

from attribution.images import Images
from experiments.metrics import duplicates as module
from experiments.metrics.duplicates import SAME, digests, duplicates


def made(pixels):
    return Images(np.asarray(pixels, np.float32), np.arange(len(pixels)), np.full(len(pixels), -1))


def search(images):
    return duplicates(images, list(digests(images)))


def all_pairs(images):
    """Nearly equal pairs by the definition, for images without exact copies."""
    x = images.x0().double().flatten(1).numpy()
    distances = [(i, j, np.sqrt(np.mean((x[i] - x[j]) ** 2))) for j in range(len(x)) for i in range(j)]
    return sorted((i, j) for i, j, distance in distances if distance <= 2 * SAME)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7), (4, 3, 2), (3, 16, 9)])
def test_near_equality_is_that_of_all_pairs(shape):
    """Claim: whatever the shape, the pairs are those whose root-mean-square difference is at most 2 % of the range."""
    rng = np.random.default_rng(sum(shape))
    base = rng.uniform(-1, 1, (12, *shape))
    noisy = base[rng.integers(12, size=60)] + rng.normal(size=(60, *shape)) * rng.uniform(0, 0.05, (60, 1, 1, 1))
    images = made(noisy)
    found = search(images)
    assert found.near == all_pairs(images)
    assert found.near
    assert found.complete


def test_the_limit():
    pixels = np.zeros((3, 1, 10, 10))
    pixels[1], pixels[2] = 2 * 0.0199, -2 * 0.0201
    assert search(made(pixels)).near == [(0, 1)]


def test_copies_are_groups_and_no_pairs():
    """Claim: further copies of an image are in its group only; values beyond [-1, 1], as of latents, are not taken for equal."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (20, 3, 6, 6))
    pixels[7] = pixels[13] = pixels[2]
    pixels[9] = pixels[2] + 0.02
    found = search(made(pixels))
    assert (found.equal, found.near) == ([[2, 7, 13]], [(2, 9)])
    beyond = search(made(np.stack([np.full((4, 2, 2), value) for value in (3.0, 5.0, -3.0)])))
    assert (beyond.equal, beyond.near) == ([], [])


def test_too_many_pairs_to_compare_them_all(monkeypatch):
    """Claim: then some pairs are found, all of them right, and the result says that it is not complete."""
    monkeypatch.setattr(module, "_COMPARED", 40 * 3 * 16.0)
    images = made(np.random.default_rng(0).uniform(-0.01, 0.01, (40, 3, 4, 4)))
    found = search(images)
    assert not found.complete
    assert 0 < len(found.near) <= 41
    assert set(found.near) <= set(all_pairs(images))


def test_a_single_image():
    assert (search(made(np.zeros((1, 1, 4, 4)))).equal, search(made(np.zeros((1, 1, 4, 4)))).near) == ([], [])
