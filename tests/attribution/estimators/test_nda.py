"""Nonparametric attribution by patches against the softmax written out, and its exact cases."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.diffusion import DDPM, NoiseSchedule
from attribution.estimators import nda
from attribution.estimators.nda import NDA
from attribution.execution import Execution
from attribution.images import Images
from attribution.images.draws import Fixed
from attribution.images.given import GivenImages
from attribution.models.given import GivenModel
from attribution.nodes import InMemory
from experiments.store.store import Store
from tests.worlds import Blobs

PROCESS = DDPM(NoiseSchedule(T=12, beta_end=0.3))
TRAIN, QUERIES = Blobs(n=4, size=5), Blobs(n=2, first=900, size=5)
CPU = Execution(device="cpu")


EXPLAINED: Any = SimpleNamespace(process=PROCESS)
"""What NDA takes of an explained model."""


def estimator(**changes):
    return NDA(**{"timestep": 3, "noises": 2, "patch": 3, "top": None, "execution": CPU, **changes})


def scored(method, get=None, train=TRAIN):
    return method.score(EXPLAINED, train, QUERIES, get or InMemory())


def windows(image, side, pooled, border):
    """The patches of an image ``[C, H, W]`` around every position, as a list of vectors, pixel by pixel."""
    margin, (C, H, W) = (side - 1) // 2, image.shape
    count = H + 2 * margin - side + 1
    patches = []
    for top in range(-margin, -margin + count):
        for left in range(-margin, -margin + count):
            inside = lambda c, y, x: image[c, y, x] if 0 <= y < H and 0 <= x < W else border  # noqa: E731
            patch = np.array([[[inside(c, top + y, left + x) for x in range(side)] for y in range(side)] for c in range(C)])
            if pooled:
                patch = (patch[:, ::2, ::2] + patch[:, 1::2, ::2] + patch[:, ::2, 1::2] + patch[:, 1::2, 1::2]) / 2
            patches.append(patch.ravel())
    return patches


def literal(method, side, pooled, weight):
    """The softmax over all patches of all training images, written out in float64."""
    get = InMemory()
    train, queries = get(TRAIN), get(QUERIES)
    beta = np.linspace(1e-4, 0.3, 12)
    bar = np.prod(1 - beta[: method.timesteps[0]])
    draws = Fixed(method.timesteps, method.noises, method.seed).draw("query", queries.ids(), 12)
    noise = draws.noise((1, 5, 5), torch.float64).numpy()
    scores = np.zeros((2, 4))
    for q in range(2):
        for k in range(method.noises):
            x = np.sqrt(bar) * queries.x0([q])[0].double().numpy() + np.sqrt(1 - bar) * noise[q, k]
            of_query, *of_train = (
                windows(image, side, pooled, method.border)
                for image in (x, *(np.sqrt(bar) * train.x0([z])[0].double().numpy() for z in range(4)))
            )
            for p in of_query:
                e = np.array([[np.exp(-np.sum((p - other) ** 2) / (2 * (1 - bar))) for other in of_z] for of_z in of_train])
                largest = np.sort(e, axis=1)[:, ::-1][:, : method.top]
                scores[q] += weight * largest.sum(1) / e.sum() / len(of_query) / method.noises
    return scores


@pytest.mark.parametrize("top", [None, 2])
def test_scores_are_the_equation(top):
    """Claim: scores are the softmax over all patches of all training images, of which the largest of each image count."""
    method = estimator(top=top)
    np.testing.assert_allclose(scored(method).at(timestep=3).values, literal(method, 3, False, 1.0), rtol=1e-5, atol=1e-12)


def test_the_coarse_scale_has_blocks_of_pixels():
    """Claim: the second scale compares half the sums of 2 × 2 pixels, and its scores have the other weight."""
    method = estimator(coarse=4, weight=0.3, noises=1)
    expected = literal(method, 3, False, 0.3) + literal(method, 4, True, 0.7)
    np.testing.assert_allclose(scored(method).at(timestep=3).values, expected, rtol=1e-5, atol=1e-12)


def test_shares_add_up_and_find_copies():
    """Claim: a query's scores add up to 1; at little noise a query that is a training image gets all of its share."""
    scores = scored(estimator(timestep=[1, 8])).values
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-6)
    copies = estimator(timestep=1).score(EXPLAINED, TRAIN, TRAIN, InMemory()).at(timestep=1).values
    assert np.diagonal(copies).min() > 0.99


