"""TracIn and ReTrac against a literal transcription of their equations."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.curvature import KFAC
from attribution.estimators import Guided, LiSSA, ReTrac, SelfInfluence, TracIn, training_trajectory_blocks
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.training_trajectory_blocks import TrajectoryQueryBlock
from attribution.estimators.trak import TRAK
from attribution.execution import Execution
from attribution.gradients import hooks, network_cache
from attribution.images.draws import Even, Fixed, Uniform
from attribution.measurements import Loss
from attribution.nodes import InMemory
from attribution.projection import Identity
from experiments.store.store import Store
from tests.worlds import PROCESS, Blobs, Reordered, trained

RECORD = trained()
QUERIES = Blobs(n=5, first=900)
LOSS = Loss(PROCESS)
CHECKPOINTS = [4, 9, 12]
DRAWS = Even(3, noises=2, seed=1)


def estimator(kind, **changes):
    settings = {"measurement": LOSS, "draws": DRAWS, "checkpoints": CHECKPOINTS, "execution": Execution(device="cpu")}
    return kind(**{**settings, **changes})


@pytest.fixture(scope="module")
def get():
    """One memory for all tests: they share the training, and the gradients of the transcription."""
    yield InMemory()
    _gradients.clear()
    _network.cache_clear()


def with_training(get):
    """A memory that has the training alone."""
    memory = InMemory()
    memory._artifacts[RECORD.fingerprint] = get(RECORD)
    return memory


def gradient(network, x0, t, noise):
    """∇ℓ_t(θ, ε, x) in full, by autograd, written without anything of the package: mean over pixels of (ε - ε_θ(x_t, t))²."""
    betas = torch.linspace(1e-4, 0.1, 100, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - betas, 0)[t - 1]
    x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise
    loss = ((noise - network(x_t[None], torch.tensor([t - 1])).sample[0]) ** 2).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))])


def sides(get, step, images, ids, draws, normalized):
    """Mean over draws of the (normalized) gradients of each image, one at a time."""
    result = []
    for row in range(len(ids)):
        gradients = []
        for k in range(draws.count):
            noise = draws.rows(slice(row, row + 1)).noise((1, 8, 8), torch.float64)[0, k]
            x0 = images[row].flip(-1) if draws.flip[row, k] else images[row]
            g = gradient_at(get, step, x0, int(draws.timestep[row, k]), noise)
            gradients.append(g / g.norm() if normalized else g)
        result.append(torch.stack(gradients).mean(0))
    return torch.stack(result)


def gradient_at(get, step, x0, t, noise):
    """``gradient`` of the checkpoint at ``step``. The tests share those of the same inputs."""
    key = (step, x0.numpy().tobytes(), t, noise.numpy().tobytes())
    if key not in _gradients:
        _gradients[key] = gradient(_network(get, step), x0, t, noise)
    return _gradients[key]


_gradients: dict[tuple, torch.Tensor] = {}
_network = functools.cache(lambda get, step: RECORD.network(get, step).double())


def transcription(get, normalized, draws, queries=QUERIES):
    """Equations 8 and 9 as they stand, in float64."""
    record, train, images = get(RECORD), get(RECORD.data), get(queries)
    total = torch.zeros(len(images), len(train), dtype=torch.float64)
    for step in CHECKPOINTS:
        eta = record.learning_rate(step)
        trained_at = record.latest_draws(step, train.index)
        G = sides(get, step, train.x0().double(), train.index, trained_at, normalized)
        Q = sides(get, step, images.x0().double(), images.index, draws.draw("query", images.ids(), PROCESS.T), normalized)
        total += eta * Q @ G.T
    return total.numpy()


@pytest.mark.parametrize(("kind", "normalized"), [(TracIn, False), (ReTrac, True)])
@pytest.mark.parametrize("draws", [DRAWS, Uniform(3, seed=2), Fixed([50], seed=3)], ids=["even", "uniform", "fixed"])
def test_scores_are_the_equation(get, kind, normalized, draws):
    """Claim: eq. 8 (TracIn) and eq. 9 (ReTrac) by for-loops of autograd in float64, at the recorded draws, scale included."""
    scores = estimator(kind, draws=draws).score(RECORD, RECORD.data, QUERIES, get)
    np.testing.assert_allclose(scores.values, transcription(get, normalized, draws), rtol=2e-5, atol=1e-10)
    assert scores.values.dtype == np.float32
    assert scores.train_index.tolist() == get(RECORD.data).index.tolist()
    assert scores.query_index.tolist() == get(QUERIES).index.tolist()


def test_retrac_is_neither_tracin_nor_a_cosine(get):
    """Claim: the average query gradient is not normalized again: ReTrac's query side is shorter than 1."""
    retrac = estimator(ReTrac).score(RECORD, RECORD.data, QUERIES, get).values
    draws = DRAWS.draw("query", get(QUERIES).ids(), PROCESS.T)
    Q = sides(get, 4, get(QUERIES).x0().double(), get(QUERIES).index, draws, True)
    assert (Q.norm(dim=1) < 0.999).all()
    assert np.abs(retrac).max() <= sum(get(RECORD).learning_rate(step) for step in CHECKPOINTS)


