"""TRAK, D-TRAK and their relatives against literal float64 computations."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.estimators.balance import Balance
from attribution.estimators.kernel import GRID, from_dtrak
from attribution.estimators.relative_if import RelativeIF
from attribution.estimators.renorm_if import RenormIF
from attribution.estimators.similarity import GradientSimilarity
from attribution.estimators.trak import TRAK
from attribution.execution import Execution
from attribution.features import gram
from attribution.features.features import FeatureShard
from attribution.gradients import hooks, network_cache
from attribution.images.draws import Even, Uniform
from attribution.measurements import ElboWeighted, Interpolated, JourneyLoss, Loss, OutputMean, OutputNorm, SquareNorm
from attribution.nodes import InMemory, describe
from attribution.projection import SJLT, Automatic, Gaussian, Identity, Kronecker, Rademacher
from attribution.training.checkpoints import AtSteps
from experiments.models.samples import Samples
from experiments.store.store import Store
from tests.worlds import PROCESS, UNET, Blobs, trained

SMALL = functools.partial(UNET, block_out_channels=(4, 8))
RECORD = trained(model=SMALL, data=Blobs(n=10), checkpoints=AtSteps([6, 12]))
QUERIES = Blobs(n=3, first=900)
CPU = Execution(device="cpu")
LOSS = Loss(PROCESS)
DAMPING = 1e-3
FEATURES = [LOSS, SquareNorm(PROCESS), OutputMean(PROCESS), OutputNorm(PROCESS, 1), OutputNorm(PROCESS, 2)]
FEATURES += [OutputNorm(PROCESS, float("inf")), ElboWeighted(PROCESS), Interpolated(PROCESS, 0.3)]


def estimator(kind=TRAK, feature=LOSS, **changes):
    settings = {
        "query_feature": feature,
        "train_feature": feature,
        "draws": Uniform(4, seed=1),
        "projection": Identity(),
        "damping": DAMPING,
        "execution": CPU,
    }
    return kind(**{**settings, **changes})


@pytest.fixture(scope="module")
def get():
    return InMemory()


def output_function(measure, output, noise, t):
    """f(o), written out from docs/methods.md (D-TRAK)."""
    pixels = output.flatten(1)
    if isinstance(measure, Loss):
        return ((noise - output) ** 2).flatten(1).mean(1)
    if isinstance(measure, SquareNorm):
        return (pixels**2).mean(1)
    if isinstance(measure, OutputMean):
        return pixels.mean(1)
    if isinstance(measure, OutputNorm):
        return torch.linalg.vector_norm(pixels, measure.p, dim=1)
    if isinstance(measure, Interpolated):
        d = pixels.shape[1]
        direction = (2 / d) * (measure.eta * output - (1 - measure.eta) * noise).detach()
        return (direction * output).flatten(1).sum(1)
    betas = torch.linspace(1e-4, 0.1, 100, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    weight = betas / (2 * (1 - betas) * (1 - bars))
    return 100 * weight[t - 1] * ((noise - output) ** 2).flatten(1).sum(1)


def gradients(get, measure, images, role, draws, step=None, normalized=False):
    """Rows of whole gradients by autograd alone, means over draws, one at a time, in float64. ``normalized``: of unit gradients."""
    network = RECORD.network(get, step).double()
    betas = torch.linspace(1e-4, 0.1, 100, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    rows = []
    drawn = draws.draw(role, images.ids(), 100)
    noise = drawn.noise((1, 8, 8), torch.float64)
    for i in range(len(images)):
        x0, total = images.x0([i]).double(), 0.0
        for k in range(drawn.count):
            t, epsilon = int(drawn.timestep[i, k]), noise[i, k][None]
            x_t = bars[t - 1].sqrt() * x0 + (1 - bars[t - 1]).sqrt() * epsilon
            value = output_function(measure, network(x_t, torch.tensor([t - 1])).sample, epsilon, t)
            parts = torch.autograd.grad(value.sum(), list(network.parameters()))
            gradient = torch.cat([g.flatten() for g in parts])
            total = total + (gradient / gradient.norm() if normalized else gradient) / drawn.count
        rows.append(total)
    return torch.stack(rows).numpy()


@functools.cache
def _rows(measure, normalized=False):
    get = InMemory()
    draws = Uniform(4, seed=1)
    sides = ((QUERIES, "query"), (RECORD.data, "attribution"))
    return tuple(gradients(get, measure, get(images), role, draws, normalized=normalized) for images, role in sides)


def literal(measure, damping=DAMPING, kind=TRAK):
    """φ(x)ᵀ (ΦᵀΦ/N + λI)⁻¹ φ(z)."""
    q, z = _rows(measure)
    inverse = solved(z, damping)
    scores = q @ inverse
    if kind is RelativeIF:
        return scores / np.linalg.norm(inverse, axis=0)
    return scores / np.linalg.norm(z, axis=1) if kind is RenormIF else scores


def solved(z, damping):
    """(ΦᵀΦ/N + λI)⁻¹ Φᵀ ``[P, N]`` by the matrix inversion lemma: (Φᵀ - Φᵀ (NλI + ΦΦᵀ)⁻¹ ΦΦᵀ) / λ."""
    K = z @ z.T
    return (z.T - z.T @ np.linalg.solve(len(z) * damping * np.eye(len(z)) + K, K)) / damping


def test_the_lemma():
    """Claim: what the other tests compare with is the inverse of the P × P matrix, written out."""
    z = np.random.default_rng(0).normal(size=(5, 40))
    np.testing.assert_allclose(solved(z, 0.3), np.linalg.solve(z.T @ z / 5 + 0.3 * np.eye(40), z.T), rtol=1e-10)


def only(method, get, queries=QUERIES, trained=RECORD):
    ((_, scores),) = method.variants(method.score(trained, RECORD.data, queries, get))
    return scores.values


@pytest.mark.parametrize("measure", FEATURES, ids=lambda m: type(m).__name__ + str(getattr(m, "p", "")))
@pytest.mark.slow
def test_scores_without_projection_are_the_equation(get, measure):
    """Claim: under every feature the scores are a literal float64 computation from gradients by autograd, scale included."""
    expected = literal(measure)
    np.testing.assert_allclose(only(estimator(feature=measure), get), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [RelativeIF, RenormIF])
@pytest.mark.parametrize("damping", [1e-1, 1e-4])
def test_relatives_are_their_equations(get, kind, damping):
    """Claim: relative and renormalized influence divide by the length of (C + λ)⁻¹φ(z), and of φ(z)."""
    expected = literal(LOSS, damping, kind)
    np.testing.assert_allclose(only(estimator(kind, damping=damping), get), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("side", ["query", "train", "both"])
@pytest.mark.slow
def test_balanced_features_are_of_unit_gradients(get, side):
    """Claim: with a balance the gradient of every draw on its side is divided by its norm before the mean, also in the kernel."""
    q, z = (_rows(SquareNorm(PROCESS), side in (own, "both"))[i] for i, own in enumerate(("query", "train")))
    expected = q @ solved(z, DAMPING)
    found = only(estimator(feature=SquareNorm(PROCESS), balance=Balance("draw", side)), get)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_balanced_features_can_be_projected_and_divided(get):
    """Claim: features of balanced gradients are the same in passes of two inputs; many of them give nearly the exact scores."""
    balanced = {"feature": SquareNorm(PROCESS), "balance": Balance("draw", "both")}
    for projection in (Kronecker(k_out=3, k_in=4, seed=2), Gaussian(k=12, seed=2)):
        one = estimator(projection=projection, **balanced)
        divided = replace(one, execution=Execution(device="cpu", batch_size=2, shard=3))
        np.testing.assert_allclose(only(divided, get), only(one, InMemory()), rtol=2e-3)
    exact, projected = (only(estimator(projection=each, **balanced), get) for each in (Identity(), Kronecker(k_out=8, k_in=64)))
    assert np.corrcoef(exact.ravel(), projected.ravel())[0, 1] > 0.95


def test_a_list_of_weights_counts_stretches_of_timesteps(get):
    """Claim: weights of equal stretches are linear: those of the halves add up to the features without a balance."""
    parts = [only(estimator(balance=Balance(by, "query")), get) for by in ([1.0, 0.0], [0.0, 1.0])]
    np.testing.assert_allclose(parts[0] + parts[1], only(estimator(), get), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("by", [None, 5, True, "norm", [], ["a"], [[1, 2]], [0, 0], [1, float("nan")]])
def test_weights_that_are_none_are_refused_by_name(by):
    """Claim: whatever is no list of finite weights is an error that names the field, of whatever type it is."""
    with pytest.raises(FieldError, match=r"Balance\.by=.*list of finite weights"):
        Balance(by)


@pytest.mark.parametrize("balance", ["draw", True])
def test_a_balance_that_is_none_is_refused_by_name(balance):
    """Claim: what stands for a balance in a configuration only is an error that says what to give."""
    with pytest.raises(FieldError, match=f"balance={balance}: give a Balance"):
        estimator(balance=balance)


def test_norms_by_timestep_are_refused_for_features():
    """Claim: mean norms of the loss are no norms of other functions' gradients; the error says what to choose."""
    with pytest.raises(FieldError, match=r"by=timestep.*choose draw or a list"):
        estimator(balance=Balance("timestep"))
    assert describe(estimator()) == describe(estimator(balance=None))


