"""``data=folder``: images of one's own."""

import numpy as np
import pytest
from PIL import Image

from attribution.checks import FieldError
from attribution.nodes import InMemory
from experiments.datasets import DataError, Folder, Split


def write(folder, *names, size=(4, 4)):
    """Write an image under each name, all different; return their gray levels by name."""
    levels = {}
    for number, name in enumerate(names, 1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        levels[name] = number
        Image.new("L", size, number).save(folder / name)
    return levels


def test_a_random_split(tmp_path):
    """Claim: the splits are disjoint, of the asked numbers, in natural order; names, ids and pixels belong together."""
    written = write(tmp_path, *(f"img{i}.png" for i in range(30)))
    splits = Folder(root=tmp_path, size=4, channels=1, n_train=20, n_validation=5).load()
    assert (len(splits.train), len(splits.validation)) == (20, 5)
    assert not set(splits.train.index) & set(splits.validation.index)
    for images in (splits.train, splits.validation):
        assert [f"img{i}.png" for i in images.index] == images.names.tolist()
        assert [written[name] for name in images.names.tolist()] == images.pixels[:, 0, 0, 0].tolist()
        assert (np.diff(images.index) > 0).all()
        assert (images.label == -1).all()


def test_one_end_of_a_random_split_does_not_move_the_other(tmp_path):
    """Claim: validation images do not depend on the number of training images, nor these on them; the seed matters."""
    write(tmp_path, *(f"{i}.png" for i in range(30)))
    few, many, other = (Folder(root=tmp_path, size=4, n_validation=5, **s).load() for s in ({"n_train": 8}, {}, {"seed": 1}))
    assert set(few.train.index) < set(many.train.index)
    assert len(many.train) == 25
    assert few.validation.index.tolist() == many.validation.index.tolist() != other.validation.index.tolist()
    assert len(Folder(root=tmp_path, size=4).load().validation) == 3


def test_labels_are_folders(tmp_path):
    """Claim: folders are classes in natural order, with all that is in them; images outside have the label -1."""
    write(tmp_path, "a.png", "c10/x.png", "c2/deep/y.png", "c2/x.png")
    source = Folder(root=tmp_path, size=4, n_validation=1)
    images = [source.load().train, source.load().validation]
    labels = {name: label for part in images for name, label in zip(part.names.tolist(), part.label.tolist(), strict=True)}
    assert labels == {"a.png": -1, "c2/deep/y.png": 0, "c2/x.png": 0, "c10/x.png": 1}


def test_folders_of_splits(tmp_path, capsys):
    """Claim: train and validation are the splits, with the same numbers for the same classes; what lies outside is named."""
    write(tmp_path, "train/cat/1.png", "train/ox/2.png", "validation/dog/1.png", "validation/ox/1.png", "test/3.png", "stray.png")
    splits = Folder(root=tmp_path, size=4).load()
    assert splits.train.names.tolist() == ["train/cat/1.png", "train/ox/2.png"]
    assert splits.validation.names.tolist() == ["validation/dog/1.png", "validation/ox/1.png"]
    assert (splits.train.label.tolist(), splits.validation.label.tolist()) == ([0, 2], [1, 2])
    assert splits.train.index.tolist() == splits.validation.index.tolist() == [0, 1]
    assert capsys.readouterr().err == f"note: left out of {tmp_path}, outside of train and validation: stray.png, test/3.png\n"
    one = Folder(root=tmp_path, size=4, n_train=1).load()
    assert (len(one.train), len(one.validation)) == (1, 2)


def test_sizes_that_are_not_square(tmp_path):
    """Claim: size is [height, width]."""
    write(tmp_path, "a.png", "b.png", size=(6, 4))
    source = Folder(root=tmp_path, size=[4, 6], channels=1)
    assert source.shape == source.load().train.shape == (1, 4, 6)
    assert Folder(root=tmp_path, size=2, resize="area", crop="center").load().train.shape == (3, 2, 2)


def test_only_images_in_use_are_read(tmp_path):
    """Claim: a damaged file that no split has does not matter."""
    write(tmp_path, *(f"{i}.png" for i in range(9)))
    splits = Folder(root=tmp_path, size=4, n_train=4, n_validation=4).load()
    (unused,) = {f"{i}.png" for i in range(9)} - {*splits.train.names.tolist(), *splits.validation.names.tolist()}
    (tmp_path / unused).write_bytes(b"")
    Folder(root=f"{tmp_path}/", size=4, n_train=4, n_validation=4).load()
    with pytest.raises(DataError, match=rf"1 of 9 images in .* cannot be used: damaged .*: {unused}"):
        Folder(root=tmp_path, size=4, n_validation=1).load()


def test_identity_is_content(tmp_path):
    """Claim: the folder's place and the names of the files are no part of the identity; a changed pixel is."""
    write(tmp_path / "a", "1.png", "2.png", "3.png")
    write(tmp_path / "b", "x1.png", "x2.png", "x3.png")
    write(tmp_path / "c", "1.png", "2.png", "3.png", size=(8, 8))
    a, b, c, other = (
        Split(Folder(root=tmp_path / name, size=4, channels=channels, resize="area"), "train")
        for name, channels in (("a", 1), ("b", 1), ("c", 1), ("a", 3))
    )
    assert a.fingerprint == b.fingerprint == c.fingerprint != other.fingerprint
    assert InMemory()(a).names.tolist() != InMemory()(b).names.tolist()
    Image.new("L", (4, 4), 77).save(tmp_path / "b" / InMemory()(b).name(0))
    assert Split(Folder(root=f"{tmp_path}/b", size=4, channels=1), "train").fingerprint != a.fingerprint


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ([], {"root": None}, "data.root is missing"),
        ([], {}, r"data\.root=.*data: there is no such folder"),
        (["a.png"], {}, r"data.n_train=0 and data.n_validation=1 of the 1 images .*together at most 1"),
        (["a.png", "b.png"], {"n_train": 2}, r"data.n_train=2 and data.n_validation=1 of the 2"),
        (["a.png", "b.png"], {"n_validation": 0}, r"data.n_train=2 and data.n_validation=0"),
        (["train/a.png"], {}, r"has a folder train but no folder validation: .*data.root=.*train for a random split"),
        (["validation/a.png"], {}, r"has a folder validation but no folder train"),
        (["train/a.png", "validation/a.txt"], {}, r"data\.root=.*: the folder validation holds no image files"),
        (["train/a.png", "validation/a.png"], {"n_train": 2}, r"data.n_train=2: must be 1 to 1"),
        (["a.png", "b.png"], {"size": 8}, r"2 of 2 images .* not 8×8 pixels .*data.resize=none and data.crop=none"),
    ],
)
def test_what_does_not_fit_is_an_error_with_its_setting(tmp_path, files, settings, message):
    for name in files:
        write(tmp_path / "data", name) if name.endswith("png") else (tmp_path / "data" / name).parent.mkdir()
    with pytest.raises(DataError, match=message):
        Folder(**{"root": tmp_path / "data", "size": 4, **settings}).load()


@pytest.mark.parametrize("settings", [{"channels": 2}, {"size": 0}, {"size": [4, 5, 6]}, {"size": []}, {"size": [4, -1]}])
def test_wrong_shapes_are_errors(settings):
    with pytest.raises(FieldError, match=next(iter(settings))):
        Folder(**{"size": 4, **settings})
