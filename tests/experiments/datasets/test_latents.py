"""Latent diffusion: images are encoded once, models see latents, people see pictures."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel

from attribution.checks import FieldError
from attribution.diffusion.samplers import DDIMSampler
from attribution.execution import Execution
from attribution.images import Images
from attribution.models.given import UntrainedModel
from attribution.nodes import InMemory, describe
from experiments.datasets import DataError, Digits, Latents, Split
from experiments.datasets.autoencoder import Autoencoder
from experiments.models.samples import Samples
from experiments.report.colors import colors
from tests.worlds import OBJECTIVE, trained

IMAGES = Digits(n_train=20, n_validation=6)


def tiny(seed: int = 0, **settings) -> AutoencoderKL:
    """An autoencoder of gray images that halves their sides; its weights are random."""
    torch.manual_seed(seed)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [4, 4], "norm_num_groups": 2, "in_channels": 1, "out_channels": 1, "latent_channels": 2}
    return AutoencoderKL(**{**levels, **sizes, "mid_block_add_attention": False, "scaling_factor": 0.5, **settings})


@pytest.fixture
def path(tmp_path):
    tiny(shift_factor=0.3).save_pretrained(tmp_path / "autoencoder")
    return str(tmp_path / "autoencoder")


def latents(path: str, **settings) -> Latents:
    given = {"images": IMAGES, "autoencoder": Autoencoder(path), "channels": 2, "size": 4, **settings}
    return Latents(**given)


def test_latents_are_scaled_means_of_the_encoder(path):
    """Claim: (mean - shift) · scale in the order of the images, by diffusers; ids, labels and names are those of the images."""
    images, found = IMAGES.load(), latents(path).load()
    network = AutoencoderKL.from_pretrained(path)
    for name in ("train", "validation"):
        before, after = getattr(images, name), getattr(found, name)
        with torch.no_grad():
            expected = (network.encode(before.x0()).latent_dist.mean - 0.3) * 0.5
        torch.testing.assert_close(after.x0(), expected, rtol=1e-4, atol=1e-5)
        for array in ("index", "label", "names"):
            assert (getattr(before, array) == getattr(after, array)).all()


def test_latents_are_normalized_by_mean_and_deviation(tmp_path):
    """Claim: ``latents_mean`` and ``latents_std`` come before the scale, and decoding is the inverse."""
    network = tiny(latents_mean=[0.5, -1.0], latents_std=[2.0, 0.5])
    network.save_pretrained(tmp_path)
    autoencoder, x0 = Autoencoder(str(tmp_path), batch_size=3), IMAGES.load().train.x0(slice(0, 7))
    with torch.no_grad():
        mean = network.encode(x0).latent_dist.mean
        expected = (mean - torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)) / torch.tensor([2.0, 0.5]).view(1, 2, 1, 1) * 0.5
        decoded = network.decode(mean).sample
    torch.testing.assert_close(autoencoder.encode(x0), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(autoencoder.decode(expected), decoded, rtol=1e-4, atol=1e-4)


def test_people_see_images(path):
    """Claim: figures show the images of the data set, also of chosen rows, and decoded pictures of generated latents."""
    images, found = IMAGES.load().train, latents(path).load().train
    np.testing.assert_allclose(colors(found, [3, 5]), colors(images, [3, 5]), atol=1 / 255)
    np.testing.assert_allclose(colors(found.take([3, 5]), [0, 1]), colors(images, [3, 5]), atol=1 / 255)
    autoencoder = Autoencoder(path)
    decoded = autoencoder.decode(found.x0([3])).clamp(-1, 1)
    generated = Images(found.pixels[3:4], np.array([0]), np.array([-1]), pictures=autoencoder.pictures(found.x0([3])))
    np.testing.assert_allclose(colors(generated, [0]), (decoded.permute(0, 2, 3, 1).numpy() + 1) / 2, atol=1 / 255)


def test_pictures_are_stored(path, tmp_path):
    """Claim: saved and loaded images have their pictures, which are no part of the content."""
    images = latents(path).load().validation
    images.save(tmp_path)
    loaded = Images.load(tmp_path)
    assert images.pictures is not None
    assert loaded.pictures is not None
    assert (loaded.pictures == images.pictures).all()
    assert loaded.digest() == images.digest() == replace(images, pictures=None).digest()


def test_images_are_encoded_once(path, tmp_path, monkeypatch):
    """Claim: a second process finds the latents in the store; another autoencoder makes others; the path does not matter."""
    source = latents(path, store=str(tmp_path / "store"))
    first = source.read().train.pixels
    calls = []
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: calls.append(len(x)) or encode(self, x))
    assert (source.read().train.pixels == first).all()
    assert calls == []
    tiny(shift_factor=0.3).save_pretrained(tmp_path / "moved")
    assert describe(Autoencoder(str(tmp_path / "moved"))) == describe(Autoencoder(path))
    assert (latents(str(tmp_path / "moved"), store=source.store).read().train.pixels == first).all()
    assert calls in ([], [1])  # the probe of the shape
    for changed in (tiny(1, shift_factor=0.3), tiny(shift_factor=0.2)):
        changed.save_pretrained(tmp_path / str(len(calls)))
        other = latents(str(tmp_path / str(len(calls))), store=source.store)
        assert not np.allclose(other.read().train.pixels, first)


def test_a_killed_encoding_resumes(path, tmp_path, monkeypatch):
    """Claim: shards that were encoded before a kill are kept."""
    monkeypatch.setattr("experiments.datasets.latents._SHARD", 4)
    source, encode, calls = latents(path, store=str(tmp_path)), Autoencoder.encode, []

    def killed(self, x):
        if len(x) == 4 and len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(Autoencoder, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        source.read()
    done = [n for n in calls if n == 4]
    calls.clear()
    monkeypatch.setattr(Autoencoder, "encode", lambda self, x: calls.append(len(x)) or encode(self, x))
    found = source.read()
    assert len(done) + len([n for n in calls if n == 4]) == 20 // 4 + 1  # of 6 validation images, a shard of 4 and one of 2
    torch.testing.assert_close(found.train.x0(), encode(source.autoencoder, IMAGES.load().train.x0()), rtol=1e-4, atol=1e-5)


def test_images_of_people_are_encoded_too(path):
    """Claim: queries from outside the data are encoded as the data is."""
    split = Split(IMAGES, "validation", (1, 4))
    found, data = InMemory()(latents(path).encoded(split)), latents(path).load().validation
    torch.testing.assert_close(found.x0(), data.x0([1, 4]), rtol=1e-4, atol=1e-5)
    assert found.pictures is not None


def test_generated_images_of_another_autoencoder_are_others(path, tmp_path):
    """Claim: pictures belong to the identity of samples, so that those of another decoder of the same latents are not shown."""
    torch.manual_seed(0)
    other = AutoencoderKL.from_pretrained(path)
    torch.nn.init.zeros_(other.decoder.conv_out.weight)
    other.save_pretrained(tmp_path / "other")
    made: Any = {"trained": trained(), "sampler": DDIMSampler(steps=2, clip=False), "shape": (2, 4, 4), "n": 2, "seed": 0}
    samples = [Samples(**made, decoder=Autoencoder(str(at))) for at in (path, tmp_path / "other")]
    assert samples[0].fingerprint != samples[1].fingerprint
    assert Samples(**made).fingerprint == Samples(**made, display=2.0).fingerprint
    a, b = latents(path).load(), latents(str(tmp_path / "other")).load()
    assert (a.train.pixels == b.train.pixels).all()


class Latent(torch.nn.Module):
    """A network of latents."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_generated_latents_have_pictures(path):
    """Claim: they are the decoded latents, also when shards are joined and rows are taken."""
    given: Any = {"sampler": DDIMSampler(steps=2, clip=False), "shape": (2, 4, 4), "n": 5, "seed": 0}
    untrained, autoencoder = UntrainedModel(model=Latent, objective=OBJECTIVE), Autoencoder(path)
    samples = Samples(trained=untrained, **given, execution=Execution("cpu", shard=2), decoder=autoencoder)
    images = InMemory()(samples)
    assert len(samples.parts(InMemory())) == 3
    expected = (autoencoder.decode(images.x0()).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(images.visible(), expected, rtol=0, atol=1.1 / 255)
    torch.testing.assert_close(images.take([4, 1]).visible(), images.visible([4, 1]))


def test_what_does_not_fit_is_refused(path, tmp_path):
    """Claim: the sentence names the setting and the right value."""
    with pytest.raises(DataError, match=r"data\.channels=4, data\.size=8.*set data\.channels=2 data\.size=4"):
        latents(path, channels=4, size=8).load()
    with pytest.raises(DataError, match=r"^data\.images\.n_train=0"):
        latents(path, images=replace(IMAGES, n_train=0)).load()
    with pytest.raises(FieldError, match=r"Latents\.flips=True: must be false"):
        latents(path, flips=True)
    with pytest.raises(FieldError, match=r"Latents\.root=files: must be null.*data\.images\.root"):
        latents(path, root="files")
    with pytest.raises(FieldError, match=r"Autoencoder\.path=.*nowhere: no autoencoder can be read there"):
        latents(str(tmp_path / "nowhere")).load()
    levels = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "attention_head_dim": 4}
    UNet2DModel(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1, **levels).save_pretrained(tmp_path / "unet")
    with pytest.raises(FieldError, match=r"Autoencoder\.path=.*unet: is a UNet2DModel, which does not encode images"):
        latents(str(tmp_path / "unet")).load()
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    with pytest.raises(FieldError, match=r"Autoencoder\.path=.*is a whole pipeline: give the folder of its autoencoder, as .*vae"):
        latents(str(tmp_path / "pipeline")).load()
    tiny(in_channels=3, out_channels=3).save_pretrained(tmp_path / "color")
    with pytest.raises(DataError, match="takes images with 3 channels, but these have 1"):
        latents(str(tmp_path / "color")).load()


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 9, 9)])
def test_sides_must_be_multiples(path, shape):
    """Claim: images that the autoencoder would return with another size are refused."""
    with pytest.raises(ValueError, match="give them sides that are multiples of 2"):
        Autoencoder(path).latent_shape(shape)


def test_shards_do_not_stay(path, tmp_path):
    """Claim: of a finished encoding, only the latents of a split remain in the store."""
    latents(path, store=str(tmp_path)).read()
    assert len([*tmp_path.glob("EncodedArrays/*/node.json")]) == 2
    assert [*tmp_path.glob("EncodedShard/*/*.npy")] == []
