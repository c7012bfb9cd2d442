"""Scores by pair of (query's, training example's) timesteps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.curvature import KFAC
from attribution.diffusion.samplers import DDIMSampler
from attribution.estimators import ReTrac, TracIn
from attribution.estimators.balance import Balance
from attribution.estimators.influence import KFACInfluence
from attribution.execution import Execution
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.bins import ALL, bin_of, labels
from attribution.images.draws import Uniform
from attribution.measurements import Loss, LossAtT, SquareNorm, TrajectoryLikelihood
from attribution.nodes import InMemory
from tests.worlds import PROCESS, Blobs, trained

RECORD = trained()
QUERIES = Blobs(n=3, first=900)
CPU = Execution(device="cpu")
BINS = 3


@pytest.fixture(scope="module")
def get():
    return InMemory()


def kfac(**changes) -> KFACInfluence:
    settings = {
        "measurement": SquareNorm(PROCESS),
        "draws": Uniform(6, seed=1, bins=BINS),
        "curvature": KFAC(draws=Uniform(2, seed=2), execution=CPU),
        "damping": 1e-4,
        "execution": CPU,
    }
    return KFACInfluence(**{**settings, **changes})


@pytest.mark.parametrize(("bins", "T"), [(1, 10), (3, 10), (4, 1000), (7, 7)])
def test_bins_are_what_their_labels_say(bins, T):
    """Claim: every timestep is in the range that its bin's label names, and the ranges together are 1..T."""
    t = torch.arange(1, T + 1)
    found = bin_of(t, bins, T)
    names = labels(bins, T)
    assert names[0] == ALL
    for b, name in enumerate(names[1:]):
        first, last = map(int, name.split("-"))
        assert found[first - 1 : last].tolist() == [b] * (last - first + 1)
    assert names[1].startswith("1-")
    assert names[-1].endswith(f"-{T}")


@pytest.mark.parametrize("batch_size", [512, 5])
@pytest.mark.parametrize(
    "how",
    [kfac(), kfac(balance=Balance("draw", "query")), kfac(draws=Uniform([2, 6], seed=1, bins=BINS))],
    ids=["kfac", "balanced", "prefixes"],
)
@pytest.mark.slow
def test_pairs_add_up_to_the_whole(get, how, batch_size):
    """Claim: the scores of all pairs of bins add up, over rows and columns, to those without bins, for any batch size."""
    execution = Execution(device="cpu", batch_size=batch_size)
    binned = replace(how, execution=execution)
    plain = replace(how, draws=replace(how.draws, bins=1), execution=execution)
    by_pair, whole = (e.score(RECORD, RECORD.data, QUERIES, get) for e in (binned, plain))
    assert by_pair.values.shape == (*whole.values.shape[:2], BINS + 1, BINS + 1, *whole.values.shape[2:])
    scale = np.abs(whole.values).max((2, 3), keepdims=True)
    assert (np.abs(by_pair.values[:, :, 1:, 1:].sum((2, 3)) - whole.values) <= 1e-4 * scale).all()
    np.testing.assert_allclose(
        by_pair.values[:, :, 0, 0], by_pair.values[:, :, 1:, 1:].sum((2, 3)), rtol=1e-3, atol=1e-5 * scale.max()
    )


