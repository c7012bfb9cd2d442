"""Folders of image files as queries."""

import numpy as np
import pytest
from PIL import Image

from attribution.checks import FieldError
from attribution.nodes import InMemory
from experiments.datasets import DataError
from experiments.queries import Folder, ImageFolder
from experiments.tasks.composition import experiment_of
from tests.experiments.tasks.compositions import composed


def test_folders_of_images(tmp_path):
    """Claim: images are in the natural order of names and in the model's channels; the identity is their content alone."""
    colors = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(colors[1]).save(tmp_path / folder / "10.png")
        Image.fromarray(colors[0]).save(tmp_path / folder / "2.PNG")
        (tmp_path / folder / "notes.txt").write_text("no image")
    Image.fromarray(colors[0, :, :, 0]).save(tmp_path / "b" / "0.png")
    a, b = (ImageFolder(path=tmp_path / folder, shape=(3, 8, 8)) for folder in ("a", "b"))
    images = InMemory()(a)
    np.testing.assert_array_equal(images.pixels, colors.transpose(0, 3, 1, 2))
    assert (images.index.tolist(), images.label.tolist()) == ([0, 1], [-1, -1])
    assert images.names.tolist() == ["2.PNG", "10.png"]
    np.testing.assert_array_equal(InMemory()(b).pixels[0], np.repeat(colors[:1, :, :, 0], 3, axis=0))
    assert InMemory()(ImageFolder(path=tmp_path / "b", shape=(1, 8, 8))).pixels[0, 0].tolist() == colors[0, :, :, 0].tolist()
    assert a.fingerprint != b.fingerprint
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "c" / "2.PNG").rename(tmp_path / "c" / "first.png")
    (tmp_path / "c" / "10.png").rename(tmp_path / "c" / "second.png")
    renamed = ImageFolder(path=tmp_path / "c", shape=[3, 8, 8])
    assert renamed.fingerprint == a.fingerprint
    assert InMemory()(renamed).names.tolist() == ["first.png", "second.png"]


def test_resizing_and_cropping(tmp_path):
    """Claim: queries are resized and cropped as asked; the same pixels are the same images however they came about."""
    level = np.arange(12, dtype=np.uint8).repeat(8).reshape(12, 8).T * 20
    (tmp_path / "wide").mkdir()
    (tmp_path / "fitting").mkdir()
    Image.fromarray(level).save(tmp_path / "wide" / "x.png")
    Image.fromarray(level[:, 2:10]).save(tmp_path / "fitting" / "x.png")
    cropped = ImageFolder(path=tmp_path / "wide", shape=(1, 8, 8), crop="center")
    np.testing.assert_array_equal(InMemory()(cropped).pixels[0, 0], level[:, 2:10])
    assert cropped.fingerprint == ImageFolder(path=tmp_path / "fitting", shape=(1, 8, 8)).fingerprint
    squeezed = ImageFolder(path=tmp_path / "wide", shape=(1, 8, 8), resize="area")
    assert squeezed.fingerprint != cropped.fingerprint
    assert squeezed.count == 1


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.txt", lambda path: path.write_text(""), r"queries\.path=.* holds no image files \(\.png, "),
        ("x.png", lambda path: Image.new("RGB", (9, 8)).save(path), r"not 8×8 pixels .*queries\.resize=none .*: x\.png \(9×8\)"),
        ("x.tif", lambda path: Image.new("F", (8, 8)).save(path), r"pixels of type F .*: x\.tif"),
        ("x.jpg", lambda path: path.write_bytes(b"no image"), r"damaged or no image .*: x\.jpg"),
    ],
)
def test_wrong_folders_of_images_are_errors(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        ImageFolder(path=tmp_path, shape=(3, 8, 8)).compute(InMemory())
    with pytest.raises(DataError, match=r"queries\.path=.*nowhere: there is no such folder"):
        ImageFolder(path=tmp_path / "nowhere", shape=(3, 8, 8)).compute(InMemory())


def test_files_of_images_are_no_queries_of_a_conditional_model(tmp_path):
    """Claim: they have neither a class nor an embedding, and are refused before anything is read."""
    experiment = experiment_of(composed("condition=labels", "model=dit_digits", "execution.device=cpu"))
    with pytest.raises(FieldError, match="image files have no class and no embedding"):
        Folder(path=tmp_path / "nowhere").node(experiment)