@pytest.mark.slow
def test_execution_changes_no_score(get):
    """Claim: batch size, shards and blocks change nothing beyond rounding, and no fingerprint."""
    whole = estimator(ReTrac, checkpoints=[9])
    node = whole.scores(RECORD, RECORD.data, QUERIES)
    for execution in (
        Execution(device="cpu", batch_size=5),
        Execution(device="cpu", shard=7, query_shard=2),
        Execution(device="cpu", pass_memory=1),
    ):
        divided = replace(whole, execution=execution).scores(RECORD, RECORD.data, QUERIES)
        assert divided.fingerprint == node.fingerprint
        np.testing.assert_allclose(with_training(get)(divided).values, get(node).values, rtol=1e-4, atol=1e-8)


def scores_in(get, execution):
    """Values of TracIn's and ReTrac's scores, computed together."""
    kinds = [estimator(kind, checkpoints=[4, 9], execution=execution) for kind in (TracIn, ReTrac)]
    found = with_training(get).many([kind.scores(RECORD, RECORD.data, QUERIES) for kind in kinds])
    return [scores.values for scores in found]


_BLOCKS = {"device": "cpu", "query_shard": 1, "shard": 9, "pass_memory": 1e9}


@pytest.fixture(scope="module")
def unbounded(get):
    """The scores of a machine that holds all queries."""
    return scores_in(get, Execution(**_BLOCKS))


@pytest.mark.parametrize("memory", [1, 2, 100])
@pytest.mark.parametrize("scratch", [1, 100])
@pytest.mark.slow
def test_a_bound_on_queries_changes_no_bit(get, unbounded, monkeypatch, memory, scratch):
    """Claim: the device holds no more queries than ``memory`` allows; the scores are those of a machine that holds all."""
    held, hold = [], training_trajectory_blocks.resident
    monkeypatch.setattr(
        training_trajectory_blocks, "resident", lambda net, blocks, get: held.append(len(blocks)) or hold(net, blocks, get)
    )
    size = 2 * 4 * RECORD.parameter_count
    scores = scores_in(get, Execution(**_BLOCKS, memory=4 * memory * size, scratch=scratch * size))
    assert max(held) == min(memory, 2 * min(scratch, QUERIES.n))
    assert all(np.array_equal(*pair) for pair in zip(scores, unbounded, strict=True))


@pytest.mark.slow
def test_the_store_holds_the_queries_of_one_checkpoint_at_a_time(get, tmp_path, monkeypatch):
    """Claim: the queries' gradients of a checkpoint are deleted before those of the next are computed; in the end none is left."""
    store, present, compute = Store(tmp_path), [], TrajectoryQueryBlock.compute_together.__func__

    def counting(cls, nodes, get):
        present.append(
            {node.step for node in nodes} | {step_of(path) for path in tmp_path.glob("TrajectoryQueryBlock/*/node.json")}
        )
        return compute(cls, nodes, get)

    def step_of(path):
        return json.loads(path.read_text())["description"]["step"]

    monkeypatch.setattr(TrajectoryQueryBlock, "compute_together", classmethod(counting))
    execution = Execution(device="cpu", query_shard=2)
    scores = store(estimator(TracIn, execution=execution).scores(RECORD, RECORD.data, QUERIES))
    assert present == [{step} for step in CHECKPOINTS for _ in range(3)]
    assert not list(tmp_path.glob("Trajectory*Block/*"))
    np.testing.assert_allclose(
        scores.values, estimator(TracIn).score(RECORD, RECORD.data, QUERIES, get).values, rtol=1e-4, atol=1e-8
    )


