"""Conditions of images: their labels, or embeddings from files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from attribution.checks import FieldError
from attribution.images import Images
from experiments.datasets import DataError, Digits, Source, Split, Splits
from experiments.datasets.conditions import Embeddings, Labels, NoCondition

DIGITS = Digits(n_train=20, n_validation=10)
ROWS = np.random.default_rng(0).normal(size=(1797, 3, 4)).astype(np.float32)
"""An embedding of every digit of scikit-learn, whose rows are the ids of images."""


@dataclass(frozen=True, kw_only=True)
class Few(Source):
    """Four images in either split with the same ids; the last training image has no label."""

    channels: int = 1
    size: int = 2
    flips: bool = False
    unlabeled: bool = False

    def read(self) -> Splits:
        images = Images(np.zeros((4, 1, 2, 2), np.uint8), np.arange(4), np.array([0, 1, 2, -1 if self.unlabeled else 0]))
        return Splits(images, images)


def splits(condition, source: Source = DIGITS) -> Splits:
    return replace(source, condition=condition).load()


def test_labels_are_conditions():
    """Claim: both splits carry their labels, and the images are those without a condition, with another identity."""
    plain, loaded = DIGITS.load(), splits(Labels(classes=10, dropout=0.1))
    for name in ("train", "validation"):
        images: Images = getattr(loaded, name)
        np.testing.assert_array_equal(images.condition, images.label)
        np.testing.assert_array_equal(images.pixels, getattr(plain, name).pixels)
    conditioned = replace(DIGITS, condition=Labels(classes=10))
    assert Split(conditioned, "train").fingerprint != Split(DIGITS, "train").fingerprint
    # What training drops is the objective's, and what generated images get is theirs.
    other = replace(DIGITS, condition=Labels(classes=10, dropout=0.5, generated="training"))
    assert Split(other, "train").fingerprint == Split(conditioned, "train").fingerprint
    assert replace(DIGITS, condition=None).description() == DIGITS.description()


def npy(folder: Path) -> dict:
    np.save(folder / "e.npy", ROWS)
    return {"path": folder / "e.npy"}


def npz_by_ids(folder: Path) -> dict:
    order = np.random.default_rng(1).permutation(len(ROWS))
    np.savez(folder / "e.npz", embeddings=ROWS[order], ids=order)
    return {"path": folder / "e.npz"}


def npz_by_names(folder: Path) -> dict:
    loaded = DIGITS.load()
    images = [(images, row) for images in (loaded.validation, loaded.train) for row in range(len(images))]
    names = [images.name(row) for images, row in images]
    np.savez(folder / "e.npz", text=np.stack([ROWS[images.index[row]] for images, row in images]), names=names, other=np.zeros(3))
    return {"path": folder / "e.npz", "key": "text"}


def npz_by_names_beside_ids(folder: Path) -> dict:
    npz_by_names(folder)
    content = dict(np.load(folder / "e.npz"))
    np.savez(folder / "e.npz", text=content["text"], names=content["names"], ids=np.zeros(len(content["names"]), int))
    return {"path": folder / "e.npz"}


def safetensors_per_image(folder: Path) -> dict:
    loaded = DIGITS.load()
    for images, name in ((loaded.train, "t"), (loaded.validation, "v")):
        save_file({images.name(row): ROWS[images.index[row]] for row in range(len(images))}, folder / f"{name}.safetensors")
    return {"path": folder / "t.safetensors", "validation": folder / "v.safetensors"}


@pytest.mark.parametrize("written", [npy, npz_by_ids, npz_by_names, npz_by_names_beside_ids, safetensors_per_image])
def test_embeddings_are_found_by_id_or_name(written, tmp_path):
    """Claim: in each layout of a file every image gets its own embedding, and the layout is no part of the identity."""
    condition = Embeddings(size=4, **written(tmp_path))
    loaded = splits(condition)
    for images in (loaded.train, loaded.validation):
        np.testing.assert_array_equal(images.condition, ROWS[images.index])
    np.save(tmp_path / "plain.npy", ROWS)
    plain = replace(DIGITS, condition=Embeddings(path=tmp_path / "plain.npy", size=4))
    assert Split(replace(DIGITS, condition=condition), "train").fingerprint == Split(plain, "train").fingerprint


@pytest.mark.parametrize("sequence", [True, False])
def test_a_pooled_embedding_follows_every_vector(sequence, tmp_path):
    """Claim: an image's row of the array ``pooled`` is at the end of each vector of its sequence, or of its only vector."""
    order, pooled = np.random.default_rng(1).permutation(len(ROWS)), ROWS[:, 0, :2] + 1
    rows = ROWS if sequence else ROWS[:, :1]
    np.savez(tmp_path / "e.npz", embeddings=(rows if sequence else rows[:, 0])[order], pooled=pooled[order], ids=order)
    loaded = splits(Embeddings(path=tmp_path / "e.npz", size=4, pooled=2))
    for images in (loaded.train, loaded.validation):
        assert images.condition is not None
        np.testing.assert_array_equal(images.condition[..., :4], rows[images.index])
        for vector in range(rows.shape[1]):
            np.testing.assert_array_equal(images.condition[:, vector, 4:], pooled[images.index])
    plain = splits(Embeddings(path=tmp_path / "e.npz", size=4))  # networks that take one embedding can use the file too
    np.testing.assert_array_equal(plain.train.condition, (rows if sequence else rows[:, 0])[plain.train.index])