def test_dtrak_meets_trak_and_square(get):
    """Claim: the interpolation with η = ½ at λ/4 scores as TRAK at λ, and with η = 1 as the square."""
    half = only(estimator(feature=Interpolated(PROCESS, 0.5), damping=DAMPING / 4), get)
    np.testing.assert_allclose(half, only(estimator(), get), rtol=1e-4)
    whole = only(estimator(feature=Interpolated(PROCESS, 1.0)), get)
    np.testing.assert_allclose(whole, only(estimator(feature=SquareNorm(PROCESS)), get), rtol=1e-4)


@pytest.mark.parametrize("kind", [TRAK, RelativeIF, RenormIF])
def test_both_forms_give_the_same_numbers(get, kind):
    """Claim: with fewer features than images the covariance is decomposed, with more the Gram matrix: φᵀ(C+λ)⁻¹φ all the same."""
    for k in (6, 64):
        method = estimator(kind, projection=Gaussian(k=k, seed=3))
        features = [
            np.concatenate(list(method.features(RECORD, images, role).blocks(get))).astype(np.float64)
            for images, role in ((QUERIES, "query"), (RECORD.data, "attribution"))
        ]
        q, z = features
        assert z.shape == (10, k)
        inverse = np.linalg.solve(z.T @ z / len(z) + DAMPING * np.eye(k), z.T)
        expected = q @ inverse
        if kind is RelativeIF:
            expected = expected / np.linalg.norm(inverse, axis=0)
        if kind is RenormIF:
            expected = expected / np.linalg.norm(z, axis=1)
        np.testing.assert_allclose(only(method, get), expected, rtol=1e-5, atol=1e-7 * np.abs(expected).max())


