"""SOURCE against dense matrix exponentials, where it is exact, and its limit, influence."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attribution.checks import FieldError
from attribution.curvature import EKFAC, KFAC, ExactGGN
from attribution.curvature.pseudo_gradients import OutputProbe
from attribution.estimators.batch_squares import BATCHES
from attribution.estimators.influence import KFACInfluence
from attribution.estimators.source import Source
from attribution.estimators.source_blocks import EPSILON, SourceQueryBlock, decayed, summed
from attribution.execution import Execution
from attribution.images.draws import Uniform
from attribution.measurements import Loss
from attribution.models.given import UntrainedModel
from attribution.nodes import InMemory
from attribution.training import RecordError
from attribution.training.checkpoints import AtSteps, EverySteps
from attribution.training.recipe import Recipe
from attribution.training.record import draws_of
from attribution.training.segments import Segment, segments_of
from experiments.store.store import Store
from tests.attribution.curvature import curvature_worlds as worlds
from tests.references import draw_gradients
from tests.worlds import PROCESS, Blobs, trained

CPU = Execution(device="cpu")
LOSS = Loss(PROCESS)
DRAWS, FEW = Uniform(2, seed=5), Uniform(2, seed=8)
TRAIN, QUERIES = Blobs(n=6, size=4), Blobs(n=3, first=900, size=4)
LAYERS = ("first", "second")
RECORD = trained(
    model=functools.partial(worlds.randomized, worlds.perceptron),
    data=TRAIN,
    optimizer=functools.partial(torch.optim.AdamW, lr=0.02),
    recipe=Recipe(steps=12, batch_size=4, lr_schedule="cosine", warmup=0.2, precision="64-true"),
    checkpoints=EverySteps(2),
    flips=False,
)
BY_SGD = replace(RECORD, optimizer=functools.partial(torch.optim.SGD, lr=0.1))


def source(**changes: Any) -> Source:
    settings = {"measurement": LOSS, "draws": DRAWS, "curvature": EKFAC(draws=FEW, execution=CPU), "execution": CPU}
    return Source(**{**settings, **changes})


@pytest.fixture(scope="module")
def get():
    """One memory for all tests, and one training."""
    return InMemory()


def record_of(method: Source):
    return RECORD if method.optimizer == "adam" else BY_SGD


def scored(method, get, **at):
    return method.score(record_of(method), TRAIN, QUERIES, get).at(**(at or {"horizon": method.horizon})).values


def gradients(get, record, measure, images, draws, step=None) -> dict[str, Tensor]:
    """Layer → the gradient [W | b] of each draw by plain autograd, ``[B, K, out, in + 1]``, float64."""
    found = draw_gradients(measure, record.network(get, step), get(images).x0().double(), draws)
    return {layer: torch.cat([found[f"{layer}.weight"], found[f"{layer}.bias"].unsqueeze(3)], 3) for layer in LAYERS}


def curvature_of(get, record, layer: str, steps, kind) -> Tensor:
    """The dense curvature of a layer, ``[P, P]``: K-FAC's B ⊗ A, or EK-FAC's refitted one, of means over the checkpoints."""
    train, draws = get(TRAIN), FEW.draw("curvature", get(TRAIN).ids(), PROCESS.T)
    probe, A, B, pseudo = OutputProbe(PROCESS), [], [], []
    for step in steps:
        model = record.network(get, step)
        terms = [worlds.factor_terms(model, probe, row)[layer] for row in worlds.inputs(probe, TRAIN, draws, get)]
        A += [a.T @ a for a, _ in terms]
        B += [b.T @ b for _, b in terms]
        pseudo += [b.T @ a for a, b in terms]
    assert len(pseudo) == len(steps) * len(train) * FEW.count
    A, B = torch.stack(A).mean(0), torch.stack(B).mean(0)
    if kind is KFAC:
        return torch.kron(B, A)
    QA, QB = torch.linalg.eigh(A).eigenvectors, torch.linalg.eigh(B).eigenvectors
    moments = torch.stack([(QB.T @ p @ QA) ** 2 for p in pseudo]).mean(0)
    return torch.kron(QB, QA) @ torch.diag(moments.flatten()) @ torch.kron(QB, QA).T


def rate_of(get, layer: str, steps) -> float:
    """1/√v of a layer: v from the gradients of the last batches before the checkpoints, each by ``backward``."""
    record, train, squares = get(RECORD), get(TRAIN), []
    for step in steps:
        of_step = []
        for batch in range(max(0, step - BATCHES), step):
            visits, network = record.visits_of_step(batch), RECORD.network(get, step)
            rows = [list(train.index).index(example) for example in visits["example"]]
            x0, draws = train.x0(rows).double(), draws_of(visits)
            g = draw_gradients(LOSS, network, x0, draws)
            of_batch = torch.cat([g[f"{layer}.weight"].mean((0, 1)).flatten(), g[f"{layer}.bias"].mean((0, 1))])
            of_step.append(of_batch.square().mean())
        squares.append(sum(of_step) / len(of_step))
    return 1 / (float(sum(squares) / len(squares)) ** 0.5 + EPSILON)


def written_out(get, record, kind, horizon: float) -> np.ndarray:
    """The equation with dense matrix exponentials, for two segments of 6 steps with checkpoints (2, 4) and (8, 10)."""
    table = get(record).step_table
    of_query = gradients(get, record, LOSS, QUERIES, DRAWS.draw("query", get(QUERIES).ids(), PROCESS.T))
    total = np.zeros((QUERIES.n, TRAIN.n))
    for layer in LAYERS:
        q = of_query[layer].mean(1).flatten(1)
        for steps, rates in (((8, 10), table["learning_rate"][6:]), ((2, 4), table["learning_rate"][:6])):
            H = curvature_of(get, record, layer, steps, kind)
            kappa = horizon * rates.sum() * (rate_of(get, layer, steps) if record is RECORD else 1.0)
            one, zero = torch.eye(len(H), dtype=torch.float64), torch.zeros_like(H)
            # exp([[-κH, κI], [0, 0]]) has exp(-κH) and (1 - exp(-κH)) H⁻¹ in its first row, also for singular H.
            whole = torch.linalg.matrix_exp(torch.cat([torch.cat([-kappa * H, kappa * one], 1), torch.cat([zero, zero], 1)]))
            decay, summed_steps = whole[: len(H), : len(H)], whole[: len(H), len(H) :]
            for step in steps:
                draws = DRAWS.draw("attribution", get(TRAIN).ids(), PROCESS.T)
                g = gradients(get, record, LOSS, TRAIN, draws, step)[layer].mean(1).flatten(1)
                total += (q @ summed_steps @ g.T).numpy() / len(steps)
            q = q @ decay
    return total


@pytest.mark.parametrize(("kind", "optimizer", "horizon"), [(KFAC, "sgd", 3.0), (EKFAC, "adam", 0.2)])
@pytest.mark.slow
def test_scores_are_the_equation_with_matrix_exponentials(kind, optimizer, horizon, get, monkeypatch):
    """Claim: two segments, curvature and rates averaged over their checkpoints, products of exponentials that do not commute."""
    monkeypatch.setattr("attribution.curvature.ekfac.ROUNDING", 0)
    method = source(
        curvature=kind(draws=FEW, execution=CPU), optimizer=optimizer, horizon=[horizon, 9.0], segments=2, per_segment=2
    )
    expected = written_out(get, record_of(method), kind, horizon)
    np.testing.assert_allclose(scored(method, get, horizon=horizon), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_long_last_segment_is_influence_without_damping(get):
    """Claim: with κ → ∞ earlier segments vanish, and the last is EK-FAC influence at its checkpoint with damping → 0."""
    many = EKFAC(draws=Uniform(64, seed=8), execution=CPU)  # no eigenvalue is 0
    influence = KFACInfluence(measurement=LOSS, draws=DRAWS, curvature=many, damping=1e-9, execution=CPU)
    end = Recipe(steps=2, batch_size=4, precision="64-true")
    record = replace(RECORD, recipe=end, checkpoints=AtSteps([1, 2]))
    expected = influence.score(record, TRAIN, QUERIES, get).at(damping=1e-9, draws=DRAWS.count).values
    method = source(curvature=many, segments=2, per_segment=1, horizon=1e9)
    found = method.score(record, TRAIN, QUERIES, get).at(horizon=1e9).values
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3 * np.abs(expected).max())


def test_a_short_horizon_is_tracin(get):
    """Claim: with κ → 0 nothing decays, and scores are Σ_l κ_l ⟨∇m(q; θ), ḡ_l(z)⟩, as TracIn's with the query at the end."""
    table, total = get(BY_SGD).step_table["learning_rate"], 0
    q = gradients(get, BY_SGD, LOSS, QUERIES, DRAWS.draw("query", get(QUERIES).ids(), PROCESS.T))
    for step, rates in ((4, table[:6]), (10, table[6:])):
        g = gradients(get, BY_SGD, LOSS, TRAIN, DRAWS.draw("attribution", get(TRAIN).ids(), PROCESS.T), step)
        total += 1e-6 * rates.sum() * sum(q[layer].mean(1).flatten(1) @ g[layer].mean(1).flatten(1).T for layer in LAYERS)
    found = scored(source(segments=2, per_segment=1, optimizer="sgd", horizon=1e-6), get)
    np.testing.assert_allclose(found, total.numpy(), rtol=1e-3, atol=1e-4 * float(total.abs().max()))