def saved(folder: Path, **arrays) -> Path:
    np.savez(folder / "e.npz", **arrays)
    return folder / "e.npz"


def test_bad_conditions_are_refused(tmp_path):
    """Claim: the sentence names the setting, an image that it is about, and what to do."""
    with pytest.raises(DataError, match=r"condition=labels: 1 of 4 train images have no class \(first: train/3\): give every"):
        splits(Labels(classes=3), Few(unlabeled=True))
    with pytest.raises(FieldError, match=r"classes=2: the train images have labels up to 2: set at least 3"):
        splits(Labels(classes=2), Few())
    with pytest.raises(FieldError, match=r"dropout=1\.5: must be a number, within 0\.\.1"):
        Labels(classes=2, dropout=1.5)
    with pytest.raises(FieldError, match=r"dropout=0\.1: there is no condition to drop: set 0, or choose"):
        NoCondition(dropout=0.1)
    with pytest.raises(FieldError, match=r"generated=in_turn: embeddings belong to images"):
        Embeddings(path="x.npy", size=2, generated="in_turn")
    for path in ("nowhere.npy", "e.txt"):
        with pytest.raises(DataError, match=rf"condition\.path={path}: must be a file that exists, one of \.npy"):
            splits(Embeddings(path=path, size=4))
    path = saved(tmp_path, embeddings=ROWS)
    with pytest.raises(FieldError, match=r"size=5: the embeddings in .* have 4 numbers: set this size"):
        splits(Embeddings(path=path, size=5))
    with pytest.raises(DataError, match=r"condition\.key=text: .* has no such array, but embeddings"):
        splits(Embeddings(path=path, size=4, key="text"))
    with pytest.raises(DataError, match=r"same ids \(such as 0\): add an array names, or give condition\.validation=FILE"):
        splits(Embeddings(path=path, size=4), Few())
    with pytest.raises(DataError, match=r"no embedding for \d+ of 20 train images \(first: train/\d+, id \d+\); it has 5,"):
        splits(Embeddings(path=saved(tmp_path, embeddings=ROWS[:5]), size=4))
    with pytest.raises(DataError, match="values that are not finite"):
        splits(Embeddings(path=saved(tmp_path, embeddings=np.full_like(ROWS, np.nan)), size=4))
    with pytest.raises(DataError, match=r"the embeddings are 20×1×2×4; they must be N×D or N×L×D"):
        splits(Embeddings(path=saved(tmp_path, embeddings=ROWS[:, None, :2]), size=4))
    with pytest.raises(DataError, match=r"1797 embeddings but 1 different names: every embedding needs one"):
        splits(Embeddings(path=saved(tmp_path, embeddings=ROWS, names=["a"] * 1797), size=4))
    for ids, found in ((np.arange(1797)[:, None], r"\[1797, 1\] int64"), (np.arange(1797.0), r"\[1797\] float64")):
        with pytest.raises(DataError, match=rf"the ids {found} must be one integer for each embedding"):
            splits(Embeddings(path=saved(tmp_path, embeddings=ROWS, ids=ids), size=4))
    with pytest.raises(DataError, match=r"0 embeddings but 2 different ids: every embedding needs one"):
        splits(Embeddings(path=saved(tmp_path, embeddings=np.float32(1), ids=[0, 1]), size=4))
    np.save(tmp_path / "text.npy", np.full((1797, 4), "a"))
    with pytest.raises(DataError, match=r"the embeddings images are str\d+; they must be real numbers"):
        splits(Embeddings(path=tmp_path / "text.npy", size=4))
    np.savez(tmp_path / "e.npz", **{"train/0": ROWS[0], "train/1": ROWS[1, :2], "train/2": ROWS[2], "train/3": ROWS[3]})
    with pytest.raises(DataError, match=r"embeddings of different shapes, \(3, 4\) and \(2, 4\)"):
        splits(Embeddings(path=tmp_path / "e.npz", size=4), Few())
    for arrays, message in (
        ({"embeddings": ROWS}, r"condition\.pooled: .*e\.npz needs an array pooled \[M, P\] .* but has none: add it"),
        ({"embeddings": ROWS, "pooled": ROWS[:5, 0]}, r"condition\.pooled: .* but has 5×4"),
        ({"embeddings": ROWS, "pooled": ROWS[:, 0]}, r"pooled=3: the pooled embeddings of the train images are 20×4: set the last"),
        ({"embeddings": ROWS, "pooled": np.full((1797, 3), np.inf)}, "pooled embeddings of train images have values that are not"),
    ):
        with pytest.raises(ValueError, match=message):
            splits(Embeddings(path=saved(tmp_path, **arrays), size=4, pooled=3))
