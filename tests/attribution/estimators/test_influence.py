"""K-FAC influence against explicit matrices and single gradients in float64."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.curvature import KFAC, KroneckerBasis
from attribution.curvature.factors import FactorShard
from attribution.estimators import influence
from attribution.estimators.balance import Balance, TimestepNorms
from attribution.estimators.held_queries import unstable_layer
from attribution.estimators.influence import GRID, InfluenceTrainingBlock, KFACInfluence
from attribution.execution import Execution
from attribution.gradients import hooks, network_cache
from attribution.gradients.compression import Quantized, TruncatedSVD
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Even, Uniform
from attribution.images.window import Window
from attribution.measurements import Loss, SquareNorm
from attribution.nodes import InMemory
from attribution.training.checkpoints import AtSteps
from experiments.metrics.correlation import pearson
from experiments.store.store import Store
from tests.worlds import PROCESS, UNET, Blobs, Reordered, trained

SMALL = functools.partial(UNET, block_out_channels=(4, 8))  # H of a layer is written out
RECORD = trained(model=SMALL, data=Blobs(n=10), checkpoints=AtSteps([12]))
QUERIES = Blobs(n=3, first=900)
CPU = Execution(device="cpu")


def estimator(**changes) -> KFACInfluence:
    settings = {
        "measurement": SquareNorm(PROCESS),
        "draws": Uniform(4, seed=1),
        "curvature": KFAC(draws=Uniform(3, seed=2), execution=CPU),
        "damping": 1e-4,
        "execution": CPU,
    }
    return KFACInfluence(**{**settings, **changes})


@pytest.fixture(scope="module")
def get():
    return InMemory()


def with_basis(get):
    """A memory that has the training and the basis of its curvature alone."""
    memory = InMemory()
    for ready in (RECORD, estimator().curvature.basis(RECORD, RECORD.data)):
        memory._artifacts[ready.fingerprint] = get(ready)
    return memory


def single_gradients(get, measure, images, role, draws, weigh=False):
    """For each image the mean over draws of its (normalized) gradients, one pass each: layer → [B, out, in]."""
    network = RECORD.network(get)
    engine = PerExampleGradients(network, batch_size=1)
    rows = []
    for i in range(len(images)):
        drawn = draws.draw(role, images.ids([i]), PROCESS.T)
        gradients = []
        for k in range(drawn.count):
            g = engine.capture(measure, images.x0([i]), drawn.columns(slice(k, k + 1))).mean()
            norm = torch.stack([block.norm() for block in g.values()]).norm() if weigh else 1.0
            gradients.append({name: block[0].double() / norm for name, block in g.items()})
        rows.append({name: torch.stack([f[name] for f in gradients]).mean(0) for name in gradients[0]})
    return rows


def explicit(get, method, damping, weigh=False):
    """Σ_layers vec(q)ᵀ (H_layer + λI)⁻¹ vec(z) with H_layer = B ⊗ A written out."""
    basis = get(method.curvature.basis(RECORD, RECORD.data))
    q = single_gradients(get, method.measurement, get(QUERIES), "query", method.draws.side("query"), weigh)
    z = single_gradients(get, Loss(PROCESS), get(RECORD.data), "attribution", method.draws.side("train"))
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
    method = estimator(damping=damping)
    scores = method.score(RECORD, RECORD.data, QUERIES, get)
    ((settings, chosen),) = method.variants(scores)
    assert settings == {}
    expected = explicit(get, method, damping)
    np.testing.assert_allclose(chosen.values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_balanced_scores_are_the_equation(get):
    """Claim: balanced by draw, every draw of a query is divided by its norm before the mean."""
    method = estimator(balance=Balance("draw", "query"))
    ((_, chosen),) = method.variants(method.score(RECORD, RECORD.data, QUERIES, get))
    expected = explicit(get, method, 1e-4, weigh=True)
    np.testing.assert_allclose(chosen.values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_sweep_over_the_grid_is_one_artifact(get):
    """Claim: dampings on the grid, and lists of them, are the same node; another value is not."""
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
    for (settings, variant), n in zip(both.variants(scores), (2, 4), strict=True):
        alone = estimator(draws=Uniform(n, seed=1))
        ((_, expected),) = alone.variants(alone.score(RECORD, RECORD.data, QUERIES, get))
        assert settings == {"estimator.draws.n": n}
        np.testing.assert_allclose(variant.values, expected.values, rtol=1e-4, atol=1e-7 * np.abs(expected.values).max())


@pytest.mark.parametrize(
    "draws", [Uniform(4, seed=1, train=2), Even(2, seed=1, train=5), Window(4, 10, 50, seed=1, train=2)], ids=str
)
@pytest.mark.slow
def test_sides_with_their_own_draws_are_the_equation(get, draws):
    """Claim: each side is the mean over its own number of draws, under every scheme."""
    method = estimator(draws=draws)
    ((_, chosen),) = method.variants(method.score(RECORD, RECORD.data, QUERIES, get))
    expected = explicit(get, method, 1e-4)
    np.testing.assert_allclose(chosen.values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(("n", "train"), [([2, 4], 3), ([2, 4], [3, 1]), ([4, 2], [1, 3])])
def test_pairs_of_draws_are_runs_of_their_own(get, n, train):
    """Claim: lists of numbers of draws hold the scores of each pair of numbers."""
    both = estimator(draws=Uniform(n, seed=1, train=train))
    scores = both.score(RECORD, RECORD.data, QUERIES, get)
    numbers = dict(zip(n, [train] * 2 if isinstance(train, int) else train, strict=True))
    for settings, variant in both.variants(scores):
        query = settings["estimator.draws.n"]
        alone = estimator(draws=Uniform(query, seed=1, train=numbers[query]))
        node = alone.scores(RECORD, RECORD.data, QUERIES)
        ((_, expected),) = alone.variants(get(node))
        np.testing.assert_allclose(variant.values, expected.values, rtol=1e-4, atol=1e-7 * np.abs(expected.values).max())
        assert both.draws_of(settings) == (query, numbers[query])
        whole = both.scores(RECORD, RECORD.data, QUERIES)
        assert whole.at_draws(query, numbers[query]).passes(get) == node.passes(get) == 3 * query + 10 * numbers[query]  # pyright: ignore


def blocks_of(method):
    (batch,) = method.scores(RECORD, RECORD.data, QUERIES).batches
    (training,) = batch.training_blocks
    return training.query_blocks(), training


def test_a_side_knows_nothing_of_the_other_s_number():
    """Claim: the queries' gradients are one node whatever ``train`` is; passes over the training set are shared whatever n is."""
    queries, training = blocks_of(estimator(draws=Uniform(4, seed=1, train=2)))
    others, other_training = blocks_of(estimator(draws=Uniform(4, seed=1, train=3)))
    assert [block.fingerprint for block in queries] == [block.fingerprint for block in others]
    assert training.together() != other_training.together()
    assert training.together() == blocks_of(estimator(draws=Uniform(7, seed=1, train=2)))[1].together()
    assert queries[0].cost().passes == 3 * 4
    assert training.cost().passes == 10 * 2


