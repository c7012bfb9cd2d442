"""Subsets that models are retrained on."""

from types import SimpleNamespace

import numpy as np
import pytest

from attribution.checks import FieldError
from attribution.nodes import InMemory
from experiments.models.subsets import PublishedSubsets, RandomSubsets, VariedSubsets, check_variation
from tests.worlds import Blobs

TRAIN = InMemory()(Blobs(n=24))


def test_halves_are_halves_and_differ():
    """Claim: each subset has the fraction asked for, all differ, the seed decides, and fewer of them are the first."""
    masks = RandomSubsets(count=10, fraction=0.5, seed=1).masks(TRAIN)
    assert (masks.sum(1) == 12).all()
    assert len({mask.tobytes() for mask in masks}) == 10
    assert np.array_equal(RandomSubsets(count=4, seed=1).masks(TRAIN), masks[:4])
    assert not np.array_equal(RandomSubsets(count=10, seed=2).masks(TRAIN), masks)


def test_stratified_subsets_have_their_share_of_every_class():
    """Claim: of each class the same fraction."""
    masks = RandomSubsets(count=5, fraction=0.25, stratified=True).masks(TRAIN)
    for label in np.unique(TRAIN.label):
        inside = TRAIN.label == label
        assert (masks[:, inside].sum(1) == round(0.25 * inside.sum())).all()
    halves = RandomSubsets(count=200, fraction=0.5, stratified=True).masks(TRAIN.take([0]))  # a class of one image
    assert 0.35 < halves.mean() < 0.65


def test_sizes_vary_evenly():
    """Claim: the sizes go evenly from the least to the most; the images are random, and the seed decides."""
    masks = VariedSubsets(count=5, least=0.25, most=0.75, seed=1).masks(TRAIN)
    assert masks.sum(1).tolist() == [6, 9, 12, 15, 18]
    assert (masks[0] & ~masks[4]).any()  # not nested
    assert not np.array_equal(VariedSubsets(count=5, least=0.25, most=0.75, seed=2).masks(TRAIN), masks)
    for name, value in (("least", 0.7), ("most", 1.0), ("least", 0.0)):
        with pytest.raises(FieldError, match=f"{name}={value}"):
            VariedSubsets(count=5, **{name: value})


def test_weights_instead_of_removal():
    """Claim: weight 0 removes, another weighs down; what is taken away is one minus it."""
    removing, weighing = RandomSubsets(count=3), RandomSubsets(count=3, weight=0.99)
    masks = removing.masks(TRAIN)
    assert [selection.rows.tolist() for selection in removing.selections(TRAIN)] == [np.flatnonzero(m).tolist() for m in masks]
    for mask, selection in zip(masks, weighing.selections(TRAIN), strict=True):
        assert selection.weights_of(np.arange(24)).tolist() == np.where(mask, 1.0, 0.99).tolist()
    np.testing.assert_allclose(weighing.removed(TRAIN), 0.01 * ~masks)
    assert np.array_equal(removing.removed(TRAIN), 1.0 * ~masks)


def test_published_subsets_are_read(tmp_path):
    """Claim: a file of masks or of positions is taken as it is; one that does not fit says so."""
    masks = RandomSubsets(count=4).masks(TRAIN)
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "rows.npy", np.stack([np.flatnonzero(mask) for mask in masks]))
    for name in ("masks", "rows"):
        assert np.array_equal(PublishedSubsets(path=str(tmp_path / f"{name}.npy"), count=3).masks(TRAIN), masks[:3])
    np.save(tmp_path / "bad.npy", np.array([[30, 1]]))
    with pytest.raises(ValueError, match=r"positions .* below 24"):
        PublishedSubsets(path=str(tmp_path / "bad.npy")).masks(TRAIN)
    with pytest.raises(ValueError, match="no such file"):
        PublishedSubsets(path="nowhere.npy").masks(TRAIN)


