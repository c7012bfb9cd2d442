"""Pixels from image files as people have them."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from experiments.datasets import DataError
from experiments.datasets.image_files import find_images
from experiments.datasets.image_reader import Framing, read_images

COLORS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
PICTURE = Image.fromarray(COLORS)
GRAY = COLORS[:, :, 0]


def read(folder, shape=(3, 8, 12), **framing):
    """The pixels of all images of a folder, channels last."""
    files = find_images(folder, "data.root")
    pixels = read_images(files, range(len(files.paths)), Framing(shape, **framing), "data")
    assert pixels.dtype == np.uint8
    return pixels.transpose(0, 2, 3, 1)


def png(folder, name, depth, color, rows, extra=b""):
    """Write a PNG of 12 × 8 pixels by hand, for types that PIL does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 12, 8, depth, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    (folder / name).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""For each orientation in EXIF, how an upright picture is turned to be stored with it."""


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(
    ("suffix", "settings", "error"),
    [(".png", {}, 0), (".tif", {}, 0), (".webp", {"lossless": True}, 0), (".jpg", {"quality": 100, "subsampling": 0}, 6)],
)
def test_exif_rotations_are_applied(tmp_path, orientation, suffix, settings, error):
    """Claim: a picture is upright, and has its upright size, whatever its EXIF orientation; 0 and 9 mean nothing."""
    stored = PICTURE.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else PICTURE
    exif = Image.Exif()
    exif[0x112] = orientation
    stored.save(tmp_path / f"x{suffix}", exif=exif, **settings)
    assert np.abs(read(tmp_path)[0].astype(int) - COLORS).max() <= error


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".tiff", ".TIF", ".PNG"])
def test_lossless_kinds_keep_every_pixel(tmp_path, suffix):
    PICTURE.save(tmp_path / f"x{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read(tmp_path)[0], COLORS)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".gif", ".webp"])
def test_lossy_kinds_are_read_as_pil_reads_them(tmp_path, suffix):
    PICTURE.save(tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as image:
        np.testing.assert_array_equal(read(tmp_path)[0], np.asarray(image.convert("RGB")))


def test_a_wrong_suffix_does_not_matter(tmp_path):
    PICTURE.save(tmp_path / "x.jpg", "PNG")
    np.testing.assert_array_equal(read(tmp_path)[0], COLORS)


def test_the_main_picture_of_a_phone_s_jpeg_is_read(tmp_path):
    """Claim: a JPEG with further pictures appended (MPO) is its first picture, not an animation."""
    PICTURE.save(tmp_path / "x.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (12, 8))], quality=100, subsampling=0)
    assert np.abs(read(tmp_path)[0].astype(int) - COLORS).max() <= 6


def test_gray_and_color(tmp_path):
    """Claim: gray has three equal channels in RGB; colors become luma in gray; bilevel and palette images are 0 to 255."""
    Image.fromarray(GRAY).save(tmp_path / "0.png")
    PICTURE.save(tmp_path / "1.png")
    Image.fromarray(GRAY > 127).save(tmp_path / "2.png")
    palette = PICTURE.quantize(200)
    palette.save(tmp_path / "3.png")
    gray, color, bilevel, palettized = read(tmp_path)
    np.testing.assert_array_equal(gray, np.repeat(GRAY[:, :, None], 3, 2))
    np.testing.assert_array_equal(color, COLORS)
    np.testing.assert_array_equal(bilevel[:, :, 0], 255 * (GRAY > 127))
    np.testing.assert_array_equal(palettized, np.asarray(palette.convert("RGB")))
    gray, color, *_ = read(tmp_path, (1, 8, 12))
    np.testing.assert_array_equal(gray[:, :, 0], GRAY)
    assert np.abs(color[:, :, 0] - COLORS @ np.array([0.299, 0.587, 0.114])).max() <= 1


def test_transparency_is_shown_on_white(tmp_path, capsys):
    """Claim: α·color + (1 − α)·white, for alpha channels, palettes and transparent colors; opaque images are not mentioned."""
    alpha = np.random.default_rng(1).integers(0, 256, GRAY.shape, dtype=np.uint8)
    Image.fromarray(np.dstack([COLORS, alpha])).save(tmp_path / "a.png")
    Image.fromarray(np.dstack([GRAY, alpha])).save(tmp_path / "b.png")
    Image.fromarray(np.dstack([COLORS, alpha])).save(tmp_path / "c.webp", lossless=True, exact=True)
    Image.fromarray(np.zeros_like(GRAY)).save(tmp_path / "d.png", transparency=0)
    palette = Image.fromarray(np.zeros_like(GRAY), "P")
    palette.putpalette([0, 0, 0])
    palette.save(tmp_path / "e.png", transparency=bytes([51]))
    palette.save(tmp_path / "f.gif", transparency=0)
    Image.fromarray(np.dstack([COLORS, np.full_like(alpha, 255)])).save(tmp_path / "g.png")
    color, gray, webp, key, part, gif, opaque = read(tmp_path).astype(int)
    share = alpha[:, :, None] / 255
    assert np.abs(color - (share * COLORS + (1 - share) * 255)).max() <= 1
    np.testing.assert_array_equal(color, webp)
    assert np.abs(gray - (share * GRAY[:, :, None] + (1 - share) * 255)).max() <= 1
    assert (key.min(), part.min(), part.max(), gif.min()) == (255, 204, 204, 255)
    np.testing.assert_array_equal(opaque, COLORS)
    assert capsys.readouterr().err == "note: transparent images are shown on white: a.png, b.png, c.webp, d.png, e.png, f.gif\n"


def test_the_higher_8_of_16_bits_are_kept(tmp_path, capsys):
    """Claim: gray and colors, PNG and TIFF alike: 8 bits that were stored in 16, by × 257 or × 256, come back exactly."""
    for name, factor in (("a", 257), ("b", 256)):
        Image.fromarray(GRAY.astype(np.uint16) * factor).save(tmp_path / f"{name}.png")
        Image.fromarray(GRAY.astype(np.uint16) * factor).save(tmp_path / f"{name}.tif")
        png(tmp_path, f"{name}-color.png", 16, 2, [(row.astype(">u2") * factor).astype(">u2").tobytes() for row in COLORS])
    pixels = dict(zip(find_images(tmp_path, "").names, read(tmp_path), strict=True))
    for name, found in pixels.items():
        np.testing.assert_array_equal(found, COLORS if "color" in name else np.repeat(GRAY[:, :, None], 3, 2), err_msg=name)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"note: of 16 bits per channel, the higher 8 are kept: {', '.join(pixels)}"


def test_cmyk_becomes_rgb(tmp_path):
    """Claim: (1 − C)(1 − K) and so on, from TIFF and JPEG."""
    cmyk = np.dstack([COLORS // 2, np.full_like(GRAY, 50)])
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tif")
    Image.fromarray(np.full_like(cmyk, 50), "CMYK").save(tmp_path / "b.jpg", quality=100)
    tiff, jpeg = read(tmp_path).astype(float)
    assert np.abs(tiff - (255 - cmyk[:, :, :3].astype(float)) * (205 / 255)).max() <= 1
    assert np.abs(jpeg - 205 * 205 / 255).max() <= 3


def unusable(folder):
    """Write files that cannot be used, and one that can."""
    PICTURE.save(folder / "good.png")
    frames = [Image.new("RGB", (12, 8), color) for color in ("red", "blue")]
    for name in ("moving.gif", "moving.png", "moving.webp", "pages.tif"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:])
    whole = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (folder / "flipped.png").write_bytes(flipped)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpeg").write_text("not an image")
    (folder / "page.webp").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    Image.new("F", (12, 8)).save(folder / "real.tif")
    Image.new("I", (12, 8)).save(folder / "wide.tif")
    Image.new("L", (13, 8)).save(folder / "large.png")
    png(folder, "key.png", 16, 0, [bytes(24)] * 8, b"\0\0\0\2tRNS\0\0" + struct.pack(">I", zlib.crc32(b"tRNS\0\0")))


def test_one_error_lists_all_files_that_cannot_be_used(tmp_path):
    """Claim: damaged files, animations, other pixels and sizes are named in one line, by reason; nothing else is raised."""
    unusable(tmp_path)
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"14 of 15 images in {tmp_path} cannot be used: ")
    for reason, files in {
        "damaged or no image (repair or remove)": "cut.png, empty.jpg, flipped.png, page.webp, text.jpeg",
        "an animation or several pages (save the one image that you mean)": "moving.gif, moving.png, moving.webp, pages.tif",
        "no such file or directory": "gone.png",
        "pixels of type F (save as RGB or gray with 8 bits per channel)": "real.tif",
        "pixels of type I (save as RGB or gray with 8 bits per channel)": "wide.tif",
        "pixels of type I;16 (save as RGB or gray with 8 bits per channel)": "key.png",
    }.items():
        assert f"{reason}: {files}; " in message
    assert message.endswith(
        "not 12×8 pixels (width × height, data.size), with data.resize=none and data.crop=none (set data.resize to area, bilinear, "
        "bicubic or lanczos, and data.crop=center to keep proportions): large.png (13×8)"
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".gif", ".tif"])
def test_damaged_files_raise_nothing_else(tmp_path, suffix):
    """Claim: whatever is cut off or changed in a file, it is read, or refused by name."""
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x112] = 6
    PICTURE.save(content, Image.registered_extensions()[suffix], **({} if suffix in (".bmp", ".gif") else {"exif": exif}))
    whole, rng = content.getvalue(), np.random.default_rng(0)
    refused = 0
    for number in range(40):
        damaged = bytearray(whole[: rng.integers(len(whole))] if number % 2 else whole)
        for place in rng.integers(0, max(1, len(damaged)), 0 if number % 2 else 1 + number // 5):
            damaged[place] = rng.integers(256)
        (tmp_path / f"x{suffix}").write_bytes(damaged)
        try:
            read(tmp_path, resize="area")
        except DataError as error:
            refused += f"x{suffix}" in str(error)
    assert refused >= 15


def test_resizing_by_area_averages(tmp_path):
    """Claim: "area" is the mean over each new pixel's area (PIL rounds twice); without a crop the whole image is used."""
    PICTURE.save(tmp_path / "x.png")
    means = COLORS.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert np.abs(read(tmp_path, (3, 4, 6), resize="area")[0] - means).max() <= 1
    squeezed = COLORS.reshape(4, 2, 4, 3, 3).mean((1, 3))
    assert np.abs(read(tmp_path, (3, 4, 4), resize="area")[0] - squeezed).max() <= 1