@pytest.mark.slow
def test_projections_converge_to_the_exact_scores(get):
    """Claim: with more features the scores come nearer to those of whole gradients, about as 1/√k."""
    exact = only(estimator(), get)
    errors = [
        np.mean([np.linalg.norm(only(estimator(projection=Gaussian(k=k, seed=s)), get) - exact) for s in range(2)])
        / np.linalg.norm(exact)
        for k in (64, 512, 4096)
    ]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2
    assert errors[2] < 0.2


@pytest.mark.parametrize("projection", [Rademacher(k=8192), SJLT(k=8192), SJLT(k=8192, s=4), Kronecker(k_out=8, k_in=64)])
def test_every_projection_is_near_the_exact_scores(get, projection):
    """Claim: each kind correlates with the scores of whole gradients."""
    exact, projected = only(estimator(), get), only(estimator(projection=projection), get)
    assert np.corrcoef(exact.ravel(), projected.ravel())[0, 1] > 0.95


def test_damping_converts_to_d_trak_s():
    """Claim: D-TRAK's λ on features whose projection has no 1/√k is k N times this project's."""
    rng = np.random.default_rng(0)
    N, k = 7, 5
    raw, query = rng.normal(size=(N, k)), rng.normal(size=k)  # of a projection with standard normal entries
    theirs = query @ np.linalg.inv(raw.T @ raw + 3.0 * np.eye(k)) @ raw.T
    ours, scaled_query = raw / np.sqrt(k), query / np.sqrt(k)
    mine = scaled_query @ np.linalg.inv(ours.T @ ours / N + from_dtrak(3.0, k, N) * np.eye(k)) @ ours.T
    np.testing.assert_allclose(mine, N * theirs)


