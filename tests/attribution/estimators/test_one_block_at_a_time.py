"""How many gradients estimators hold while they go through the training images."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from torch import Tensor

from attribution.curvature import KFAC
from attribution.estimators import influence
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.lissa import LiSSA
from attribution.estimators.retrac import ReTrac
from attribution.estimators.similarity import GradientSimilarity
from attribution.execution import Execution
from attribution.features import features
from attribution.gradients.per_example import Captured
from attribution.images.draws import Uniform
from attribution.measurements import Loss
from attribution.nodes import InMemory
from attribution.projection import Identity
from tests.worlds import PROCESS, Blobs, trained

TRAIN, QUERIES, DRAWS, LOSS = Blobs(8), Blobs(3, first=7), Uniform(2, seed=1), Loss(PROCESS)


@pytest.fixture(scope="module")
def model():
    return trained(data=TRAIN)


@pytest.fixture(scope="module")
def get(model):
    """A memory that has the trained model."""
    memory = InMemory()
    memory(model)
    return memory


@pytest.fixture(scope="module")
def settings(model):
    """Gradients of two images fill a block."""
    execution = Execution(device="cpu", pass_memory=2.5 * 4 * model.parameter_count)
    assert execution.examples_at_once(model.parameter_count) == 2
    return {"measurement": LOSS, "draws": DRAWS, "execution": execution}


def tensors_in(value: Any) -> Iterable[Tensor]:
    """The tensors in nested lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def alone(function: Callable) -> tuple[Callable, list[int]]:
    """``function``, which fails if tensors of an earlier result are in memory when it is called; and the number of its calls."""
    earlier: list[weakref.ref] = []
    calls: list[int] = []

    def checked(*arguments: Any, **named: Any) -> Any:
        calls.append(len(calls))
        assert not [each for each in earlier if each() is not None], f"call {len(calls)}"
        earlier.clear()
        result = function(*arguments, **named)
        earlier.extend(map(weakref.ref, tensors_in(result)))
        return result

    return checked, calls


@pytest.mark.parametrize(
    ("place", "name", "estimator", "changes"),
    [
        (Captured, "_average", LiSSA, {"depth": 3, "batch_size": 4}),
        (Captured, "_average", ReTrac, {"checkpoints": "last"}),
        (influence, "prefix_means", KFACInfluence, {"curvature": KFAC(draws=Uniform(1)), "damping": 1e-3}),
        (features, "contracted_together", GradientSimilarity, {"projection": Identity(), "cosine": True}),
    ],
    ids=["lissa", "retrac", "kfac", "products"],
)
def test_a_block_of_gradients_is_freed_before_the_next(place, name, estimator, changes, settings, model, get, monkeypatch):
    """Claim: of the gradients of training images, one block is in memory at a time, as plans count it."""
    function, calls = alone(getattr(place, name))
    monkeypatch.setattr(place, name, function)
    get(estimator(**settings, **changes).scores(model, TRAIN, QUERIES))
    assert len(calls) > 4


def test_the_recursion_holds_a_block_of_gradients(settings, model, get, monkeypatch):
    """Claim: LiSSA's samples of the curvature are differentiated a block at a time, whatever the batch size."""
    most, original = [], Captured.mean

    def mean(self, weights=None):
        most.append(len(self._draws))
        return original(self, weights)

    monkeypatch.setattr(Captured, "mean", mean)
    get(LiSSA(**settings, depth=2, batch_size=5).scores(model, TRAIN, Blobs(1)))
    assert max(most) == 2
