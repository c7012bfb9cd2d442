"""Decoded pixels in the store."""

import os

import numpy as np
import pytest
from PIL import Image

from experiments.datasets import Arrays, DataError, Folder
from experiments.datasets import image_reader as reader
from experiments.datasets.pixels import decoded, states
from experiments.datasets.source import _load
from experiments.store.errors import StoreError
from experiments.store.inventory import listing


def write(folder, count=6):
    folder.mkdir(exist_ok=True)
    for number in range(count):
        Image.new("L", (4, 4), number).save(folder / f"{number}.png")


def read(source):
    """As another process would."""
    _load.cache_clear()
    return source.load()


@pytest.fixture
def opened(monkeypatch):
    """The names of the files that are decoded."""
    names, plain = [], reader._decoded
    monkeypatch.setattr(reader, "_decoded", lambda image, *rest: names.append(image.name) or plain(image, *rest))
    return names


def test_files_are_decoded_once(tmp_path, opened):
    """Claim: a second process maps the same pixels, and has the same identity; a changed, added or other file is noticed."""
    write(tmp_path / "images")
    source = Folder(root=tmp_path / "images", size=4, channels=1, store=tmp_path / "store")
    first = read(source)
    assert len(opened) == 6
    again = read(source)
    assert len(opened) == 6
    assert isinstance(again.train.pixels, np.memmap)
    plain = read(Folder(root=tmp_path / "images", size=4, channels=1))
    for images in (again, plain):
        assert images.train.digest() == first.train.digest()
        assert images.train.names.tolist() == first.train.names.tolist()
    [row] = listing(tmp_path / "store")
    assert (row["class"], row["state"]) == ("Decoded", "stored")

    before, time = len(opened), (tmp_path / "images" / "3.png").stat().st_mtime_ns
    Image.new("L", (4, 4), 9).save(tmp_path / "images" / "3.png")
    os.utime(tmp_path / "images" / "3.png", ns=(time, time))  # the same size and time: the time of the change of status tells
    assert 9 in np.concatenate([part.pixels for part in (read(source).train, read(source).validation)])
    assert len(opened) == before + 6
    read(Folder(root=tmp_path / "images", size=4, channels=3, store=tmp_path / "store"))
    assert len(opened) == before + 12


def test_what_was_changed_is_said_every_time(tmp_path, capsys):
    """Claim: the notes of the reader are kept with the pixels."""
    write(tmp_path / "images")
    Image.new("LA", (4, 4), (0, 9)).save(tmp_path / "images" / "clear.png")
    source = Folder(root=tmp_path / "images", size=4, store=tmp_path / "store")
    for _ in range(2):
        read(source)
        assert capsys.readouterr().err == "note: transparent images are shown on white: clear.png\n"


def test_nothing_is_kept_of_files_that_cannot_be_used(tmp_path):
    """Claim: an error leaves no pixels; when the files are repaired, they are read."""
    write(tmp_path / "images")
    good = (tmp_path / "images" / "2.png").read_bytes()
    (tmp_path / "images" / "2.png").write_bytes(good[:30])
    source = Folder(root=tmp_path / "images", size=4, store=tmp_path / "store")
    with pytest.raises(DataError, match=r"damaged .*: 2\.png"):
        read(source)
    assert listing(tmp_path / "store") == []
    (tmp_path / "images" / "2.png").write_bytes(good)
    assert len(read(source).train) == 5


def test_damaged_pixels_are_noticed(tmp_path):
    write(tmp_path / "images")
    source = Folder(root=tmp_path / "images", size=4, store=tmp_path / "store")
    read(source)
    [path] = (tmp_path / "store").rglob("pixels.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"pixels\.npy is not what was stored: delete"):
        read(source)


def test_a_store_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.datasets.pixels.os.access", lambda *_: False)
    write(tmp_path / "images")
    assert len(read(Folder(root=tmp_path / "images", size=4, store=tmp_path / "store")).train) == 5
    assert not (tmp_path / "store").exists()


def test_arrays_are_converted_once(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((9, 2, 2, 3)))
    source = Arrays(root=tmp_path / "x.npy", channels=3, size=2, range=[0, 1], store=tmp_path / "store")
    first = read(source)
    monkeypatch.setattr("experiments.datasets.arrays.Conversion.fill", None)
    assert read(source).train.digest() == first.train.digest()


def test_the_order_of_threads_does_not_matter(tmp_path, monkeypatch):
    """Claim: every image is in its own place, whatever the number of threads and of images that are read ahead."""
    write(tmp_path / "images", 40)
    for threads, ahead in ((1, 1), (16, 7)):
        monkeypatch.setattr(reader, "_THREADS", threads)
        monkeypatch.setattr(reader, "_AHEAD", ahead)
        monkeypatch.setattr(reader.os, "cpu_count", lambda: 16)
        train = read(Folder(root=tmp_path / "images", size=4, channels=1)).train
        assert train.pixels[:, 0, 0, 0].tolist() == train.index.tolist()


def test_files_are_known_by_path_size_and_times(tmp_path):
    """Claim: a missing file is no error here, because reading it says more."""
    (tmp_path / "a").write_bytes(b"1")
    before = states([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").write_bytes(b"1")
    assert before[1] == [str(tmp_path / "b")]
    assert states([tmp_path / "a"]) == before[:1]
    assert decoded(None, "x", (2, 1, 1, 1), "uint8", lambda pixels: pixels.fill(7) or []).sum() == 14