@pytest.mark.parametrize("projection", [Identity(), SJLT(k=64)], ids=["whole", "projected"])
def test_all_share_one_pass(get, monkeypatch, projection):
    """Claim: TRAK, relative and renormalized influence, gradient dot and cos, over two pools, take the passes of TRAK alone."""
    counted = []
    run = hooks.run_all
    monkeypatch.setattr(hooks, "run_all", lambda *args: (counted.append(len(args[3][0])), run(*args))[1])
    similar = {"measurement": LOSS, "draws": Uniform(4, seed=1), "projection": projection, "execution": CPU}
    alone = [estimator(projection=projection)]
    together = [estimator(kind, projection=projection) for kind in (TRAK, RelativeIF, RenormIF)]
    together += [GradientSimilarity(cosine=cosine, **similar) for cosine in (False, True)]
    counts = []
    for methods in (alone, together):
        fresh = InMemory()
        fresh._artifacts[RECORD.fingerprint] = get(RECORD)
        network_cache._engines.clear()
        counted.clear()
        fresh.many([method.scores(RECORD, RECORD.data, QUERIES) for method in methods])
        counts.append(sum(counted))
    assert counts[0] == counts[1]
    assert counts[0] <= (10 + 3) * 4 + 40 * (projection == Identity()) + 8  # the first capture checks itself


def test_inner_products_of_training_images_are_taken_once_for_each_pair(get, monkeypatch):
    """Claim: in blocks of 4, whole gradients of 10 training images are computed 10 + 6 + 2 times, and G is symmetric."""
    method = estimator(execution=Execution(device="cpu", pass_memory=4 * 4 * RECORD.parameter_count))
    fresh, counted, run = InMemory(), [], hooks.run_all
    fresh._artifacts[RECORD.fingerprint] = get(RECORD)
    per_example = network_cache.engine(RECORD, None, method.execution, fresh)
    monkeypatch.setattr(per_example, "_checked", 100)
    monkeypatch.setattr(hooks, "run_all", lambda *args: (counted.append(len(args[3][0])), run(*args))[1])
    node = method.scores(RECORD, RECORD.data, QUERIES)
    values = fresh(node).at(damping=DAMPING).values
    assert sum(counted) == node.passes(fresh) == (18 + 3 * 3) * 4
    features = method.features(RECORD, RECORD.data, "attribution")
    divided = fresh(gram.InnerProducts(features, features))
    np.testing.assert_allclose(divided.values, divided.values.T, rtol=1e-12)
    np.testing.assert_allclose(values, only(estimator(), get), rtol=1e-3, atol=1e-4 * np.abs(values).max())


@pytest.mark.parametrize("batch_size", [512, 3])
@pytest.mark.parametrize("projection", [Identity(), SJLT(k=64), Kronecker(k_out=4, k_in=4)], ids=["whole", "sjlt", "kronecker"])
@pytest.mark.slow
def test_loss_and_square_share_the_forward_pass(get, monkeypatch, projection, batch_size):
    """Claim: TRAK and D-TRAK evaluate the network as often together as one of them, and score the same to the last bit."""
    network = type(RECORD.network(get))
    evaluated, forward = [], network.forward
    monkeypatch.setattr(
        network, "forward", lambda self, x, *rest, **named: evaluated.append(len(x)) or forward(self, x, *rest, **named)
    )
    execution = Execution(device="cpu", batch_size=batch_size, shard=7)
    methods = [estimator(feature=feature, projection=projection, execution=execution) for feature in (LOSS, SquareNorm(PROCESS))]

    def computed(chosen):
        fresh = InMemory()
        fresh._artifacts[RECORD.fingerprint] = get(RECORD)
        network_cache._engines.clear()
        evaluated.clear()
        scores = fresh.many([method.scores(RECORD, RECORD.data, QUERIES) for method in chosen])
        return [of.values for of in scores], sum(evaluated)

    (both, passes), (loss, alone), (square, _) = (computed(chosen) for chosen in (methods, methods[:1], methods[1:]))
    assert passes == alone > 0
    assert np.array_equal(both[0], loss[0])
    assert np.array_equal(both[1], square[0])
    assert not np.array_equal(both[0], both[1])


