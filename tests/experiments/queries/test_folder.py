"""Folders of image files as queries."""

import numpy as np
import pytest
from PIL import Image

from attribution.nodes import InMemory
from experiments.datasets import DataError
from experiments.queries import ImageFolder


def test_folders_of_images(tmp_path):
    """Claim: images are in the order of names and in the model's channels; the identity is their content, not the folder."""
    colors = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(colors[1]).save(tmp_path / folder / "2.png")
        Image.fromarray(colors[0]).save(tmp_path / folder / "1.PNG")
        (tmp_path / folder / "notes.txt").write_text("no image")
    Image.fromarray(colors[0, :, :, 0]).save(tmp_path / "b" / "0.png")
    a, b = (ImageFolder(path=tmp_path / folder, shape=(3, 8, 8)) for folder in ("a", "b"))
    images = InMemory()(a)
    np.testing.assert_array_equal(images.pixels, colors.transpose(0, 3, 1, 2))
    assert (images.index.tolist(), images.label.tolist()) == ([0, 1], [-1, -1])
    np.testing.assert_array_equal(InMemory()(b).pixels[0], np.repeat(colors[:1, :, :, 0], 3, axis=0))
    assert InMemory()(ImageFolder(path=tmp_path / "b", shape=(1, 8, 8))).pixels[0, 0].tolist() == colors[0, :, :, 0].tolist()
    assert a.fingerprint != b.fingerprint
    (tmp_path / "a").rename(tmp_path / "c")
    assert ImageFolder(path=tmp_path / "c", shape=[3, 8, 8]).fingerprint == a.fingerprint


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.txt", lambda path: path.write_text(""), "holds no PNG or JPEG"),
        ("x.png", lambda path: Image.new("RGB", (9, 8)).save(path), "x.png is 9×8 pixels, the model's images 8×8"),
        ("x.png", lambda path: Image.new("I;16", (8, 8)).save(path), "x.png has pixels of type I;16"),
        ("x.jpg", lambda path: path.write_bytes(b"no image"), "x.jpg cannot be read"),
    ],
)
def test_wrong_folders_of_images_are_errors(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        ImageFolder(path=tmp_path, shape=(3, 8, 8)).compute(InMemory())
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder(path=tmp_path / "nowhere", shape=(3, 8, 8)).compute(InMemory())