def test_center_crops(tmp_path):
    """Claim: without resizing, the pixels in the middle; with it, the largest middle part of the wanted proportions."""
    PICTURE.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path, (3, 4, 6), crop="center")[0], COLORS[2:6, 3:9])
    np.testing.assert_array_equal(read(tmp_path, (3, 8, 8), crop="center", resize="area")[0], COLORS[:, 2:10])
    means = COLORS[:, 2:10].reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert np.abs(read(tmp_path, (3, 4, 4), crop="center", resize="area")[0] - means).max() <= 1
    tall = COLORS[:, 4:8].reshape(4, 2, 2, 2, 3).mean((1, 3))
    assert np.abs(read(tmp_path, (3, 4, 2), crop="center", resize="area")[0] - tall).max() <= 1
    with pytest.raises(DataError, match=r"smaller than 12×9 pixels .*data.resize=none .*x\.png \(12×8\)"):
        read(tmp_path, (3, 9, 12), crop="center")


@pytest.mark.parametrize(("resize", "pil"), [("bilinear", "BILINEAR"), ("bicubic", "BICUBIC"), ("lanczos", "LANCZOS")])
def test_other_filters_are_pil_s(tmp_path, resize, pil):
    PICTURE.save(tmp_path / "x.png")
    for size in ((4, 6), (16, 24)):
        expected = PICTURE.resize(size[::-1], Image.Resampling[pil])
        np.testing.assert_array_equal(read(tmp_path, (3, *size), resize=resize)[0], np.asarray(expected))