@pytest.mark.parametrize("steps", [5, 200])
def test_one_segment_is_the_derivative_of_gradient_descent(steps):
    """Claim: from the minimum of a quadratic, a weight on z moves K steps of full-batch descent by (I - (I - ηH)^K) H⁻¹ g(z).

    The first is the derivative of descent itself, the second a geometric sum, and the filter differs from it by O(ησ).
    """
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(7, generator=generator, dtype=torch.float64) * 0.1
    values[0] = 0  # a direction without curvature
    basis = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q
    H, g = basis @ torch.diag(values) @ basis.T, torch.randn(7, generator=generator, dtype=torch.float64)
    rate = 0.1

    def descended(weight: Tensor) -> Tensor:
        theta = torch.zeros(7, dtype=torch.float64)
        for _ in range(steps):
            theta = theta - rate * (H @ theta + weight * g)
        return theta

    derivative = -torch.autograd.functional.jacobian(descended, torch.zeros((), dtype=torch.float64))
    geometric = torch.where(values > 0, (1 - (1 - rate * values) ** steps) / values, rate * steps)
    torch.testing.assert_close(derivative, basis @ (geometric * (basis.T @ g)), rtol=1e-10, atol=1e-12)
    kappa = torch.tensor(rate * steps, dtype=torch.float64)
    torch.testing.assert_close(summed(values, kappa), geometric, rtol=rate * 0.1, atol=0)