@pytest.mark.slow
def test_memory_decides_how_many_measures_are_held(get, monkeypatch):
    """Claim: gradients of two measures are held together only where they fit; the scores are the same to rounding."""
    held, inner = [], gram._matrices
    monkeypatch.setattr(gram, "_matrices", lambda by_right, *rest: held.append(len(by_right)) or inner(by_right, *rest))
    values = []
    for room in (40, 10):  # whole gradients
        execution = Execution(device="cpu", pass_memory=4 * room * RECORD.parameter_count)
        methods = [estimator(feature=feature, execution=execution) for feature in (LOSS, SquareNorm(PROCESS))]
        fresh = InMemory()
        fresh._artifacts[RECORD.fingerprint] = get(RECORD)
        values.append([scores.values for scores in fresh.many([m.scores(RECORD, RECORD.data, QUERIES) for m in methods])])
        assert set(held) == ({2} if room == 40 else {1})
        held.clear()
    for one, other in zip(*values, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("projection", [Identity(), SJLT(k=64)], ids=["whole", "projected"])
@pytest.mark.parametrize(("kind", "changes"), [(TRAK, {}), (GradientSimilarity, {"cosine": False})], ids=["trak", "dot"])
def test_each_side_has_its_own_draws(get, projection, kind, changes):
    """Claim: features of queries are means over n draws, those of training images over ``train``; passes are counted by side."""
    draws = Uniform(4, seed=1, train=2)
    shared = {"measurement": LOSS, "draws": draws, "projection": projection, "execution": CPU, **changes}
    method = kind(**shared)
    assert method.draws_of({}) == (4, 2)
    roles = {"query": QUERIES, "attribution": RECORD.data}
    if kind is TRAK:
        features = [method.features(RECORD, images, role) for role, images in roles.items()]
    else:
        features = [method.features(RECORD, images, role, None) for role, images in roles.items()]
    assert [side.draws for side in features] == [Uniform(4, seed=1), Uniform(2, seed=1)]
    node = method.scores(RECORD, RECORD.data, QUERIES)
    assert node.passes(get) == 3 * 4 + 10 * 2
    if kind is TRAK and projection == Identity():
        q, _ = _rows(LOSS)
        z = gradients(get, LOSS, get(RECORD.data), "attribution", Uniform(2, seed=1))
        expected = q @ solved(z, DAMPING)
        ((_, scores),) = replace(method, damping=DAMPING).variants(get(node))
        np.testing.assert_allclose(scores.values, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("projection", [Identity(), SJLT(k=64)], ids=["whole", "projected"])
@pytest.mark.slow
def test_execution_changes_no_score(get, projection):
    """Claim: shards, blocks, memory and batch size change nothing beyond rounding, and no fingerprint."""
    whole = estimator(projection=projection)
    divided = replace(whole, execution=Execution(device="cpu", batch_size=3, shard=4, pass_memory=4 * 3 * RECORD.parameter_count))
    node = divided.scores(RECORD, RECORD.data, QUERIES)
    assert node.fingerprint == whole.scores(RECORD, RECORD.data, QUERIES).fingerprint
    fresh = InMemory()
    fresh._artifacts[RECORD.fingerprint] = get(RECORD)
    expected = only(whole, get)
    np.testing.assert_allclose(only(divided, fresh), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_interrupted_features_go_on_bit_by_bit(get, tmp_path, monkeypatch):
    """Claim: features killed between shards are taken up again; the scores are bit-equal and no shard is made twice."""
    method = estimator(projection=SJLT(k=64), execution=Execution(device="cpu", shard=4))
    expected = method.score(RECORD, RECORD.data, QUERIES, Store(tmp_path / "whole")).values
    together, calls, done = FeatureShard.compute_together.__func__, [], []

    def fails_often(cls, nodes, get):
        calls.append(1)
        if len(calls) % 2:
            raise KeyboardInterrupt
        done.extend(node.fingerprint for node in nodes)
        return together(cls, nodes, get)

    monkeypatch.setattr(FeatureShard, "compute_together", classmethod(fails_often))
    for _ in range(20):
        try:
            resumed = method.score(RECORD, RECORD.data, QUERIES, Store(tmp_path / "killed"))
            break
        except KeyboardInterrupt:
            continue
    assert np.array_equal(resumed.values, expected)
    assert len(done) == len(set(done)) == 4  # three shards of training images, one of queries


@pytest.mark.slow
def test_gradient_baselines_are_their_equations(get):
    """Claim: dot and cos at the final model; TracInCP and GAS are their unweighted means over checkpoints."""
    settings = {"measurement": LOSS, "draws": Uniform(4, seed=1), "projection": Identity(), "execution": CPU}
    for cosine in (False, True):
        by_step = {}
        for step in (None, 6, 12):
            q = gradients(get, LOSS, get(QUERIES), "query", Uniform(4, seed=1), step)
            z = gradients(get, LOSS, get(RECORD.data), "attribution", Uniform(4, seed=1), step)
            products = q @ z.T
            by_step[step] = products / np.outer(np.linalg.norm(q, axis=1), np.linalg.norm(z, axis=1)) if cosine else products
        final = GradientSimilarity(cosine=cosine, **settings).score(RECORD, RECORD.data, QUERIES, get).values
        np.testing.assert_allclose(final, by_step[None], rtol=1e-4, atol=1e-6 * np.abs(final).max())
        several = GradientSimilarity(cosine=cosine, checkpoints=[6, 12], **settings).score(RECORD, RECORD.data, QUERIES, get).values
        np.testing.assert_allclose(several, (by_step[6] + by_step[12]) / 2, rtol=1e-4, atol=1e-6 * np.abs(several).max())


def test_journey_is_the_loss_at_the_models_own_images(get):
    """Claim: Journey-TRAK's query feature is the mean over sampling steps of the loss's gradient at the re-noised estimates."""
    from attribution.diffusion.samplers import DDIMSampler

    sampler = DDIMSampler(steps=5)
    samples = Samples(trained=RECORD, sampler=sampler, shape=(1, 8, 8), n=2, seed=0, execution=CPU)
    draws = Even(5, seed=1)
    method = estimator(query_feature=JourneyLoss(PROCESS, sampler), draws=draws)
    values = only(method, get, samples)

    network = RECORD.network(get).double()
    bars = torch.cumprod(1 - torch.linspace(1e-4, 0.1, 100, dtype=torch.float64), 0)
    states = get(samples.trajectories).states
    drawn = draws.draw("query", torch.arange(2), 100)
    noise = drawn.noise((1, 8, 8), torch.float64)
    rows = []
    for i in range(2):
        total = 0.0
        for k in range(5):
            t = int(drawn.timestep[i, k])
            x_t = torch.from_numpy(np.array(states[i, 4 - k])).double()[None]
            bar = bars[t - 1]
            with torch.no_grad():
                x0 = ((x_t - (1 - bar).sqrt() * network(x_t, torch.tensor([t - 1])).sample) / bar.sqrt()).clamp(-1, 1)
            again = bar.sqrt() * x0 + (1 - bar).sqrt() * noise[i, k]
            loss = ((noise[i, k] - network(again, torch.tensor([t - 1])).sample) ** 2).mean()
            total = total + torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(network.parameters()))]) / 5
        rows.append(total)
    q = torch.stack(rows).numpy()
    z = gradients(get, LOSS, get(RECORD.data), "attribution", draws)
    expected = q @ solved(z, DAMPING)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(ValueError, match="use generated queries"):
        method.scores(RECORD, RECORD.data, QUERIES)