def test_crops_of_any_proportions(tmp_path):
    """Claim: no size is too small, and no proportions raise rounding errors."""
    for number, (width, height) in enumerate([(1, 1), (7, 3), (3, 7), (1001, 333), (640, 480)]):
        Image.new("L", (width, height), 100).save(tmp_path / f"{number}.png")
    for size in ((5, 3), (7, 9), (32, 32)):
        assert (read(tmp_path, (1, *size), resize="bicubic", crop="center") == 100).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"resize": "nearest"}, "resize=nearest: choose one of none, area"), ({"crop": "left"}, "crop=left"), ({}, "1 or 3 channels")],
)
def test_framings_that_do_not_exist(settings, message):
    with pytest.raises(DataError, match=message):
        Framing((3 if settings else 2, 8, 8), **settings)


def test_a_huge_image_is_refused_and_not_decoded(tmp_path, monkeypatch):
    """Claim: an image beyond PIL's limit is named with the others; one below it is read."""
    PICTURE.save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 8 // 2)
    assert len(read(tmp_path)) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12 * 8 // 2 - 1)
    with pytest.raises(DataError, match=r"1 of 1 images .* cannot be used: more than 94 pixels \(shrink\): x\.png"):
        read(tmp_path)


def test_many_files_that_cannot_be_used_are_listed(tmp_path):
    """Claim: of one reason, a hundred names are listed, and the number of the others."""
    for number in range(103):
        (tmp_path / f"{number}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"103 of 103 images .*: 0\.png, 1\.png, .*99\.png and 3 more$"):
        read(tmp_path)