@pytest.mark.parametrize("batch_size", [512, 3])
@pytest.mark.parametrize("side", ["query", "train"])
@pytest.mark.slow
def test_balanced_scores_share_the_passes(get, monkeypatch, side, batch_size):
    """Claim: plain and balanced influence run the network as often together as alone, and score the same to the last bit."""
    counted, run = [], hooks.run_all
    monkeypatch.setattr(hooks, "run_all", lambda *given: counted.append(len(given[3].t)) or run(*given))
    execution = Execution(device="cpu", batch_size=batch_size)
    methods = [estimator(balance=balance, execution=execution) for balance in (None, Balance("draw", side))]
    nodes = [method.scores(RECORD, RECORD.data, QUERIES) for method in methods]

    def computed(chosen):
        fresh = with_basis(get)
        network_cache._engines.clear()  # the first capture of an engine checks itself
        counted.clear()
        return [scores.values for scores in fresh.many(chosen)], sum(counted)

    (both, passes), (plain, alone), (balanced, _) = (computed(chosen) for chosen in (nodes, nodes[:1], nodes[1:]))
    assert passes == alone > 0
    assert np.array_equal(both[0], plain[0])
    assert np.array_equal(both[1], balanced[0])
    assert not np.array_equal(both[0], both[1])


def test_bins_outside_a_window_are_empty(get):
    """Claim: bins divide all timesteps; of draws in a window only the bins that it meets have scores, which add up to the whole."""
    binned, plain = (estimator(draws=Window(6, 10, 50, seed=1, bins=bins)) for bins in (4, 1))
    scores = binned.score(RECORD, RECORD.data, QUERIES, get)

    def pair(query, train):
        return scores.at(damping=1e-4, draws=6, query_bin=query, train_bin=train).values

    ((_, whole),) = plain.variants(plain.score(RECORD, RECORD.data, QUERIES, get))
    np.testing.assert_allclose(pair("all", "all"), whole.values, rtol=1e-3, atol=1e-6 * np.abs(whole.values).max())
    assert all((pair(bin_, "all") == 0).all() and (pair("all", bin_) == 0).all() for bin_ in ("51-75", "76-100"))
    inside = sum(pair(query, train) for query in ("1-25", "26-50") for train in ("1-25", "26-50"))
    np.testing.assert_allclose(inside, whole.values, rtol=1e-3, atol=1e-6 * np.abs(whole.values).max())