def test_a_sweep_over_the_grid_is_one_artifact(get):
    """Claim: dampings of the grid are in every artifact; requested dampings too small for float64 are errors."""
    assert (
        estimator(damping=[1e-6, 1.0]).scores(RECORD, RECORD.data, QUERIES).fingerprint
        == estimator(damping=1e-2).scores(RECORD, RECORD.data, QUERIES).fingerprint
    )
    assert set(estimator().score(RECORD, RECORD.data, QUERIES, get).axes["damping"]) <= set(GRID)
    wide = estimator(projection=Gaussian(k=6, seed=3), damping=0.0)
    assert np.isfinite(only(wide, get)).all()  # six features of ten images: nothing to invert that is zero
    with pytest.raises(ValueError, match=r"TRAK.damping=-1"):
        estimator(damping=-1)
    with pytest.raises(ValueError, match=r"a feature takes"):
        estimator(draws=Uniform(4, bins=2))


@pytest.mark.parametrize(("limit", "chosen"), [(1, SJLT(64)), (10**6, Identity())])
def test_an_automatic_projection_shares_the_scores_of_the_chosen_one(limit, chosen):
    automatic = Automatic(parameters=limit, k=64)
    similarity = GradientSimilarity(measurement=LOSS, draws=Uniform(4), projection=Identity(), cosine=True, execution=CPU)
    for method in (estimator(), similarity):
        names = [replace(method, projection=p).scores(RECORD, RECORD.data, QUERIES).fingerprint for p in (automatic, chosen)]
        assert names[0] == names[1]
