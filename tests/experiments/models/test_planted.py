"""Near-copies of queries in the training set."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attribution.images.given import GivenImages
from attribution.nodes import InMemory
from experiments.models.planted import PlantedImages
from tests.worlds import Blobs, Conditioned

GET = InMemory()
SETTINGS: dict[str, Any] = {
    "train": Conditioned(n=24),
    "queries": (Conditioned(n=3, first=900), Conditioned(n=2, first=500)),
    "copies": 2,
    "noise": 0.1,
    "brightness": 0.3,
    "seed": 4,
}


def test_copies_take_the_places_of_random_images():
    """Claim: everything else is untouched; a copy has the id of its place, the label and condition of its query, and its pixels."""
    planted = PlantedImages(**SETTINGS)
    train, images, rows = GET(planted.train), GET(planted), planted.rows
    queries = [GET(kind) for kind in planted.queries]
    assert planted.count == len(images) == 24
    assert rows.shape == (5, 2)
    assert len(np.unique(rows)) == 10
    assert np.array_equal(images.index, train.index)
    others = np.setdiff1d(np.arange(24), rows)
    for name in ("pixels", "label", "condition"):
        assert np.array_equal(getattr(images, name)[others], getattr(train, name)[others])
    assert images.name(others[0]) == train.name(others[0])
    pixels = np.concatenate([kind.x0().numpy() for kind in queries])
    deviation = train.x0().numpy().std()
    for q, (kind, row) in enumerate((of, row) for of in queries for row in range(len(of))):
        assert (images.label[rows[q]] == kind.label[row]).all()
        assert images.condition is not None
        assert kind.condition is not None
        assert (images.condition[rows[q]] == kind.condition[row]).all()
        assert images.name(rows[q, 0]) == f"copy of {kind.name(row)}"
        plain, brighter = images.x0(rows[q]).numpy() - pixels[q]
        assert np.sqrt(np.square(plain).mean()) < 0.15 * deviation  # noise of 0.1, less where it is clipped
        assert 0.15 * deviation < brighter.mean() < 0.35 * deviation
    assert images.pixels.dtype == train.pixels.dtype


def test_copies_without_changes_are_the_queries():
    """Claim: with neither noise nor brightness, a copy is equal; floats stay floats."""
    exact = PlantedImages(**{**SETTINGS, "noise": 0.0, "brightness": 0.0})
    queries = np.concatenate([GET(kind).pixels for kind in exact.queries])
    assert np.array_equal(GET(exact).pixels[exact.rows[:, 1]], queries)
    train = GET(Blobs(n=24))
    floats = GivenImages(replace(train, pixels=train.x0().numpy()))
    assert GET(PlantedImages(**{**SETTINGS, "train": floats})).pixels.dtype == np.float32


def test_identity_is_of_all_that_decides_the_images():
    """Claim: each setting, the training images and the queries change it."""
    planted = PlantedImages(**SETTINGS)
    changes = {"train": Blobs(n=25), "queries": SETTINGS["queries"][:1], "copies": 1, "noise": 0.2, "brightness": 0.0, "seed": 5}
    names = {planted.fingerprint, *(replace(planted, **{name: value}).fingerprint for name, value in changes.items())}
    assert len(names) == 7
    assert PlantedImages(**SETTINGS).fingerprint == planted.fingerprint


def test_what_cannot_be_planted_is_refused():
    """Claim: too many copies, and queries without the conditions that the training images have."""
    with pytest.raises(ValueError, match="do not fit into 24"):
        _ = PlantedImages(**{**SETTINGS, "copies": 5}).rows
    with pytest.raises(ValueError, match="have conditions"):
        GET(PlantedImages(**{**SETTINGS, "queries": (Blobs(n=3, first=900),)}))