@pytest.mark.parametrize("kind", [TracIn, ReTrac])
def test_training_examples_count_where_they_were_trained(get, kind):
    """Claim: at one checkpoint an example has scores in the bin of its recorded draw only; query bins add up to the plain score."""
    settings = {"measurement": Loss(PROCESS), "checkpoints": [9], "execution": CPU}
    binned = kind(draws=Uniform(6, seed=1, bins=BINS), **settings).score(RECORD, RECORD.data, QUERIES, get)
    plain = kind(draws=Uniform(6, seed=1), **settings).score(RECORD, RECORD.data, QUERIES, get)
    visited = get(RECORD).latest_draws(9, get(RECORD.data).index).timestep[:, 0]
    of = bin_of(visited, BINS, PROCESS.T).numpy()
    for b in range(BINS):
        assert (binned.values[:, 1 + b][:, :, of != b] == 0).all()
        assert (binned.values[0, 1 + b][:, of == b] != 0).all()
    np.testing.assert_allclose(binned.values[0, 0], plain.values, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(binned.values[1:, 0].sum(0), plain.values, rtol=1e-3, atol=1e-7)
    assert binned.halves is not None
    np.testing.assert_allclose(binned.halves, plain.halves, rtol=1e-4, atol=1e-8)


def test_a_pair_is_the_product_of_its_bins(get):
    """Claim: entry (b, b') is ∇m restricted to the draws in b, preconditioned, with ∇ℓ restricted to b', in float64."""
    how = kfac()
    scores = how.score(RECORD, RECORD.data, QUERIES, get).at(damping=1e-4, draws=6, query_bin="35-67", train_bin="68-100")
    basis = get(how.curvature.basis(RECORD, RECORD.data))

    def part(images, role, measure, b):
        draws = how.draws.draw(role, images.ids(), PROCESS.T)
        engine = PerExampleGradients(RECORD.network(get), batch_size=1)
        found = []
        for row in range(len(images)):
            total = dict.fromkeys(basis.layers, 0.0)
            for k in range(6):
                one = draws.rows(slice(row, row + 1)).columns(slice(k, k + 1))
                if (int(one.timestep) - 1) * BINS // PROCESS.T == b:
                    g = engine.capture(measure, images.x0([row]), one).mean()
                    total = {layer: total[layer] + g[layer][0].double() / 6 for layer in basis.layers}
            found.append(total)
        return found

    q = part(get(QUERIES), "query", how.measurement, 1)
    z = part(get(RECORD.data), "attribution", Loss(PROCESS), 2)
    expected = np.zeros((3, 24))
    for row, left in enumerate(q):
        for column, right in enumerate(z):
            for layer in basis.layers:
                QA, QB = basis.QA[layer].double(), basis.QB[layer].double()
                if isinstance(left[layer], float) or isinstance(right[layer], float):
                    continue
                a, b = (QB.T @ side[layer] @ QA for side in (left, right))
                expected[row, column] += float((a * b / (basis.values[layer] + 1e-4)).sum())
    np.testing.assert_allclose(scores.values, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


def test_bins_are_of_the_timesteps_that_are_measured(get):
    """Claim: bins are those of the measured timesteps, not of the drawn ones, for a loss at one timestep and for trajectories."""
    how = kfac(measurement=LossAtT(PROCESS, 50))
    scores = how.score(RECORD, RECORD.data, QUERIES, get)
    assert (scores.at(damping=1e-4, draws=6, query_bin="1-34", train_bin="all").values == 0).all()
    whole, own = (scores.at(damping=1e-4, draws=6, query_bin=b, train_bin="all").values for b in ("all", "35-67"))
    np.testing.assert_allclose(own, whole, rtol=1e-5)
    draws = Uniform(50).draw("query", torch.arange(3), PROCESS.T)
    steps = TrajectoryLikelihood(PROCESS, DDIMSampler(steps=7, eta=1.0)).timesteps(draws)
    allowed = torch.tensor(sorted(DDIMSampler(steps=7).timesteps(PROCESS.T)))
    expected = torch.stack([allowed[allowed <= t].max() for t in draws.timestep.flatten()]).view_as(steps)
    assert torch.equal(steps, expected)


def test_variants_name_their_bins(get):
    """Claim: every pair of bins is a variant, named by its bins."""
    how = kfac()
    variants = how.variants(how.score(RECORD, RECORD.data, QUERIES, get))
    names = labels(BINS, PROCESS.T)
    assert [settings for settings, _ in variants] == [{"query_bin": q, "train_bin": t} for q in names for t in names]
    assert all(scores.values.shape == (3, 24) for _, scores in variants)


def test_weights_by_timestep_are_weights_of_bins(get):
    """Claim: a list of weights (balance.by) gives the weighted sum of the bins' scores; weights of 1 change nothing."""
    binned = kfac().score(RECORD, RECORD.data, QUERIES, get).values[:, :, 1:, 0]
    plain = Uniform(6, seed=1)
    weighted = kfac(draws=plain, balance=Balance([2.0, 0.0, 0.5], "query")).score(RECORD, RECORD.data, QUERIES, get).values
    expected = 2 * binned[:, :, 0] + 0.5 * binned[:, :, 2]
    np.testing.assert_allclose(weighted, expected, rtol=1e-2, atol=1e-4 * np.abs(expected).max())
    even = kfac(draws=plain, balance=Balance([1.0, 1.0], "train")).score(RECORD, RECORD.data, QUERIES, get).values
    none = kfac(draws=plain).score(RECORD, RECORD.data, QUERIES, get).values
    np.testing.assert_allclose(even, none, rtol=1e-3, atol=1e-5 * np.abs(none).max())
