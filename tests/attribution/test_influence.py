"""K-FAC influence against explicit matrices and single gradients in float64."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.curvature import KFAC
from attribution.draws import Uniform
from attribution.estimators.balance import Balance, TimestepNorms
from attribution.estimators.influence import GRID, KFACInfluence
from attribution.execution import Execution
from attribution.gradients import PerExampleGradients
from attribution.measurements import Loss, SquareNorm
from attribution.node import InMemory
from attribution.training.checkpoints import AtSteps
from tests.worlds import SCHEDULE, UNET, Blobs, trained

SMALL = functools.partial(UNET, block_out_channels=(4, 8))  # H of a layer is written out
RECORD = trained(model=SMALL, data=Blobs(n=10), checkpoints=AtSteps([12]))
QUERIES = Blobs(n=3, first=900)
CPU = Execution(device="cpu")


def estimator(**changes) -> KFACInfluence:
    settings = {
        "measurement": SquareNorm(SCHEDULE),
        "draws": Uniform(4, seed=1),
        "curvature": KFAC(draws=Uniform(3, seed=2), execution=CPU),
        "damping": 1e-4,
        "execution": CPU,
    }
    return KFACInfluence(**{**settings, **changes})


@pytest.fixture(scope="module")
def get():
    return InMemory()


def single_gradients(get, measure, images, role, draws, weigh=False):
    """For each image the mean over draws of its (normalised) gradients, one pass each: layer → [B, out, in]."""
    network = RECORD.network(get)
    engine = PerExampleGradients(network, batch_size=1)
    rows = []
    for i in range(len(images)):
        drawn = draws.draw(role, images.ids([i]), SCHEDULE.T)
        found = []
        for k in range(drawn.count):
            g = engine.capture(measure, images.x0([i]), drawn.columns(slice(k, k + 1))).mean()
            norm = torch.stack([block.norm() for block in g.values()]).norm() if weigh else 1.0
            found.append({name: block[0].double() / norm for name, block in g.items()})
        rows.append({name: torch.stack([f[name] for f in found]).mean(0) for name in found[0]})
    return rows


def explicit(get, how, damping, weigh=False):
    """Σ_layers vec(q)ᵀ (H_layer + λI)⁻¹ vec(z) with H_layer = B ⊗ A written out."""
    basis = get(how.curvature.basis(RECORD, RECORD.data))
    q = single_gradients(get, how.measurement, get(QUERIES), "query", how.draws, weigh)
    z = single_gradients(get, Loss(SCHEDULE), get(RECORD.data), "attribution", how.draws)
    total = torch.zeros(len(q), len(z), dtype=torch.float64)
    for layer in basis.layers:
        QA, QB = basis.QA[layer].double(), basis.QB[layer].double()
        vectors = torch.kron(QB, QA)
        H = vectors @ torch.diag(basis.values[layer].flatten()) @ vectors.T
        left, right = (torch.stack([side[layer].flatten() for side in rows]) for rows in (q, z))
        total += left @ torch.linalg.solve(H + damping * torch.eye(len(H), dtype=torch.float64), right.T)
    return total.numpy()


@pytest.mark.parametrize("damping", [1e-4, 1e-2])
def test_scores_are_the_equation(get, damping):
    """Claim: ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z) with the matrix written out, scale and sign included."""
    how = estimator(damping=damping)
    scores = how.score(RECORD, RECORD.data, QUERIES, get)
    ((settings, chosen),) = how.variants(scores)
    assert settings == {}
    expected = explicit(get, how, damping)
    np.testing.assert_allclose(chosen.values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_balanced_scores_are_the_equation(get):
    """Claim: balanced by draw, every draw of a query is divided by its own norm before the mean."""
    how = estimator(balance=Balance("draw", "query"))
    ((_, chosen),) = how.variants(how.score(RECORD, RECORD.data, QUERIES, get))
    expected = explicit(get, how, 1e-4, weigh=True)
    np.testing.assert_allclose(chosen.values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_sweep_over_the_grid_is_one_artifact(get):
    """Claim (DESIGN.md §4.4): dampings on the grid, and lists of them, are the same node; another value is not."""
    base = estimator(damping=1e-8).scores(RECORD, RECORD.data, QUERIES).fingerprint
    for damping in (1e-4, [1e-9, 1e-3]):
        assert estimator(damping=damping).scores(RECORD, RECORD.data, QUERIES).fingerprint == base
    assert estimator(damping=3e-5).scores(RECORD, RECORD.data, QUERIES).fingerprint != base
    scores = estimator().score(RECORD, RECORD.data, QUERIES, get)
    assert scores.values.shape == (len(GRID), 1, 3, 10)
    sweep = estimator(damping=[1e-9, 1e-3])
    labels = [settings for settings, _ in sweep.variants(scores)]
    assert labels == [{"estimator.damping": 1e-9}, {"estimator.damping": 1e-3}]


def test_prefixes_of_draws_are_runs_with_fewer(get):
    """Claim: draws.n=[2,4] holds the scores of draws.n=2 and of draws.n=4."""
    both = estimator(draws=Uniform([2, 4], seed=1))
    scores = both.score(RECORD, RECORD.data, QUERIES, get)
    for (settings, found), n in zip(both.variants(scores), (2, 4), strict=True):
        alone = estimator(draws=Uniform(n, seed=1))
        ((_, expected),) = alone.variants(alone.score(RECORD, RECORD.data, QUERIES, get))
        assert settings == {"estimator.draws.n": n}
        np.testing.assert_allclose(found.values, expected.values, rtol=1e-4, atol=1e-7 * np.abs(expected.values).max())


def test_execution_changes_no_score(get):
    """Claim: shards, blocks and batch size change nothing beyond rounding, and no fingerprint."""
    whole = estimator()
    node = whole.scores(RECORD, RECORD.data, QUERIES)
    divided = replace(whole, execution=Execution(device="cpu", batch_size=3, shard=7, query_shard=2, gradient_memory=1))
    other = divided.scores(RECORD, RECORD.data, QUERIES)
    assert other.fingerprint == node.fingerprint
    fresh = InMemory()
    fresh._artifacts[RECORD.fingerprint] = get(RECORD)
    a, b = fresh(other).values[8], get(node).values[8]
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4 * np.abs(b).max())


def test_norms_by_timestep_are_means_over_their_stretch(get):
    """Claim: the table that balances by timestep holds the mean gradient norm of the draws in each stretch of timesteps."""
    table = get(TimestepNorms(RECORD, RECORD.data, seed=0, draws=16, bins=4, execution=CPU))
    images = get(RECORD.data)
    draws = Uniform(16, 0).draw("norms", images.ids(), SCHEDULE.T)
    norms = PerExampleGradients(RECORD.network(get)).capture(Loss(SCHEDULE), images.x0(), draws).norms()
    for stretch in range(4):
        inside = (draws.timestep > 25 * stretch) & (draws.timestep <= 25 * (stretch + 1))
        np.testing.assert_allclose(table.norms[25 * stretch : 25 * (stretch + 1)], float(norms[inside].mean()), rtol=1e-5)


def test_bad_settings_are_named():
    """Claim: a negative damping and unknown kinds of balance are errors that name the setting."""
    with pytest.raises(ValueError, match=r"estimator.damping has \[-1.0\]"):
        estimator(damping=-1.0)
    with pytest.raises(ValueError, match=r"estimator.balance.by=day"):
        Balance("day", "query")
