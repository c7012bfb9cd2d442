"""Unlearning against the steps written out, and its limit, influence."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.curvature import KFAC, ExactGGN
from attribution.diffusion import denoiser
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.unlearning import Unlearning
from attribution.execution import Execution
from attribution.gradients.network_cache import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.nodes import InMemory
from experiments.store.store import Store
from tests.attribution.estimators.test_lissa import DRAWS, LOSS, QUERIES, RECORD, TRAIN
from tests.worlds import PROCESS

CPU = Execution(device="cpu")
CURVATURE = KFAC(draws=DRAWS, execution=CPU)


def unlearning(**changes: Any) -> Unlearning:
    settings = {"measurement": LOSS, "draws": DRAWS, "curvature": CURVATURE, "damping": 0.05, "amount": 2.0, "steps": 2}
    return Unlearning(**{**settings, "execution": CPU, **changes})


def scored(method, get):
    return method.score(RECORD, TRAIN, QUERIES, get).values


@pytest.fixture(scope="module")
def get():
    return InMemory()


def test_scores_are_the_steps_written_out(get):
    """Claim: two steps along dense (B ⊗ A + λI)⁻¹ times the gradient at each point, then the difference of losses, N/s times."""
    method, basis = unlearning(), get(CURVATURE.basis(RECORD, TRAIN))
    train, queries, N = get(TRAIN), get(QUERIES), TRAIN.n
    start = RECORD.network(get).double()

    def losses(network):
        draws = DRAWS.draw("attribution", train.ids(), PROCESS.T)
        with torch.no_grad():
            return LOSS(denoiser(network), *LOSS.inputs(train.x0().double(), draws)).view(N, -1).mean(1)

    expected = []
    for q in range(QUERIES.n):
        network = copy.deepcopy(start)
        for _ in range(2):
            draws = DRAWS.draw("query", queries.ids(slice(q, q + 1)), PROCESS.T)
            value = LOSS(denoiser(network), *LOSS.inputs(queries.x0([q]).double(), draws)).mean()
            network.zero_grad()
            value.backward()
            for name, layer in PerExampleGradients(network).layers.items():
                g = layer.join([p.grad for p in layer.parameters.values()])
                QA, QB, values = basis.QA[name].double(), basis.QB[name].double(), basis.values[name]
                dense = torch.kron(QB, QA) @ torch.diag(1 / (values.flatten() + 0.05)) @ torch.kron(QB, QA).T
                move = (dense @ g.flatten()).view_as(g) * 2.0 / (2 * N)
                with torch.no_grad():
                    for parameter, part in layer.split(move):
                        layer.parameters[parameter].add_(part)
        expected.append((losses(network) - losses(start)) * N / 2.0)
    np.testing.assert_allclose(scored(method, get), torch.stack(expected).numpy(), rtol=1e-4, atol=1e-7)


def test_a_small_strength_is_influence(get):
    """Claim: with s → 0 the scores are those of K-FAC influence, scale and sign included, in one step or in several."""
    influence = KFACInfluence(measurement=LOSS, draws=DRAWS, curvature=CURVATURE, damping=0.05, execution=CPU)
    expected = influence.score(RECORD, TRAIN, QUERIES, get).at(damping=0.05, draws=DRAWS.count).values
    for steps in (1, 3):
        found = scored(unlearning(amount=1e-4, steps=steps), get)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_the_network_is_left_as_it_was_and_shards_change_nothing(get, tmp_path):
    """Claim: parameters are back to the bit after unlearning; shards of one query and two images give the same scores."""
    network = engine(RECORD, None, CPU, get).model
    before = {name: p.clone() for name, p in network.state_dict().items()}
    whole = scored(unlearning(), get)
    assert all(torch.equal(p, before[name]) for name, p in network.state_dict().items())
    divided = replace(unlearning(), execution=Execution(device="cpu", shard=2, query_shard=1, batch_size=2))
    stored = scored(divided, Store(tmp_path))
    np.testing.assert_allclose(stored, whole, rtol=1e-5, atol=1e-9)
    assert np.array_equal(scored(divided, Store(tmp_path)), stored)


def test_queries_are_divided_by_scratch(get):
    """Claim: with room on disk for one query, each query is a batch of its own, to the same bits."""
    whole = scored(unlearning(execution=Execution(device="cpu", query_shard=1)), InMemory())
    method = unlearning(execution=Execution(device="cpu", query_shard=1, scratch=1))
    assert [batch.rows for batch in method.scores(RECORD, TRAIN, QUERIES).batches] == [(q, q + 1) for q in range(QUERIES.n)]
    assert np.array_equal(scored(method, InMemory()), whole)


def test_passes_are_counted(get):
    """Claim: a query takes a pass of every draw and step, and a forward pass of every draw of every training image."""
    node, K = unlearning(steps=3).scores(RECORD, TRAIN, QUERIES), DRAWS.count
    assert node.passes(get) == pytest.approx(QUERIES.n * K * 3 + TRAIN.n * K * (QUERIES.n + 1) / 3)


@pytest.fixture
def largest_pass(monkeypatch):
    """The number of inputs of each forward pass of unlearning."""
    sizes, of = [], type(LOSS).__call__

    def counted(self, network, x0, *rest):
        sizes.append(len(x0))
        return of(self, network, x0, *rest)

    monkeypatch.setattr(type(LOSS), "__call__", counted)
    return sizes


def test_passes_hold_what_their_memory_holds(largest_pass):
    """Claim: with memory for the activations of one input, losses are computed one input at a time, to the same scores."""
    whole = scored(unlearning(steps=1), InMemory())
    assert max(largest_pass) > 4
    largest_pass.clear()
    divided = scored(unlearning(steps=1, execution=Execution(device="cpu", pass_memory=1)), InMemory())
    assert max(largest_pass) <= 4  # two images at two draws, in the check of the gradients
    np.testing.assert_allclose(divided, whole, rtol=1e-3, atol=1e-5 * np.abs(whole).max())


@pytest.mark.parametrize(("name", "value"), [("damping", 0), ("amount", 0), ("steps", 0)])
def test_bad_settings_are_refused_by_name(name, value):
    """Claim: nothing is unlearned in no step or with no amount, and without damping there may be no inverse."""
    with pytest.raises(FieldError, match=f"Unlearning.{name}=0"):
        unlearning(**{name: value})
    with pytest.raises(FieldError, match="choose kfac or ekfac"):
        unlearning(curvature=ExactGGN(draws=DRAWS, execution=CPU))