def test_filters_are_finite_everywhere():
    """Claim: F is κ at σ = 0 and near it, 1/σ far from it, and decay goes from 1 to 0."""
    sigma, kappa = torch.tensor([0.0, 1e-30, 1e-9, 1e9], dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    torch.testing.assert_close(summed(sigma, kappa), torch.tensor([2.0, 2.0, 2.0, 1e-9], dtype=torch.float64))
    assert decayed(sigma, kappa).tolist() == pytest.approx([1, 1, 1, 0])


@pytest.mark.slow
def test_horizons_share_passes_and_shards_change_nothing(get, tmp_path):
    """Claim: a list of horizons is each of them alone; so are shards of three images and two queries, stored and computed again."""
    method = source(horizon=[0.3, 4.0], segments=2, per_segment=1)
    whole = method.score(RECORD, TRAIN, QUERIES, get)
    for horizon in method.horizons:
        np.testing.assert_allclose(scored(replace(method, horizon=horizon), get), whole.at(horizon=horizon).values, rtol=1e-6)
    small = Execution(device="cpu", shard=3, query_shard=2)
    divided = replace(method, execution=small, curvature=EKFAC(draws=FEW, execution=small))
    stored = divided.score(RECORD, TRAIN, QUERIES, Store(tmp_path)).values
    np.testing.assert_allclose(stored, whole.values, rtol=1e-4, atol=1e-5 * np.abs(whole.values).max())
    assert np.array_equal(divided.score(RECORD, TRAIN, QUERIES, Store(tmp_path)).values, stored)


def test_groups_of_draws_average_to_the_scores(get):
    """Claim: scores are linear in both sides, so the mean of the cross scores of groups of draws is the score."""
    whole, groups = (
        source(segments=1, draws=Uniform(2, seed=5, replicates=number)).score(RECORD, TRAIN, QUERIES, get) for number in (1, 2)
    )
    assert groups.cross is not None
    assert groups.cross.shape == (1, 2, 2, QUERIES.n, TRAIN.n)
    np.testing.assert_allclose(groups.values, whole.values, rtol=1e-4, atol=1e-5 * np.abs(whole.values).max())


def test_segments_share_the_gradients_of_the_queries(tmp_path, monkeypatch):
    """Claim: queries take their draws once, also where they do not all fit on disk, and images theirs at six checkpoints."""
    computed: list[int] = []
    original = SourceQueryBlock.compute_together.__func__

    def compute(cls, nodes, get):
        computed.append(nodes[0].count)
        return original(cls, nodes, get)

    monkeypatch.setattr(SourceQueryBlock, "compute_together", classmethod(compute))
    held = source(horizon=1.0).query_bytes(RECORD) * 3  # of the three segments of a query
    execution = Execution(device="cpu", scratch=2.01 * held, query_shard=1)
    node = source(execution=execution).scores(RECORD, TRAIN, QUERIES)
    get = Store(tmp_path)
    get(node)
    assert sum(computed) == QUERIES.n
    assert node.passes(get) == (QUERIES.n + 6 * TRAIN.n) * DRAWS.count


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_a_plan_before_training_counts_the_curvature(optimizer):
    """Claim: factors and second moments at six checkpoints and, for Adam, eight batches at each, although no part is known yet."""
    node = source(optimizer=optimizer).scores(RECORD if optimizer == "adam" else BY_SGD, TRAIN, QUERIES)
    gradients, curvature = (QUERIES.n + 6 * TRAIN.n) * DRAWS.count, 6 * TRAIN.n * 2 * FEW.count
    squares = 6 * BATCHES * RECORD.recipe.batch_size if optimizer == "adam" else 0
    assert node.cost().passes == gradients + curvature + squares


def test_sgd_moves_by_the_clipped_gradients(get):
    """Claim: the horizon of SGD counts learning rates times the factors of clipping, that of Adam the rates alone."""
    clipped = replace(BY_SGD, recipe=replace(BY_SGD.recipe, clip=1e-3))
    table = get(clipped).step_table
    kappa = source(optimizer="sgd", horizon=1.0).kappas(clipped, Segment(0, 12, (6,)), TRAIN, get)["first"]
    assert kappa == pytest.approx((table["learning_rate"][:, 0] * table["clip_factor"]).sum())
    assert kappa < 0.1 * table["learning_rate"].sum()


def test_segments_cut_training_into_equal_groups_of_checkpoints():
    """Claim: every step is in one segment, and its checkpoints are next to the centers of its parts."""
    recorded = range(50, 501, 50)
    assert segments_of(recorded, 3, 2) == [
        Segment(0, 200, (50, 150)),
        Segment(200, 350, (250, 300)),
        Segment(350, 500, (400, 450)),
    ]
    assert segments_of(recorded, 1, 1) == [Segment(0, 500, (250,))]
    assert segments_of([10, 20], 1, 2) == [Segment(0, 20, (10, 20))]


def test_what_cannot_be_unrolled_is_refused_before_training():
    """Claim: too few checkpoints, no record, no Kronecker factors: each error names the setting."""
    with pytest.raises(FieldError, match=r"Source.per_segment=3: 3 segments take 9 checkpoints, but training will record 6"):
        source(per_segment=3).scores(RECORD, TRAIN, QUERIES)
    with pytest.raises(RecordError, match="Source needs the record"):
        source().scores(UntrainedModel(RECORD.model, LOSS), TRAIN, QUERIES)
    with pytest.raises(FieldError, match="choose kfac or ekfac"):
        source(curvature=ExactGGN(draws=FEW, execution=CPU))
    with pytest.raises(FieldError, match="choose adam or sgd"):
        source(optimizer="lion")
    with pytest.raises(FieldError, match=r"Source.optimizer=sgd: training takes AdamW: choose adam"):
        source(optimizer="sgd").scores(RECORD, TRAIN, QUERIES)
    with pytest.raises(FieldError, match=r"Source.optimizer=adam: training takes SGD: choose sgd"):
        source().scores(BY_SGD, TRAIN, QUERIES)
    for horizon in (0, -1.0, [], [1.0, 0]):
        with pytest.raises(FieldError, match=r"Source\.horizon"):
            source(horizon=horizon)


def test_training_without_steps_is_refused(get):
    """Claim: with learning rates of 0 all scores would be 0, which is an error."""
    still = replace(RECORD, optimizer=functools.partial(torch.optim.AdamW, lr=0.0))
    with pytest.raises(ValueError, match="the learning rate is 0"):
        source().score(still, TRAIN, QUERIES, get)


def test_a_horizon_that_amplifies_rounding_is_refused(get):
    """Claim: where the curvature has null directions, the error names the horizon and the layer."""
    one = KFAC(draws=Uniform(1), execution=CPU)
    with pytest.raises(FloatingPointError, match=r"horizon=1e\+25 is too large for layer second"):
        source(curvature=one, segments=1, per_segment=1, horizon=1e25).score(RECORD, TRAIN, QUERIES, get)