def test_a_window_beyond_the_timesteps_is_refused_before_anything_is_computed():
    """Claim: the default window does not fit into T = 100, which is said when the scores are asked for."""
    with pytest.raises(ValueError, match=r"Window.high=500: there are T=100 timesteps"):
        estimator(draws=Window(4)).scores(RECORD, RECORD.data, QUERIES)


@pytest.mark.slow
def test_execution_changes_no_score(get):
    """Claim: shards, blocks and batch size change nothing beyond rounding, and no fingerprint."""
    whole = estimator()
    node = whole.scores(RECORD, RECORD.data, QUERIES)
    divided = replace(whole, execution=Execution(device="cpu", batch_size=3, shard=7, query_shard=2, pass_memory=1))
    other = divided.scores(RECORD, RECORD.data, QUERIES)
    assert other.fingerprint == node.fingerprint
    fresh = InMemory()
    fresh._artifacts[RECORD.fingerprint] = get(RECORD)
    a, b = fresh(other).values[8], get(node).values[8]
    np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4 * np.abs(b).max())


POOLS = [QUERIES, Blobs(n=2, first=700)]
_BLOCKS = {"device": "cpu", "query_shard": 1, "shard": 4, "pass_memory": 1e9}


@pytest.fixture(scope="module")
def unbounded(get):
    """The nodes and values of the scores of a machine that holds all queries."""
    nodes = [estimator(execution=Execution(**_BLOCKS)).scores(RECORD, RECORD.data, pool) for pool in POOLS]
    return nodes, [scores.values for scores in with_basis(get).many(nodes)]


