"""Guided normalization against a literal transcription of its equation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attribution.estimators import Guided, ReTrac, TracIn, guided_timestep
from attribution.estimators.guided import lengths
from attribution.estimators.guided_timestep import NormCurve
from attribution.execution import Execution
from attribution.gradients import hooks
from attribution.gradients.gradient_sets import GradientsAtDraws
from attribution.gradients.norms import GradientNorms
from attribution.images.draws import Even, Fixed, Uniform
from attribution.measurements import Loss
from attribution.nodes import InMemory
from experiments.store.store import Store
from tests.references import draw_gradients
from tests.worlds import PROCESS, Blobs, Reordered, trained

RECORD = trained()
QUERIES = Blobs(n=5, first=900)
CHECKPOINTS = [4, 9, 12]
DRAWS = Even(3, noises=2, seed=1)
CPU = Execution(device="cpu")


def estimator(kind: Any = Guided, **changes) -> Any:
    settings = {"measurement": Loss(PROCESS), "draws": DRAWS, "checkpoints": CHECKPOINTS, "execution": CPU}
    return kind(**{**settings, **changes})


def score(get, strength, **changes):
    method = estimator(strength=strength, **changes)
    ((_, scores),) = method.variants(method.score(RECORD, RECORD.data, QUERIES, get))
    return scores.values


@pytest.fixture(scope="module")
def get():
    """One memory for all tests: they share the training."""
    return InMemory()


def gradients(get, step, images, draws):
    """∇ of every draw ``[B, K, P]`` by one backward pass each."""
    blocks = draw_gradients(Loss(PROCESS), RECORD.network(get, step).double(), images.x0().double(), draws)
    return torch.cat([g.flatten(2) for g in blocks.values()], 2)


def norms_at(get, step, timestep):
    """``n_z [1, N, 1]``, as the estimator takes them."""
    scheme = Fixed((timestep,), seed=DRAWS.seed)
    settings = {"images": RECORD.data, "trained": RECORD, "execution": CPU}
    return get(GradientNorms(GradientsAtDraws(step=step, scheme=scheme, role="reference norms", **settings)))


@pytest.fixture(scope="module")
def sides(get):
    """Per checkpoint: η_k, n [N] at t = 40, G [N, P] and ReTrac's Q [Q, P]."""
    record, train, queries = get(RECORD), get(RECORD.data), get(QUERIES)
    checkpoints = []
    for step in CHECKPOINTS:
        at = gradients(get, step, train, Fixed([40], seed=1).draw("reference norms", train.ids(), PROCESS.T))
        G = gradients(get, step, train, record.latest_draws(step, train.index))[:, 0]
        Q = gradients(get, step, queries, DRAWS.draw("query", queries.ids(), PROCESS.T))
        checkpoints.append((record.learning_rate(step), at.norm(dim=2)[:, 0], G, (Q / Q.norm(dim=2, keepdim=True)).mean(1)))
    return checkpoints


@pytest.mark.parametrize("strength", [0, 0.25, 1])
def test_scores_are_the_equation(get, sides, strength):
    """Claim: Σ_k η_k n_max s_z ⟨Q, G/‖G‖⟩ by a for-loop over training examples with gradients by autograd, scale included."""
    expected = np.zeros((5, 24))
    for eta, n, G, Q in sides:
        for z in range(24):
            s = strength + (1 - strength) * (n[z] - n.min()) / (n.max() - n.min())
            expected[:, z] += eta * float(n.max() * s) * (Q @ (G[z] / G[z].norm())).numpy()
    values = score(get, strength, timestep=40)
    np.testing.assert_allclose(values, expected, rtol=2e-5, atol=2e-6 * np.abs(expected).max())
    assert values.dtype == np.float32


def test_strength_one_is_retrac(get):
    """Claim: at λ = 1 a single checkpoint's scores are ReTrac's times one number, the largest norm there; several are not."""
    for step in CHECKPOINTS:
        retrac = estimator(ReTrac, checkpoints=[step]).score(RECORD, RECORD.data, QUERIES, get).values
        largest = norms_at(get, step, 40).norms.max()
        np.testing.assert_allclose(score(get, 1.0, timestep=40, checkpoints=[step]), largest * retrac, rtol=1e-6)


def test_the_smallest_norm_at_strength_zero_counts_for_nothing(get):
    """Claim: λ = 0 leaves nothing of the example with the smallest norm."""
    norms = norms_at(get, 9, 40).norms[0, :, 0]
    values = score(get, 0.0, timestep=40, checkpoints=[9])
    assert np.abs(values[:, norms.argmin()]).max() == 0
    assert np.abs(values[:, norms.argmax()]).min() > 0


def test_equal_norms_divide_nothing_by_zero():
    """Claim: where all images have one norm each is the largest: its length is n_max whatever λ."""
    np.testing.assert_array_equal(lengths(np.full(4, 3.0), 0.2), np.full(4, 3.0))
    np.testing.assert_allclose(lengths(np.array([1.0, 2.0, 5.0]), 0.2), [1.0, 5 * (0.2 + 0.8 / 4), 5.0])


