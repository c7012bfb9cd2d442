"""Which files of a folder are images, and in which order."""

import contextlib
import os
import socket
import unicodedata

import pytest
from PIL import Image

from experiments.datasets import DataError
from experiments.datasets.image_files import KINDS, find_images


def images(folder, *names):
    """Write a small image under each name, in the format of its suffix."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(folder / name, {".tif": "TIFF", ".jpg": "JPEG"}.get((folder / name).suffix.lower()))


def names(folder):
    return list(find_images(folder, "data.root").names)


def test_order_is_natural(tmp_path):
    """Claim: numbers count by value, in files and folders; case and the encoding of accents do not matter; equal stems are two."""
    images(
        tmp_path, "img10.png", "img2.png", "IMG3.png", "img1.png", "img.png", "img01.png", "b10/1.png", "b2/1.png", "a.jpg", "a.png"
    )
    expected = ["a.jpg", "a.png", "b2/1.png", "b10/1.png", "img.png", "img01.png", "img1.png", "img2.png", "IMG3.png", "img10.png"]
    assert names(tmp_path) == expected
    accents = [unicodedata.normalize(form, name) for form, name in (("NFD", "é1.png"), ("NFC", "é2.png"), ("NFD", "é10.png"))]
    images(tmp_path / "accents", *accents)
    assert names(tmp_path / "accents") == accents


def test_all_kinds_in_any_case(tmp_path):
    images(tmp_path, *(f"x{case(kind)}{case(kind)}" for kind in KINDS for case in (str.lower, str.upper)))
    assert sorted(names(tmp_path)) == sorted(f"x{case(kind)}{case(kind)}" for kind in KINDS for case in (str.lower, str.upper))


def test_what_systems_leave_behind_is_left_out_silently(tmp_path, capsys):
    """Claim: hidden files and folders, thumbnails of systems, texts and sockets are no images."""
    images(tmp_path, "x.png", ".git/y.png", ".hidden.png", "@eaDir/x.png/thumb.jpg", "__MACOSX/a.png", "sub/.cache/z.jpg")
    for name in ("._x.png", "Thumbs.db", ".DS_Store", "desktop.ini", "labels.csv", "README"):
        (tmp_path / name).write_bytes(bytes([0, 5, 22, 7]) + b"Mac OS X")
    with socket.socket(socket.AF_UNIX) as listener:
        with contextlib.chdir(tmp_path):  # the path of a socket has a short limit
            listener.bind("socket.png")
        assert names(tmp_path) == ["x.png"]
    assert capsys.readouterr().err == ""


def test_images_of_other_kinds_are_named(tmp_path, capsys):
    """Claim: one line names images that are not read, by suffix, or by content if they have none; of many, the first."""
    images(tmp_path, "x.png")
    Image.new("L", (2, 2)).save(tmp_path / "scan", "PNG")
    for name in ("photo.HEIC", "logo.svg", "sub/raw.nef"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"?")
    assert names(tmp_path) == ["x.png"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: left out of {tmp_path}")
    assert line.endswith(": logo.svg, photo.HEIC, scan, sub/raw.nef")
    for number in range(20):
        (tmp_path / f"photo{number}.avif").write_bytes(b"?")
    names(tmp_path)
    assert capsys.readouterr().err.endswith("photo5.avif and 16 more\n")


def test_links_are_followed_once(tmp_path):
    """Claim: links to files and folders count, under their own names; a link to a folder above does not go around for ever."""
    images(tmp_path / "elsewhere", "a.png", "sub/b.png")
    folder = tmp_path / "folder"
    (folder / "empty").mkdir(parents=True)
    (folder / "file.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "empty" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    assert names(folder) == ["file.png", "linked/a.png", "linked/sub/b.png"]


def test_names_that_are_no_utf8_are_escaped(tmp_path):
    """Claim: every name can be written to a UTF-8 file."""
    content = tmp_path / "x.png"
    images(tmp_path, "x.png")
    try:
        os.rename(os.fsencode(content), os.fsencode(tmp_path) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    assert names(tmp_path) == ["caf\\xe9.png"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "^data.root=DIR: there is no such folder"),
        ("notes.txt", r"^data.root=DIR holds no image files \(\.png, .*\.tiff\)$"),
        ("x.heic", r"holds no image files .*only images of kinds that are not read: x\.heic"),
    ],
)
def test_folders_without_images_are_errors(tmp_path, name, message):
    if name is not None:
        (tmp_path / "nowhere" / "sub").mkdir(parents=True)
        (tmp_path / "nowhere" / name).write_bytes(b"?")
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "nowhere", "data.root=DIR")
