"""Structural similarity and spectra of images against their definitions, written as loops."""

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.estimators.embedding import EmbeddingSimilarity
from attribution.estimators.frequency import Frequencies
from attribution.estimators.perceptual import StructuralSimilarity
from attribution.execution import Execution
from attribution.images import Images
from attribution.nodes import InMemory
from tests.worlds import Blobs

TRAIN, QUERIES = Blobs(n=5), Blobs(n=2, first=900)
CPU = Execution(device="cpu")
FREQUENCY = EmbeddingSimilarity(embedding=Frequencies(bands=3), cosine=True, execution=CPU)


def visible(images) -> np.ndarray:
    return InMemory()(images).visible().double().numpy()


def ssim(a: np.ndarray, b: np.ndarray, sigma: float) -> float:
    """The mean over channels and windows of Wang et al. 2004, eq. 13, one window at a time."""
    C, H, W = a.shape
    radius = min(round(3.5 * sigma), (min(H, W) - 1) // 2)
    weights = np.array(
        [[np.exp(-(i**2 + j**2) / (2 * sigma**2)) for j in range(-radius, radius + 1)] for i in range(-radius, radius + 1)]
    )
    weights /= weights.sum()
    values = []
    for c in range(C):
        for i in range(radius, H - radius):
            for j in range(radius, W - radius):
                x, y = (of[c, i - radius : i + radius + 1, j - radius : j + radius + 1] for of in (a, b))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                vxy = (weights * (x - mx) * (y - my)).sum()
                values.append((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return float(np.mean(values))


@pytest.mark.parametrize("sigma", [0.5, 1.5])
@pytest.mark.parametrize("memory", [1.0, "auto"])
def test_structural_similarity_is_its_definition(sigma, memory):
    """Claim: the mean over windows within the image, cut to 7 pixels of 8, whatever fits into memory."""
    execution = Execution(device="cpu", pass_memory=memory, query_shard=1)
    scores = StructuralSimilarity(sigma=sigma, execution=execution).score(None, TRAIN, QUERIES, InMemory())
    expected = [[ssim(q, z, sigma) for z in visible(TRAIN)] for q in visible(QUERIES)]
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5)
    assert scores.query_index.tolist() == InMemory()(QUERIES).index.tolist()


def test_structural_similarity_with_the_published_window():
    """Claim: 11 pixels where they fit; an image and itself have 1."""
    train = Blobs(n=3, size=14)
    scores = StructuralSimilarity(execution=CPU).score(None, train, train, InMemory()).values
    images = visible(train)
    np.testing.assert_allclose(scores, [[ssim(q, z, 1.5) for z in images] for q in images], rtol=1e-5)
    np.testing.assert_allclose(np.diagonal(scores), 1, rtol=1e-6)


def spectrum(image: np.ndarray) -> np.ndarray:
    """log(1 + |F x|) of one channel by the sum that defines a unitary Fourier transform."""
    H, W = image.shape
    values = np.zeros((H, W))
    for u in range(H):
        for v in range(W):
            terms = [image[y, x] * np.exp(-2j * np.pi * (u * y / H + v * x / W)) for y in range(H) for x in range(W)]
            values[u, v] = np.log(1 + abs(sum(terms)) / np.sqrt(H * W))
    return values


def test_spectra_are_compared_band_by_band():
    """Claim: the mean over bands of the cosine of log-magnitudes; a frequency belongs to the band of its radius."""
    scores = FREQUENCY.score(None, TRAIN, QUERIES, InMemory())
    cycles = [f / 8 if f < 4 else f / 8 - 1 for f in range(8)]
    radius = np.array([[np.hypot(u, v) for v in cycles] for u in cycles])
    band = np.minimum(np.floor(3 * radius / radius.max()), 2)
    q, z = ([spectrum(image[0]) for image in visible(images)] for images in (QUERIES, TRAIN))
    expected = [
        [
            np.mean([a[band == b] @ c[band == b] / np.linalg.norm(a[band == b]) / np.linalg.norm(c[band == b]) for b in range(3)])
            for c in z
        ]
        for a in q
    ]
    np.testing.assert_allclose(scores.values, expected, rtol=1e-5)


def test_spectra_do_not_see_places():
    """Claim: moving an image (with wrap-around) leaves its embedding; bands without a frequency are left out."""
    images = InMemory()(TRAIN)
    moved = Images(np.roll(images.pixels, (2, 3), (2, 3)), images.index, images.label)
    for bands in (1, 3, 50):
        vectors = [Frequencies(bands=bands).embed(of, torch.device("cpu")) for of in (images, moved)]
        np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(vectors[0], axis=1), 1, rtol=1e-6)
    black = Images(np.zeros((1, 1, 8, 8), np.uint8), np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert (Frequencies().embed(black, torch.device("cpu")) == 0).all()


def test_bad_settings():
    """Claim: the sentence names the field."""
    with pytest.raises(FieldError, match=r"sigma=0: must be a number, at least 0\.1"):
        StructuralSimilarity(sigma=0)
    with pytest.raises(FieldError, match="bands=0: must be a whole number, at least 1"):
        Frequencies(bands=0)