@pytest.mark.parametrize("memory", [1, 2, 100])
@pytest.mark.parametrize("scratch", [1, 2, 100])
def test_a_bound_on_queries_changes_no_bit(get, unbounded, monkeypatch, memory, scratch):
    """Claim: the device holds no more queries of all estimators than ``memory`` allows, the store no more of one than ``scratch``.

    The scores are those of a machine that holds all queries, bit for bit.
    """
    held = []
    hold = influence.resident
    monkeypatch.setattr(influence, "resident", lambda net, blocks, get: held.append(blocks) or hold(net, blocks, get))
    size = 4 * RECORD.parameter_count
    bounded = estimator(execution=Execution(**_BLOCKS, memory=4 * memory * size, scratch=scratch * size))
    nodes = [bounded.scores(RECORD, RECORD.data, pool) for pool in POOLS]
    whole, expected = unbounded
    assert [node.fingerprint for node in nodes] == [node.fingerprint for node in whole]
    fresh = with_basis(get)
    assert [len(node.parts(fresh)) for node in nodes] == [-(-pool.n // scratch) for pool in POOLS]
    scores = fresh.many(nodes)
    assert max(map(len, held)) == min(memory, sum(min(scratch, pool.n) for pool in POOLS))
    assert all(np.array_equal(found.values, values) for found, values in zip(scores, expected, strict=True))


@pytest.mark.parametrize(
    ("compression", "least"),
    [
        (Quantized(bits=16), 0.999999),
        (Quantized(bits=8), 0.9999),
        (Quantized(bits=8, preconditioned=True), 0.9),
        (Quantized(bits=4), 0.99),
        (TruncatedSVD(rank=2), 0.7),
        (TruncatedSVD(rank=100), 1.0),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_compressed_scores_correlate(get, compression, least):
    """Claim: compressed scores correlate with the uncompressed; where nothing is left out, they are equal."""
    method = estimator(compression=compression)
    compressed, expected = (e.score(RECORD, RECORD.data, QUERIES, get).values for e in (method, estimator()))
    assert pearson(compressed, expected)[GRID.index(1e-4)].min() >= min(least, 0.9999999)
    if least < 1:
        assert not np.array_equal(compressed, expected)


@pytest.mark.slow
def test_an_interrupted_computation_goes_on_bit_by_bit(get, tmp_path, monkeypatch):
    """Claim: killed between shards and taken up again, factors and scores are bit-equal, no shard done twice."""
    method = estimator(execution=Execution(device="cpu", shard=4, query_shard=2))
    method = replace(method, curvature=KFAC(draws=Uniform(3, seed=2), execution=method.execution))
    node = method.scores(RECORD, RECORD.data, QUERIES)
    whole = Store(tmp_path / "whole")
    expected = np.array(whole(node).values)
    factors = whole(method.curvature.basis(RECORD, RECORD.data))

    done, calls = [], 0
    together, compute = InfluenceTrainingBlock.compute_together.__func__, FactorShard.compute

    def fails_often(work):
        nonlocal calls
        calls += 1
        if calls % 2:
            raise KeyboardInterrupt
        return work()

    def scores(cls, nodes, get):
        artifacts = fails_often(lambda: together(cls, nodes, get))
        done.extend(node.fingerprint for node in nodes)
        return artifacts

    def sums(self, get):
        artifacts = fails_often(lambda: compute(self, get))
        done.append(self.fingerprint)
        return artifacts

    monkeypatch.setattr(InfluenceTrainingBlock, "compute_together", classmethod(scores))
    monkeypatch.setattr(FactorShard, "compute", sums)
    for _ in range(20):
        store = Store(tmp_path / "killed")
        try:
            resumed_scores = store(node)
            break
        except KeyboardInterrupt:
            continue
    assert np.array_equal(resumed_scores.values, expected)
    resumed = store(method.curvature.basis(RECORD, RECORD.data))
    for layer in factors.layers:
        assert torch.equal(resumed.QA[layer], factors.QA[layer])
        assert torch.equal(resumed.values[layer], factors.values[layer])
    assert len(done) == len(set(done)) == 7  # three shards of four examples each, of factors and of scores, and one sum of two


def test_order_of_examples_changes_no_score(get):
    """Claim: a shuffled training set has the same scores, shuffled."""
    order = [3, 0, 9, 1, 8, 2, 7, 4, 6, 5]
    shuffled = Reordered(RECORD.data, order)
    expected = estimator().score(RECORD, RECORD.data, QUERIES, get).values
    values = estimator().score(RECORD, shuffled, QUERIES, get).values
    np.testing.assert_allclose(values, expected[..., order], rtol=1e-2, atol=1e-4 * np.abs(expected).max())


def test_a_damping_too_small_is_named(get):
    """Claim: a damping under which rounding outweighs the scores is an error with layer and value; one of the grid is left out."""
    with pytest.raises(FloatingPointError, match=r"damping=1e-40 is too small for layer .*eigenvalues go from"):
        estimator(damping=1e-40).score(RECORD, RECORD.data, QUERIES, get)
    values = {"a": torch.tensor([[1e3, 0.0]], dtype=torch.float64), "b": torch.ones(1, 2, dtype=torch.float64)}
    basis = KroneckerBasis({}, {}, values)
    assert unstable_layer(basis, 1e-12) == "a"
    assert unstable_layer(basis, 1e-10) is None


@pytest.mark.slow
def test_norms_by_timestep_are_means_over_their_stretch(get):
    """Claim: the table that balances by timestep holds the mean gradient norm of the draws in each stretch, of few images too."""
    node = TimestepNorms(RECORD, RECORD.data, seed=0, execution=CPU)
    table, images = get(node), get(RECORD.data)
    assert node.draws * len(images) >= 50 * 40
    draws = Uniform(node.draws, 0).draw("norms", images.ids(), PROCESS.T)
    norms = PerExampleGradients(RECORD.network(get)).capture(Loss(PROCESS), images.x0(), draws).norms()
    for stretch in range(50):  # of two timesteps: T is 100
        inside = (draws.timestep > 2 * stretch) & (draws.timestep <= 2 * (stretch + 1))
        np.testing.assert_allclose(table.norms[2 * stretch : 2 * (stretch + 1)], float(norms[inside].mean()), rtol=1e-5)


def test_bad_settings_are_named():
    """Claim: a negative damping and unknown kinds of balance are errors that name the setting."""
    with pytest.raises(ValueError, match=r"KFACInfluence.damping=-1.0"):
        estimator(damping=-1.0)
    with pytest.raises(ValueError, match=r"Balance.by=day"):
        Balance("day", "query")
