"""``data=arrays``: images and latents in files of arrays."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from attribution.checks import FieldError
from attribution.diffusion import DDPM, NoiseSchedule
from attribution.diffusion.samplers import DDIMSampler
from attribution.nodes import InMemory
from experiments.datasets import Arrays, DataError, Split

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (10, 3, 4, 6), dtype=np.uint8)
UNIT = RNG.random((10, 3, 4, 6)).astype(np.float32)
LATENTS = (5 * RNG.standard_normal((10, 4, 4, 6))).astype(np.float32)


def source(root, **settings):
    return Arrays(**{"root": root, "channels": 3, "size": [4, 6], "n_validation": 3, **settings})


def all_images(splits):
    """Pixels by id over both splits of one file, ``[N, C, H, W]``."""
    parts = (splits.train, splits.validation)
    assert not set(parts[0].index) & set(parts[1].index)
    return np.concatenate([p.x0().numpy() for p in parts])[np.argsort(np.concatenate([p.index for p in parts]))]


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
@pytest.mark.parametrize("last", [False, True])
def test_every_kind_of_file_and_layout(tmp_path, suffix, last):
    """Claim: the images are the same, whatever the file and wherever its channels are."""
    array, path = np.ascontiguousarray(PIXELS.transpose(0, 2, 3, 1)) if last else PIXELS, tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, array)
    elif suffix == "npz":
        np.savez(path, images=array, other=np.zeros(3))
    else:
        save_file({"images": torch.tensor(array)}, path)
    splits = source(path).load()
    np.testing.assert_array_equal(all_images(splits), PIXELS.astype(np.float32) * np.float32(2 / 255) - 1)
    assert (splits.train.pixels.dtype, len(splits.train), len(splits.validation)) == (np.uint8, 7, 3)
    assert splits.train.names.tolist() == [f"train/{i}" for i in splits.train.index]


def test_gray_images_need_no_axis_of_channels(tmp_path):
    np.save(tmp_path / "x.npy", PIXELS[:, 0])
    assert source(tmp_path / "x.npy", channels=1).load().train.shape == (1, 4, 6)


def test_a_square_of_channels_has_no_layout(tmp_path):
    """Claim: where channels may be first or last, the user says which."""
    np.save(tmp_path / "x.npy", PIXELS[:, :, :3, :3])
    with pytest.raises(DataError, match=r"data\.layout=auto: .*set data\.layout to NCHW or NHWC"):
        source(tmp_path / "x.npy", size=3).load()
    first, last = (source(tmp_path / "x.npy", size=3, layout=layout).load().train.pixels for layout in ("NCHW", "NHWC"))
    np.testing.assert_array_equal(first, last.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("kind", "tolerance"), [("float16", 2e-3), ("float32", 1e-6), ("float64", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (0, 255)])
def test_floats_in_a_stated_range(tmp_path, kind, tolerance, bounds):
    """Claim: low becomes -1, high becomes 1, and rounding beyond them is cut off."""
    low, high = bounds
    values = torch.tensor(low + (high - low) * UNIT).to(getattr(torch, kind))
    values[0, 0, 0, 0], values[0, 0, 0, 1] = low, high
    save_file({"img": values}, tmp_path / "x.safetensors")
    splits = source(tmp_path / "x.safetensors", range=bounds).load()
    expected = 2 * UNIT.astype(np.float64) - 1
    expected[0, 0, 0, :2] = -1, 1
    np.testing.assert_allclose(all_images(splits), expected, atol=tolerance)
    assert np.abs(all_images(splits)).max() == 1
    assert splits.train.pixels.dtype == np.float32


def test_latents_stay_as_they_are(tmp_path, capsys):
    """Claim: without bounds nothing is scaled or clipped, and figures get a scale of their own; an unusual scale is noted."""
    np.savez(tmp_path / "x.npz", latents=LATENTS)
    latents = source(tmp_path / "x.npz", channels=4, range="unbounded")
    np.testing.assert_array_equal(all_images(latents.load()), LATENTS)
    assert re.search(r"root mean square of the latents is [45]\.", capsys.readouterr().err)
    assert not latents.bounded
    assert 10 < latents.display == latents.load().validation.display < np.abs(LATENTS).max()
    bounded = source(tmp_path / "x.npz", channels=4, range=[-30, 30])
    assert (bounded.bounded, bounded.display) == (True, 1)


def test_labels_and_names(tmp_path):
    """Claim: labels and names stand by their images; text is numbered in natural order over both splits."""
    kinds = np.array([f"c{i % 3 * 5}" for i in range(10)])
    np.savez(tmp_path / "x.npz", x=PIXELS, y=kinds, names=np.array([f"img{i}é.png" for i in range(10)]))
    splits = source(tmp_path / "x.npz").load()
    for images in (splits.train, splits.validation):
        assert images.names.tolist() == [f"img{i}é.png" for i in images.index]
        assert images.label.tolist() == [i % 3 for i in images.index.tolist()]
    np.save(tmp_path / "a.npy", PIXELS)
    np.save(tmp_path / "a_labels.npy", np.arange(10)[:, None] + 7)
    (tmp_path / "a_names.txt").write_text("\n".join(map(str, range(100, 110))) + "\n")
    train = source(tmp_path / "a.npy").load().train
    assert [(label - 7, int(name) - 100) for label, name in zip(train.label, train.names, strict=True)] == [
        (i, i) for i in train.index
    ]


def test_labels_do_not_depend_on_how_many_images_are_taken(tmp_path):
    """Claim: text labels are numbered over all images, so that another number of validation images retrains nothing."""
    labels = np.array([f"class {i % 7}" for i in range(20)])
    np.savez(tmp_path / "a.npz", images=np.zeros((20, 8, 8), np.uint8), labels=labels)
    few, many = (source(tmp_path / "a.npz", channels=1, size=8, n_train=5, n_validation=n).load().train.label for n in (1, 15))
    np.testing.assert_array_equal(few, many)


def test_files_of_splits(tmp_path):
    """Claim: a folder has a file for each split, with ids from 0; one may be of another kind."""
    np.save(tmp_path / "train.npy", PIXELS[:6])
    save_file({"x": torch.tensor(PIXELS[6:])}, tmp_path / "validation.safetensors")
    splits = source(tmp_path, n_validation=None).load()
    np.testing.assert_array_equal(splits.train.pixels, PIXELS[:6])
    np.testing.assert_array_equal(splits.validation.pixels, PIXELS[6:])
    assert splits.validation.index.tolist() == [0, 1, 2, 3]
    assert len(source(tmp_path, n_train=4, n_validation=2).load().train) == 4


def test_blocks_do_not_matter(tmp_path, monkeypatch):
    """Claim: the images are the same when they are converted one by one."""
    np.savez(tmp_path / "x.npz", images=UNIT)
    whole = all_images(source(tmp_path / "x.npz", range=[0, 1], seed=1).load())
    monkeypatch.setattr("experiments.datasets.array_pixels._BLOCK", 1)
    np.testing.assert_array_equal(whole, all_images(source(tmp_path / "x.npz", range=[0, 1], seed=1, n_train=7).load()))


def test_identity_is_content(tmp_path):
    """Claim: file, layout and names are no part of the identity; the range is, because the values differ."""
    np.save(tmp_path / "a.npy", PIXELS)
    np.savez(tmp_path / "b.npz", data=PIXELS.transpose(0, 2, 3, 1), names=np.arange(10).astype(str))
    np.save(tmp_path / "c.npy", UNIT)
    a, b = (Split(source(tmp_path / name), "train") for name in ("a.npy", "b.npz"))
    assert a.fingerprint == b.fingerprint
    assert InMemory()(a).names.tolist() != InMemory()(b).names.tolist()
    c, d = (Split(source(tmp_path / "c.npy", range=bounds), "train") for bounds in ([0, 1], [-1, 1]))
    assert c.fingerprint != d.fingerprint


def test_values_far_inside_their_range_are_noted(tmp_path, capsys):
    """Claim: bilevel images and floats in [0, 1] under another range would be nearly black: a line says so."""
    np.save(tmp_path / "x.npy", PIXELS > 127)
    source(tmp_path / "x.npy").load()
    assert "from 0 to 1 only: check data.levels=255" in capsys.readouterr().err
    assert set(np.unique(source(tmp_path / "x.npy", levels=1).load().train.x0())) == {-1, 1}
    np.save(tmp_path / "y.npy", UNIT)
    source(tmp_path / "y.npy", range=[0, 255]).load()
    assert "check data.range=[0,255]" in capsys.readouterr().err


def bad_values():
    nan, outside = UNIT.copy(), UNIT.copy()
    nan[3, 0, 0, 0], nan[5, 1, 1, 1] = np.nan, np.inf
    outside[2] += 1
    cut = (np.float16(0), np.arange(10), np.array([{}] * 10, dtype=object))
    return [
        (UNIT, {}, r"data\.range is missing: .* floats, from 0\.\d+ to 0\.9\d+; .*\[0,1\] or \[-1,1\], or unbounded"),
        (nan, {"range": [0, 1]}, r"have values that are not finite \(repair or remove\): row [35]"),
        (outside, {"range": [0, 1]}, r"1 have values outside data\.range=\[0,1\], which go from .* to 1\.9.*: row 2"),
        (
            LATENTS[:, :3],
            {"range": [-1, 1]},
            r"7 have values outside .*unbounded for latents.*; of 3 images in .*, 3 have values outside",
        ),
        (PIXELS, {"range": [0, 1]}, r"data\.range=\[0,1\]: .* are integers, .*set data\.range=null"),
        (PIXELS, {"levels": 16}, r"outside 0 to data\.levels=16, .*set data\.levels to the largest possible value"),
        (PIXELS.astype(int) - 3, {}, r"go from -3 .*without negative values"),
        (PIXELS, {"levels": 70000}, r"data\.levels=70000: .* at most 65535"),
        (PIXELS, {"size": 4}, r"neither \[N, C, H, W\] nor \[N, H, W, C\] with data\.channels=3 and 4×4 .*data\.size=\[4,6\]"),
        (PIXELS[0, 0], {}, r"neither .*: give an array \[N, C, H, W\]"),
        (PIXELS.reshape(30, 4, 6), {}, r"set data\.channels=1 and data\.size=\[4,6\]"),
        (PIXELS, {"layout": "NHWC"}, r"with data\.layout=NHWC"),
        (PIXELS[:0], {}, r"holds no images"),
        (cut[0], {}, r"holds no images"),
        (cut[1], {}, r"neither"),
        (cut[2], {}, r"or holds Python objects"),
        (PIXELS.astype(complex), {}, r"holds complex128"),
        (PIXELS, {"images": "latents"}, r"data\.images=latents: .* but images \[10, 3, 4, 6\] uint8"),
        (PIXELS, {"n_train": 8}, r"data\.n_train=8 and data\.n_validation=3 of the 10 images"),
    ]


@pytest.mark.parametrize(("array", "settings", "message"), bad_values(), ids=[case[2][:30] for case in bad_values()])
def test_what_does_not_fit_is_an_error_with_its_setting(tmp_path, array, settings, message):
    """Claim: one sentence says what is wrong, in which images, and what to set."""
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(DataError, match=message):
        source(tmp_path / "x.npy", **settings).load()


def test_other_files_are_errors(tmp_path):
    """Claim: missing, damaged and unknown files, arrays without a name, and labels or names of another number are refused."""
    np.save(tmp_path / "whole.npy", PIXELS)
    content = (tmp_path / "whole.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(content[:200])
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "x.csv").write_text("1,2")
    np.savez(tmp_path / "two.npz", a=PIXELS, b=PIXELS)
    np.savez(tmp_path / "few.npz", images=PIXELS, labels=np.arange(9))
    np.savez(tmp_path / "real.npz", images=PIXELS, labels=np.linspace(0, 1, 10))
    (tmp_path / "whole_names.txt").write_text("one\ntwo\n")
    for name, message in {
        "cut.npy": "it is damaged",
        "text.npz": "it is damaged",
        "text.safetensors": "it is damaged",
        "absent.npy": "no such file or folder",
        "x.csv": r"must be one of \.npy, \.npz, \.safetensors",
        "two.npz": r"data\.images is missing: .*one of a \[10, 3, 4, 6\] uint8, b ",
        "few.npz": "10 images but 9 labels",
        "real.npz": r"labels \[10\] float64 must be one integer or text",
        "whole.npy": "10 images but 2 names",
        "": r"must hold one train file .*, but holds cut\.npy, few\.npz.* give the file",
    }.items():
        with pytest.raises(DataError, match=message):
            source(tmp_path / name).load()
    with pytest.raises(DataError, match=r"data\.root is missing"):
        source(None).load()


@pytest.mark.parametrize(
    "settings", [{"range": [1, 0]}, {"range": [0]}, {"range": "all"}, {"size": [4, 5, 6]}, {"size": 0}, {"channels": 0}]
)
def test_wrong_settings_are_errors(settings):
    with pytest.raises(FieldError, match=next(iter(settings))):
        source("x.npy", **settings)


def test_clipping_is_what_latents_need_off():
    """Claim: the sampler's estimate of values beyond [-1, 1] is theirs only without clipping."""
    process, x0, t = DDPM(NoiseSchedule(T=10)), torch.full((1, 4, 2, 2), 3.0), torch.tensor([5])
    epsilon = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    x_t = process.add_noise(x0, t, epsilon)
    free, clipped = (DDIMSampler(clip=clip).predicted_image(process, x_t, epsilon, t) for clip in (False, True))
    assert free == pytest.approx(x0, abs=1e-4)
    assert (clipped == 1).all()