def test_the_default_timestep_has_the_highest_mean_norm(get, monkeypatch):
    """Claim: t* is the one of evenly spaced timesteps at which a sample of examples' gradient norms have the largest mean."""
    monkeypatch.setattr(guided_timestep, "TIMESTEPS", 7)
    monkeypatch.setattr(guided_timestep, "SAMPLE", 5)
    train = get(RECORD.data)
    sample = train.take([0, 6, 12, 17, 23])
    at = Even(7, seed=DRAWS.seed).draw("norm curve", sample.ids(), PROCESS.T)
    expected = gradients(get, 9, sample, at).norm(dim=2).mean(0)
    curve = NormCurve(RECORD, RECORD.data, 9, DRAWS.seed, CPU).compute(get)
    np.testing.assert_allclose(curve.norms, expected.numpy(), rtol=1e-6)
    assert curve.highest == at.timestep[0, expected.argmax()]


@pytest.mark.slow
def test_the_default_timestep_is_that_of_the_curve(get):
    """Claim: without a timestep the scores are, at each checkpoint, those at the highest of its curve."""
    for step in (4, 9):
        highest = get(NormCurve(RECORD, RECORD.data, step, DRAWS.seed, CPU)).highest
        by_default, given = (score(get, 0.3, timestep=t, checkpoints=[step]) for t in (None, highest))
        np.testing.assert_array_equal(by_default, given)


@pytest.mark.slow
def test_the_store_computes_curves_before_norms(tmp_path, get):
    """Claim: parts that depend on the record and on the curves come out of a store as they do from memory."""
    method = estimator(checkpoints=[4, 9])
    values = Store(tmp_path)(method.scores(RECORD, RECORD.data, QUERIES)).values
    np.testing.assert_array_equal(values, method.score(RECORD, RECORD.data, QUERIES, get).values)
    assert len(list((tmp_path / "NormCurve").iterdir())) == len(list((tmp_path / "GradientNorms").iterdir())) == 2
    assert not (tmp_path / "NormShard").exists() or not list((tmp_path / "NormShard").iterdir())


def test_a_sweep_over_the_strength_makes_no_pass(get):
    """Claim: whatever strengths are queries for, one node holds them all; its variants are named by the setting."""
    nodes = {estimator(strength=s).scores(RECORD, RECORD.data, QUERIES).fingerprint for s in (0.1, 1, [0.2, 0.7])}
    assert len(nodes) == 1
    method = estimator(strength=[0.2, 0.7], timestep=40)
    settings, scores = zip(*method.variants(method.score(RECORD, RECORD.data, QUERIES, get)), strict=True)
    assert settings == ({"estimator.strength": 0.2}, {"estimator.strength": 0.7})
    np.testing.assert_array_equal(scores[0].values, score(get, 0.2, timestep=40))


@pytest.mark.slow
def test_retrac_tracin_and_guided_share_their_passes(get, monkeypatch):
    """Claim: beside ReTrac and TracIn the products cost no pass: only the norms do."""
    counted = []
    run = hooks.run_all
    monkeypatch.setattr(
        hooks,
        "run_all",
        lambda model, modules, measures, inputs, *rest: (
            counted.append(len(inputs[0])) or run(model, modules, measures, inputs, *rest)
        ),
    )

    def inputs(*kinds):
        memory = InMemory()
        memory._artifacts[RECORD.fingerprint] = get(RECORD)
        counted.clear()
        changes = {Guided: {"timestep": 40}}
        memory.many([estimator(kind, **changes.get(kind, {})).scores(RECORD, RECORD.data, QUERIES) for kind in kinds])
        return sum(counted)

    both, with_guided = inputs(ReTrac, TracIn), inputs(ReTrac, TracIn, Guided)
    checks = 2 * 2 * len(CHECKPOINTS)  # the first capture of an engine counts activations and compares with autograd
    assert with_guided - both <= 24 * len(CHECKPOINTS) + checks


@pytest.mark.slow
def test_execution_and_order_change_no_score(get, monkeypatch):
    """Claim: shards, blocks and the order of the training images change nothing beyond rounding."""
    monkeypatch.setattr(guided_timestep, "TIMESTEPS", 7)
    monkeypatch.setattr(guided_timestep, "SAMPLE", 5)
    order = np.random.default_rng(0).permutation(24)
    values = []
    for train, execution in (
        (RECORD.data, CPU),
        (RECORD.data, Execution(device="cpu", shard=9, query_shard=2, batch_size=5)),
        (Reordered(RECORD.data, tuple(order.tolist())), CPU),
    ):
        memory = InMemory()
        memory._artifacts[RECORD.fingerprint] = get(RECORD)
        method = estimator(checkpoints=[9], execution=execution)
        values.append(method.at_strength(method.score(RECORD, train, QUERIES, memory), 0.3).values)
    atol = 1e-6 * np.abs(values[0]).max()
    np.testing.assert_allclose(values[1], values[0], rtol=1e-4, atol=atol)
    np.testing.assert_allclose(values[2], values[0][:, order], rtol=1e-4, atol=atol)


@pytest.mark.parametrize("changes", [{"strength": 1.1}, {"strength": -0.1}, {"strength": "a"}, {"strength": []}, {"strength": True},
                                     {"timestep": 0}, {"timestep": 101}, {"timestep": 2.5}, {"timestep": True}])  # fmt: skip
def test_bad_settings_are_refused(changes):
    """Claim: by their names, before anything is trained."""
    with pytest.raises(ValueError, match=rf"Guided\.{next(iter(changes))}"):
        estimator(**changes).scores(RECORD, RECORD.data, QUERIES)
    with pytest.raises(ValueError, match=r"guided normalization takes"):
        estimator(draws=replace(Uniform(4), bins=2))
