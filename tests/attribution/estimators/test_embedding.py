"""Similarities of images, embeddings by encoders with local weights (tiny random ones), scores at random."""

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.estimators.clip import CLIP, MEAN, STD
from attribution.estimators.dino import DINO
from attribution.estimators.embedding import EmbeddingSimilarity, Pixels, Random
from attribution.estimators.encoder import IMAGENET_MEAN, IMAGENET_STD
from attribution.estimators.sscd import SSCD
from attribution.nodes import InMemory, describe
from tests.worlds import Blobs

TRAIN, QUERIES = Blobs(n=6), Blobs(n=2, first=900)


@pytest.mark.parametrize("cosine", [False, True])
def test_pixels_are_compared_as_they_are(cosine):
    """Claim: raw dot and cos are those of the pixels in [-1, 1]; no model is used."""
    get = InMemory()
    q, z = (get(images).x0().flatten(1).double().numpy() for images in (QUERIES, TRAIN))
    expected = q @ z.T
    if cosine:
        expected = expected / np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(z, axis=1))
    scores = EmbeddingSimilarity(embedding=Pixels(), cosine=cosine).score(None, TRAIN, QUERIES, get)
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5)
    assert scores.train_index.tolist() == get(TRAIN).index.tolist()


def test_random_scores_depend_on_ids_alone():
    """Claim: a pair's score is a function of seed, query id and training id, whoever else is there; uniform in [-1, 1)."""
    get = InMemory()
    whole = Random(seed=1).score(None, Blobs(n=400), Blobs(n=50, first=900), get)
    part = Random(seed=1).score(None, Blobs(n=7), Blobs(n=3, first=900), get)
    assert np.array_equal(part.values, whole.values[:3, :7])
    assert not np.array_equal(Random(seed=2).score(None, Blobs(n=7), Blobs(n=3, first=900), get).values, part.values)
    assert abs(whole.values.mean()) < 4 / np.sqrt(3 * whole.values.size)
    assert np.abs(np.sort(whole.values.ravel()) - np.linspace(-1, 1, whole.values.size)).max() < 0.03


@pytest.fixture
def folder(tmp_path):
    """A small random CLIP model, saved as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def test_clip_embeddings_are_the_model_s(folder):
    """Claim: an embedding is ``get_image_features`` of the image, resized and normalized channel by channel."""
    transformers = pytest.importorskip("transformers")
    get = InMemory()
    embeddings = CLIP(str(folder), batch_size=4).embed(get(TRAIN), torch.device("cpu"))
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    expected = []
    for row in range(6):
        x = (get(TRAIN).x0([row])[0, 0] + 1) / 2
        x = torch.nn.functional.interpolate(x[None, None], (32, 32), mode="bicubic", antialias=True)[0, 0].clamp(0, 1)
        channels = torch.stack([(x - m) / s for m, s in zip(MEAN, STD, strict=True)])
        with torch.no_grad():
            features = model.get_image_features(pixel_values=channels[None])
        expected.append(getattr(features, "pooler_output", features)[0])
    np.testing.assert_allclose(embeddings, torch.stack(expected).numpy(), rtol=1e-4, atol=1e-5)


def test_clip_s_identity_is_its_weights(folder, tmp_path):
    """Claim: another folder with the same files is the same embedding, other weights are another, the batch size is none."""
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    assert describe(CLIP(str(folder))) == describe(CLIP(str(tmp_path / "copy"), batch_size=3))
    (tmp_path / "copy" / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert describe(CLIP(str(folder))) != describe(CLIP(str(tmp_path / "copy")))


def normalized(image: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """An image ``[H, W]`` in [0, 1] as an encoder of ImageNet takes it, channel by channel: ``[1, 3, *size]``."""
    x = torch.nn.functional.interpolate(image[None, None], size, mode=mode, antialias=True)[0, 0].clamp(0, 1)
    return torch.stack([(x - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)])[None]


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_dino_embeddings_are_class_tokens(kind, tmp_path):
    """Claim: of DINO's and DINOv2's networks, the first token of the last layer, at the size of the setting."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = 16 if kind == "ViT" else 24  # DINOv2 interpolates its positions
    sizes = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes, image_size=16)).save_pretrained(tmp_path)
    images = InMemory()(TRAIN)
    embeddings = DINO(str(tmp_path), batch_size=4, size=size).embed(images, torch.device("cpu"))
    model = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path).eval()
    with torch.no_grad():
        tokens = [
            model(pixel_values=normalized(image[0], (size, size), "bicubic")).last_hidden_state[0, 0] for image in images.visible()
        ]
    np.testing.assert_allclose(embeddings, torch.stack(tokens).numpy(), rtol=1e-4, atol=1e-5)
    assert describe(DINO(str(tmp_path), size=16)) != describe(DINO(str(tmp_path), size=24))
    if kind == "ViT":
        with pytest.raises(FieldError, match=r"DINO.weights=.*: this model encodes no images .*: give another one"):
            DINO(str(tmp_path), size=24).check()


class Descriptor(torch.nn.Module):
    """A stand-in for SSCD: means of the image's quarters."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_sscd_embeddings_are_those_of_its_file(tmp_path):
    """Claim: the TorchScript module in the file, applied to the image with its shorter side resized; the file is the identity."""
    path = tmp_path / "sscd.torchscript.pt"
    torch.jit.script(Descriptor()).save(path)
    wide = InMemory()(TRAIN)
    wide = type(wide)(np.concatenate([wide.pixels, wide.pixels], 3), wide.index, wide.label)  # 8 × 16
    embeddings = SSCD(str(path), batch_size=4, size=12).embed(wide, torch.device("cpu"))
    expected = [Descriptor()(normalized(image[0], (12, 24), "bilinear"))[0] for image in wide.visible()]
    np.testing.assert_allclose(embeddings, torch.stack(expected).numpy(), rtol=1e-4, atol=1e-5)
    (tmp_path / "copy.pt").write_bytes(path.read_bytes())
    assert describe(SSCD(str(path))) == describe(SSCD(str(tmp_path / "copy.pt"), batch_size=3))
    assert describe(SSCD(str(path))) != describe(SSCD(str(path), size=320))


@pytest.mark.parametrize("kind", [CLIP, DINO, SSCD])
def test_missing_weights_are_a_sentence(kind, tmp_path):
    """Claim: without weights the error names the setting and says where they come from, before anything is computed."""
    if kind is not SSCD:
        pytest.importorskip("transformers")
    estimator = EmbeddingSimilarity(embedding=kind(str(tmp_path / "nowhere")), cosine=True)
    with pytest.raises(FieldError, match=rf"{kind.__name__}.weights=.*nowhere: .*; give "):
        estimator.scores(None, TRAIN, QUERIES)  # pyright: ignore[reportArgumentType]


def test_a_file_that_is_no_model_is_a_sentence(tmp_path):
    """Claim: of SSCD, neither text nor plain weights are taken."""
    (tmp_path / "text.pt").write_text("weights")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    for name in ("text.pt", "weights.pt"):
        with pytest.raises(FieldError, match=r"SSCD.weights=.*: is no TorchScript file"):
            SSCD(str(tmp_path / name)).check()
    with pytest.raises(FieldError, match="size=0"):
        SSCD("x", size=0)