def test_a_patch_of_the_whole_image_is_the_optimal_denoiser():
    """Claim: if every patch covers the whole image and borders match at one position only, scores are the posterior over images."""
    method = estimator(patch=9, border=1e3, timestep=6, noises=1)
    get = InMemory()
    train, queries = (get(images).x0().double().numpy() for images in (TRAIN, QUERIES))
    bar = np.prod(1 - np.linspace(1e-4, 0.3, 12)[:6])
    noise = Fixed((6,)).draw("query", get(QUERIES).ids(), 12).noise((1, 5, 5), torch.float64)[:, 0].numpy()
    x = np.sqrt(bar) * queries + np.sqrt(1 - bar) * noise
    logits = -np.square(x[:, None] - np.sqrt(bar) * train).sum((2, 3, 4)) / (2 * (1 - bar))
    posterior = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(scored(method).at(timestep=6).values, posterior, rtol=1e-4, atol=1e-10)


def test_blocks_and_shards_change_nothing(tmp_path):
    """Claim: memory for one patch and one training image at a time, and shards of one query, give the scores of one block."""
    whole = scored(estimator(top=2)).values
    divided = estimator(top=2, execution=Execution(device="cpu", pass_memory=1, query_shard=1))
    stored = scored(divided, Store(tmp_path)).values
    np.testing.assert_allclose(stored, whole, rtol=1e-6)
    assert np.array_equal(scored(divided, Store(tmp_path)).values, stored)


def test_no_model_is_asked_for():
    """Claim: scores are identified by images and process alone, so that they need no training; they take no passes."""
    node = estimator().scores(EXPLAINED, TRAIN, QUERIES)
    assert not any(isinstance(parent, GivenModel) for parent in node.parents())
    assert node.passes(InMemory()) == 0
    assert {type(parent).__name__ for parent in node.parents()} == {"Blobs"}
    assert estimator().draws_of({}) == (2, 0)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"patch": 4}, "patch"), ({"coarse": 3}, "coarse"), ({"coarse": 4.0}, "coarse"),
     ({"coarse": "4"}, "coarse"), ({"top": 0}, "top"), ({"weight": 1.5}, "weight"),
     ({"timestep": []}, "timestep"), ({"timestep": 0}, "timestep"), ({"noises": 0}, "noises"),
     ({"border": float("inf")}, "border"), ({"border": -1e5}, "border")],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(changes, field):
    """Claim: an even patch, an odd coarse one, and numbers out of range are errors that name the field."""
    with pytest.raises(FieldError, match=f"NDA.{field}"):
        estimator(**changes)


def test_a_timestep_beyond_the_process_is_refused():
    """Claim: a timestep that the process does not have is refused before anything is computed."""
    with pytest.raises(FieldError, match=r"NDA.timestep=13: the timesteps are 1..12"):
        estimator(timestep=[3, 13]).scores(EXPLAINED, TRAIN, QUERIES)
    assert replace(estimator(), timestep=12).scores(EXPLAINED, TRAIN, QUERIES)


def test_memory_bounds_what_is_held(monkeypatch):
    """Claim: distances of a block (four arrays), its training patches, and the weights take at most the memory that is given."""
    sizes, of = [], nda._log_weights

    def seen(x, z, sigma, top):
        (p, D), (n, _, P) = x.shape, z.shape
        sizes.append((4 * p * n * P + 2 * n * D * P) * 8)
        assert 16 * p * TRAIN.n <= memory / 2
        return of(x, z, sigma, top)

    monkeypatch.setattr(nda, "_log_weights", seen)
    memory, images = 20_000.0, InMemory()(TRAIN)
    noisy, patches = images.x0()[0].double(), nda.Patches(3, False, 10.0)
    divided = nda.matches(noisy, images, 0.9, 0.4, patches, None, memory)
    assert len(sizes) > 4
    assert max(sizes) <= memory
    torch.testing.assert_close(divided, nda.matches(noisy, images, 0.9, 0.4, patches, None, 1e9))


def test_the_cost_is_that_of_the_products():
    """Claim: a block counts L² pairs of patches for each scale, noise, timestep and pair of images: D products and exponentials."""
    method, shape = estimator(coarse=4, timestep=[1, 3]), InMemory()(TRAIN).shape
    train = GivenImages(InMemory()(TRAIN))
    (block,) = method.scores(EXPLAINED, train, QUERIES).parts(InMemory())
    expected = 0
    for side, pooled, _ in method.scales:
        patches = nda.Patches(side, pooled, 0.0).of(torch.zeros(1, *shape))
        expected += 2 * 4 * 2 * 2 * patches.shape[2] ** 2 * (patches.shape[1] + nda.EXPONENTIAL)
    assert block.cost().products == expected


def test_scores_that_are_not_finite_are_an_error():
    """Claim: images with nan end with an error, not with scores."""
    broken = torch.full((2, 1, 5, 5), float("nan"))
    images = Images(broken.numpy(), np.arange(2), np.full(2, -1))
    with pytest.raises(FloatingPointError, match="not finite"):
        estimator().score(EXPLAINED, GivenImages(images), QUERIES, InMemory())