def test_order_of_examples_changes_no_score(get):
    """Claim: a shuffled training set has the same scores, shuffled."""
    order = tuple(np.random.default_rng(0).permutation(24).tolist())
    shuffled = Reordered(RECORD.data, order)
    scores = estimator(TracIn).score(RECORD, RECORD.data, QUERIES, get)
    other = estimator(TracIn).score(RECORD, shuffled, QUERIES, get)
    np.testing.assert_allclose(other.values, scores.values[:, list(order)], rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_estimators_together_score_as_alone(get):
    """Claim: sharing a pass changes no bit of either estimator's scores."""
    nodes = [estimator(kind).scores(RECORD, RECORD.data, QUERIES) for kind in (TracIn, ReTrac)]
    for node, together in zip(nodes, with_training(get).many(nodes), strict=True):
        assert np.array_equal(with_training(get)(node).values, together.values)


@pytest.fixture
def passes(monkeypatch):
    """For every pass of the network, the number of its inputs."""
    counted = []
    run = hooks.run_all

    def counting(model, modules, measure, inputs, *rest):
        counted.append(len(inputs[0]))
        run(model, modules, measure, inputs, *rest)

    monkeypatch.setattr(hooks, "run_all", counting)
    return counted


@pytest.mark.parametrize("batch_size", [512, 10, 3])
@pytest.mark.slow
def test_estimators_share_their_passes(get, passes, batch_size):
    """Claim: TracIn and ReTrac with the same draws run the network as often together as one of them alone."""
    counts = []
    for kinds in ((TracIn,), (ReTrac,), (TracIn, ReTrac)):
        chosen = [estimator(kind, checkpoints=[9], execution=Execution(device="cpu", batch_size=batch_size)) for kind in kinds]
        memory = with_training(get)
        network_cache._engines.clear()  # the first capture of an engine checks itself
        passes.clear()
        memory.many([kind.scores(RECORD, RECORD.data, QUERIES) for kind in chosen])
        counts.append(len(passes))
    assert counts[0] == counts[1] == counts[2] > 0


@pytest.mark.slow
def test_all_queries_share_one_pass_over_the_training_set(get, passes):
    """Claim: two pools of queries take one pass over the training set (24 examples at once) for each checkpoint, as one does."""
    for pools in ([QUERIES], [QUERIES, Blobs(n=3, first=700)]):
        memory = with_training(get)
        passes.clear()
        memory.many([estimator(TracIn).scores(RECORD, RECORD.data, pool) for pool in pools])
        assert passes.count(24) == len(CHECKPOINTS)


def test_a_learning_rate_of_zero_is_refused(get):
    """Claim: scores that are all zero because η is are an error, not a result."""
    still = trained(optimizer=functools.partial(torch.optim.SGD, lr=0.0))
    with pytest.raises(ValueError, match="learning rate is 0"):
        estimator(TracIn).score(still, still.data, QUERIES, get)


@pytest.mark.slow
def test_halves_average_to_the_whole(get):
    """Claim: the two halves are scores from every other draw, and weighted by their sizes they give the scores."""
    scores = estimator(TracIn, draws=Uniform(5, seed=4)).score(RECORD, RECORD.data, QUERIES, get)
    assert scores.halves is not None
    np.testing.assert_allclose(0.6 * scores.halves[0] + 0.4 * scores.halves[1], scores.values, rtol=1e-4, atol=1e-9)
    first = _EveryOther(5, seed=4)
    np.testing.assert_allclose(scores.halves[0], transcription(get, False, first), rtol=2e-5, atol=1e-10)
    assert estimator(TracIn, draws=Uniform(1)).score(RECORD, RECORD.data, QUERIES, get).halves is None


@pytest.mark.parametrize(("kind", "normalized"), [(TracIn, False), (ReTrac, True)])
@pytest.mark.slow
def test_self_influence_is_the_diagonal(get, kind, normalized):
    """Claim: A(z, z) has the query side over the draws and the training side at the recorded draw of z: the diagonal."""
    influence = get(SelfInfluence(estimator(kind), RECORD, RECORD.data))
    expected = np.diag(transcription(get, normalized, DRAWS, RECORD.data))
    np.testing.assert_allclose(influence.values, expected, rtol=2e-5, atol=1e-10)
    assert (influence.values > 0).mean() > 0.5, "training on an example mostly lowers the loss of that example"


def test_positive_scores_mean_that_training_helped(get):
    """Claim (sign): one SGD step on z lowers the loss of a query, at the query's draws, by η ⟨Q, G⟩ to first order."""
    record, train, images = get(RECORD), get(RECORD.data), get(QUERIES)
    step, rate = 9, 1e-6
    single = estimator(TracIn, checkpoints=[step]).score(RECORD, RECORD.data, QUERIES, get)
    eta = record.learning_rate(step)
    draws = DRAWS.draw("query", images.ids(), PROCESS.T)
    noise = draws.noise((1, 8, 8), torch.float64)

    def cost(network):
        from attribution.diffusion import denoiser

        with torch.no_grad():
            return torch.stack(
                [
                    LOSS(denoiser(network), images.x0([q]).double().expand(6, -1, -1, -1), draws.timestep[q], noise[q]).mean()
                    for q in range(len(images))
                ]
            )

    before = cost(RECORD.network(get, step))
    for z in (0, 7):
        network = RECORD.network(get, step)
        at = record.latest_draws(step, train.index).rows(slice(z, z + 1))
        image = at.images(train.x0([z]).double())[0, 0]
        g = gradient(network, image, int(at.timestep), at.noise((1, 8, 8), torch.float64)[0, 0])
        torch.nn.utils.vector_to_parameters(
            torch.nn.utils.parameters_to_vector(network.parameters()).detach() - rate * g, network.parameters()
        )
        lowered = (before - cost(network)) / rate * eta
        np.testing.assert_allclose(lowered.numpy(), single.values[:, z], rtol=1e-3, atol=1e-9)


def test_a_model_without_a_record_is_refused(get):
    """Claim: an impossible combination is an error that says what to do."""
    with pytest.raises(ValueError, match="needs the record"):
        estimator(ReTrac).scores(RECORD.data, RECORD.data, QUERIES)
    with pytest.raises(ValueError, match=r"ReTrac\.checkpoints=\[1\]: from step 3 \(one epoch\) on training has visited"):
        estimator(ReTrac, checkpoints=[1]).score(RECORD, RECORD.data, QUERIES, get)
    with pytest.raises(ValueError, match=r"no checkpoint at step \[13\]"):
        estimator(ReTrac, checkpoints=[13]).score(RECORD, RECORD.data, QUERIES, get)


def test_gradients_that_are_not_finite_name_their_layer(get):
    """Claim: NaN parameters give an error with the layer, never NaN scores."""
    from attribution.gradients.inner_products import dot

    good, bad = (
        {"a": torch.ones(2, 3, 4), "b": torch.ones(2, 3, 4)},
        {"a": torch.ones(2, 3, 4), "b": torch.full((2, 3, 4), torch.nan)},
    )
    with pytest.raises(FloatingPointError, match="gradients of b are not finite"):
        dot(good, bad)


class _EveryOther(Uniform):
    """The 1st, 3rd, 5th of the draws."""

    @property
    def count(self):
        return len(range(0, self.n, 2))

    def draw(self, role, example, T, flips=False, dropout=0.0):
        return Uniform(self.n, self.seed).draw(role, example, T, flips).columns(slice(0, None, 2))


@pytest.mark.parametrize(
    "kind",
    [
        estimator(TracIn),
        estimator(ReTrac),
        estimator(Guided),
        LiSSA(measurement=LOSS, draws=DRAWS, damping=0.1, scale=1.0, depth=1, batch_size=2),
        KFACInfluence(measurement=LOSS, draws=DRAWS, curvature=KFAC(draws=DRAWS)),
        TRAK(measurement=LOSS, draws=DRAWS, projection=Identity()),
        GradientSimilarity(measurement=LOSS, draws=DRAWS, projection=Identity(), cosine=False),
    ],
    ids=lambda kind: type(kind).__name__,
)
def test_layers_without_gradients_are_refused_before_training(kind):
    """Claim: ``scores`` raises, before anything is computed, if the model has a layer without per-example gradients."""
    record = trained(model=lambda: torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)))
    with pytest.raises(ValueError, match=r"1\.weight, 1\.bias \(BatchNorm2d\)"):
        kind.scores(record, record.data, QUERIES)
