"""Mirrored unlearning against the steps written out, its limits, and its order of convergence, in float64."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import jacrev

from attribution.checks import FieldError
from attribution.curvature import KFAC, ExactGGN
from attribution.diffusion import denoiser
from attribution.estimators.mirrored_unlearning import MirroredUnlearning
from attribution.estimators.unlearning import Unlearning
from attribution.execution import Execution
from attribution.gradients.network_cache import engine
from attribution.gradients.per_example import PerExampleGradients
from attribution.nodes import InMemory
from experiments.store.store import Store
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import given
from tests.attribution.estimators.test_lissa import DRAWS, LOSS, QUERIES, TRAIN
from tests.worlds import PROCESS


def half_of_the_image() -> torch.nn.Module:
    """A perceptron plus half of its input, which has much of the noise in it: most costs are below those of no output."""

    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        return 0.3 * m.second(torch.tanh(m.first(x.flatten(1)))).view_as(x) + x / 2

    return worlds.Net(forward, {"first": nn.Linear(16, 5), "second": nn.Linear(5, 16)}).double()


RECORD = given(half_of_the_image)
"""A float64 model: scores are float64 up to their last rounding."""
CPU = Execution(device="cpu")
CURVATURE = KFAC(draws=DRAWS, execution=CPU)
N, LAMBDA = TRAIN.n, 0.05


def mirrored(kind: Any = MirroredUnlearning, **changes: Any) -> Any:
    settings = {"measurement": LOSS, "draws": DRAWS, "curvature": CURVATURE, "damping": LAMBDA, "amount": 2.0, "steps": 2}
    return kind(**{**settings, "execution": CPU, **changes})


def scored(method, get):
    return method.score(RECORD, TRAIN, QUERIES, get).values


@pytest.fixture(scope="module")
def get():
    return InMemory()


def inputs(role, images):
    """The images at their draws, K rows for each."""
    draws = DRAWS.draw(role, images.ids(), PROCESS.T)
    return LOSS.inputs(images.x0().double(), draws)


def inverse(name, get):
    """Dense (B ⊗ A + λI)⁻¹ of one layer."""
    basis = get(CURVATURE.basis(RECORD, TRAIN))
    QA, QB, values = basis.QA[name].double(), basis.QB[name].double(), basis.values[name]
    vectors = torch.kron(QB, QA)
    return vectors @ torch.diag(1 / (values.flatten() + LAMBDA)) @ vectors.T


def stepped(network, rows, sign, steps, amount, get):
    """The network after steps along the preconditioned gradient of the bounded cost of one query, ``sign`` times."""
    network = copy.deepcopy(network)
    for _ in range(steps):
        costs = LOSS(denoiser(network), *rows)
        bounds = LOSS(lambda x, *rest: torch.zeros_like(x), *rows)
        network.zero_grad()
        torch.minimum(costs, bounds).mean().backward()
        for name, layer in PerExampleGradients(network).layers.items():
            g = layer.join([p.grad for p in layer.parameters.values() if p.grad is not None])
            move = sign * amount / (N * steps) * (inverse(name, get) @ g.flatten()).view_as(g)
            with torch.no_grad():
                for parameter, part in layer.split(move):
                    layer.parameters[parameter].add_(part)
    return network


def literal(get, steps, amount, mirror=True):
    """The scores, query by query and draw by draw."""
    start, train, K = RECORD.network(get), inputs("attribution", get(TRAIN)), DRAWS.count
    rows = []
    for q in range(QUERIES.n):
        query = inputs("query", get(QUERIES)).rows(slice(q * K, q * K + K))
        models = [stepped(start, query, sign, steps, amount, get) for sign in (1, -1)]
        with torch.no_grad():
            high, low = (LOSS(denoiser(network), *train).view(N, K) for network in (models[0], models[1] if mirror else start))
        skew = (high - low) / (high + low)
        rows.append(skew.mean(1) * N / amount * (1 if mirror else 2))
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("mirror", [True, False])
def test_scores_are_the_skew_written_out(get, mirror):
    """Claim: bounded steps along dense (B ⊗ A + λI)⁻¹ in both directions, then N/s times the mean skew of the losses at a draw."""
    np.testing.assert_allclose(
        scored(mirrored(mirrored=mirror), get), literal(get, steps=2, amount=2.0, mirror=mirror), rtol=1e-5, atol=1e-9
    )


def influence(get, logarithm):
    """∇m̄ᵀ (H + λI)⁻¹ ∇ℓ from autograd, of losses or of their logarithms averaged over draws."""
    network, K = RECORD.network(get), DRAWS.count
    layers, parameters = PerExampleGradients(network).layers, dict(network.named_parameters())

    def costs(values, rows):
        return LOSS(denoiser(network, values), *rows)

    def blocks(jacobian):
        names = {id(p): name for name, p in parameters.items()}
        return {
            name: torch.stack(
                [layer.join([jacobian[names[id(p)]][i] for p in layer.parameters.values()]) for i in range(len(first))]
            )
            for first in [next(iter(jacobian.values()))]
            for name, layer in layers.items()
        }

    def of_queries(values):
        rows = inputs("query", get(QUERIES))
        bounds = LOSS(lambda x, *rest: torch.zeros_like(x), *rows)
        return torch.minimum(costs(values, rows), bounds).view(QUERIES.n, K).mean(1)

    def of_train(values):
        losses = costs(values, inputs("attribution", get(TRAIN))).view(N, K)
        return (losses.log() if logarithm else losses).mean(1)

    left, right = (blocks(jacrev(f)(parameters)) for f in (of_queries, of_train))
    parts = [left[name].flatten(1) @ inverse(name, get) @ right[name].flatten(1).T for name in layers]
    return torch.stack(parts).sum(0).detach().numpy()


@pytest.mark.parametrize("normalized", [True, False])
def test_errors_of_both_directions_are_of_second_order(get, normalized):
    """Claim: for s → 0 scores are influence, on log losses if normalized; halving s quarters the error, and halves it one way."""
    limit = influence(get, logarithm=normalized)
    for mirror, ratio in ((True, 4), (False, 2)):
        errors = [
            np.abs(scored(mirrored(amount=s, steps=1, normalized=normalized, mirrored=mirror), get) - limit).max()
            for s in (0.04, 0.02)
        ]
        assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)
        assert errors[1] < 0.1 * np.abs(limit).max()


def test_exchanging_the_models_changes_the_sign():
    """Claim: scores are antisymmetric in the two models and, if normalized, do not depend on the scale of the losses."""
    losses = {1: np.random.default_rng(0).random((4, 3)), -1: np.random.default_rng(1).random((4, 3))}
    for normalized in (True, False):
        method = mirrored(normalized=normalized)
        values = method.scores_of(losses, 0.1)
        assert np.array_equal(method.scores_of({1: losses[-1], -1: losses[1]}, 0.1), -values)
        again = method.scores_of({sign: 2 * of_sign for sign, of_sign in losses.items()}, 0.1)
        np.testing.assert_allclose(again, values if normalized else 2 * values, rtol=1e-12)
    nothing = {1: np.zeros((1, 2)), -1: np.zeros((1, 2))}
    assert mirrored().scores_of(nothing, 0.1) == 0


def test_one_way_without_normalization_and_bound_is_unlearning(get):
    """Claim: with all three settings false the scores are those of unlearning."""
    plain = mirrored(normalized=False, bounded=False, mirrored=False)
    np.testing.assert_allclose(scored(plain, get), scored(mirrored(Unlearning), get), rtol=1e-6)


def test_draws_above_the_bound_are_left_out(get, monkeypatch):
    """Claim: draws at which the null model is as good as the network are left out; if all are, the error says what to do."""
    queries, network, bound = get(QUERIES), RECORD.network(get), "attribution.estimators.mirrored_unlearning._zero"
    query = (queries.x0([0]), DRAWS.draw("query", queries.ids(slice(1)), PROCESS.T), None)
    monkeypatch.setattr(bound, lambda x, time, *rest: torch.where((time >= time.max()).view(-1, 1, 1, 1), 0, network(x, time)))
    found = mirrored()._below_bound(engine(RECORD, None, CPU, get), query)
    assert torch.equal(found.bool(), query[1].timestep == query[1].timestep.max())
    assert not found.bool().all()
    monkeypatch.setattr(bound, lambda x, time, *rest: network(x, time))
    with pytest.raises(FieldError, match=r"MirroredUnlearning\.bounded=True: at all draws of query 0 a network that outputs 0"):
        scored(mirrored(), InMemory())


def test_shards_and_stores_change_nothing(get, tmp_path):
    """Claim: shards of one query and two images give the same scores, to the bit when read again; a kill loses one shard."""
    whole = scored(mirrored(), get)
    divided = mirrored(execution=Execution(device="cpu", shard=2, query_shard=1, batch_size=2))
    node = divided.scores(RECORD, TRAIN, QUERIES)
    Store(tmp_path / "killed")(node.batches[0].training_blocks[0])
    stored = [scored(divided, Store(tmp_path / name)) for name in ("whole", "killed", "killed")]
    np.testing.assert_allclose(stored[0], whole, rtol=1e-6)
    assert np.array_equal(stored[1], stored[0])
    assert np.array_equal(stored[2], stored[0])


def test_passes_are_counted(get):
    """Claim: gradients of each query in both directions (the first is shared) with the bound, and two forward passes a query."""
    node, K = mirrored(steps=3).scores(RECORD, TRAIN, QUERIES), DRAWS.count
    assert node.passes(get) == pytest.approx(QUERIES.n * K * 5 * 4 / 3 + TRAIN.n * K * 2 * QUERIES.n / 3)


@pytest.mark.parametrize("name", ["bounded", "normalized", "mirrored"])
def test_bad_settings_are_refused_by_name(name):
    """Claim: switches are true or false; other settings are refused as those of unlearning."""
    with pytest.raises(FieldError, match=rf"MirroredUnlearning.{name}=2: must be true or false"):
        mirrored(**{name: 2})
    with pytest.raises(FieldError, match=r"MirroredUnlearning\.steps=0"):
        mirrored(steps=0)
    with pytest.raises(FieldError, match="choose kfac or ekfac"):
        mirrored(curvature=ExactGGN(draws=DRAWS, execution=CPU))