def test_published_subsets_of_a_file_with_several_arrays(tmp_path):
    """Claim: the key names the array, whose masks may be packed to bits, the last byte padded; a wrong key is answered by those
    there are."""
    train = TRAIN.take(range(21))
    masks = RandomSubsets(count=4).masks(train)
    path = str(tmp_path / "published.npz")
    rows = np.stack([np.flatnonzero(mask) for mask in masks])
    np.savez(path, packed=np.packbits(masks, axis=1), masks=masks, rows=rows)
    for key in ("packed", "masks", "rows"):
        assert np.array_equal(PublishedSubsets(path=path, key=key, count=3).masks(train), masks[:3])
    with pytest.raises(ValueError, match=r"no array 'other'.*\['masks', 'packed', 'rows'\]"):
        PublishedSubsets(path=path, key="other").masks(train)


ALL, SOME, OTHER = np.ones(24, bool), np.arange(24) < 12, np.arange(24) % 2 == 0


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize(
    ("table", "said"),
    [
        (np.stack([SOME, ALL, OTHER]), r"subsets=3 subsets: subset 1 keeps every training image"),
        (np.stack([SOME, ~ALL, OTHER]), r"path=.*subsets \[1\] keep no training image"),
        (np.stack([SOME, SOME, SOME]), r"subsets=3 subsets: all 3 leave out the same images"),
        (np.array([[0, 1, 2], [3, 4, 3]]), r"path=.*subset 1 has one of them twice: give each"),
        (np.stack([SOME, OTHER]).astype(np.uint8), r"path=.*has one of them twice: save masks as booleans"),
        (np.stack([SOME, OTHER])[:, :20], r"path=.*bool \[2, 20\]: give masks \[M, 24\]"),
        (np.stack([SOME, OTHER]).astype(float), r"path=.*float64 \[2, 24\]"),
        (np.array([[0, 1], [-1, 2]]), r"path=.*positions"),
        (SOME, r"path=.*shape \[24\]"),
    ],
)
def test_subsets_that_show_nothing_are_refused(tmp_path, table, said, weight):
    """Claim: subsets that keep everything or nothing, that are all equal, or that are not masks or positions, are errors."""
    np.save(tmp_path / "subsets.npy", table)
    subsets = PublishedSubsets(path=str(tmp_path / "subsets.npy"), weight=weight)
    with pytest.raises(ValueError, match=said):
        check_variation(SimpleNamespace(subsets=subsets), subsets.masks(TRAIN))


@pytest.mark.parametrize(("fraction", "said"), [(0.99, "every training image"), (0.01, "no training image")])
def test_fractions_that_round_to_everything_or_nothing_are_refused(fraction, said):
    """Claim: the error names the subsets and says how to fix them."""
    subsets = RandomSubsets(count=4, fraction=fraction)
    with pytest.raises(ValueError, match=f"subsets=4 subsets: subset 0 keeps {said}: .*fraction nearer to 0.5"):
        check_variation(SimpleNamespace(subsets=subsets), subsets.masks(TRAIN))


def test_bad_settings_are_named():
    """Claim: impossible subsets are errors that name the field."""
    for field, value in (("weight", 1), ("weight", -0.5), ("fraction", 1.5), ("fraction", 0), ("count", 1)):
        with pytest.raises(FieldError, match=rf"RandomSubsets\.{field}={value}: ") as refused:
            RandomSubsets(**{"count": 3, field: value})
        assert refused.value.field == field


def test_a_fraction_that_keeps_nothing_is_refused():
    """Claim: a subset without images cannot be trained on; one of images with little weight can."""
    with pytest.raises(FieldError, match=r"fraction=0.01: a subset of 24 training images would be empty"):
        RandomSubsets(count=3, fraction=0.01).selections(TRAIN)
    assert len(RandomSubsets(count=3, fraction=0.01, weight=0.5).selections(TRAIN)) == 3


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (np.zeros((0, 24), bool), "shape \\[0, 24\\]"),
        (np.zeros((2, 24), bool), "subsets \\[0, 1\\] keep no training image"),
        (np.array([{"a": 1}], dtype=object), "not an npy file of numbers"),
        (np.ones(10, bool), "shape \\[10\\]"),
    ],
)
def test_unusable_files_are_named(tmp_path, table, said):
    """Claim: empty masks, subsets without images and pickled objects are errors with the path."""
    np.save(tmp_path / "masks.npy", table)
    with pytest.raises(ValueError, match=rf"masks\.npy.*{said}"):
        PublishedSubsets(path=str(tmp_path / "masks.npy")).masks(TRAIN)
