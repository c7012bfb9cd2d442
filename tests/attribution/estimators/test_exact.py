"""The exact Gauss-Newton matrix, and what theory says of influence with it."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from attribution.curvature import DenseBasis, ExactGGN
from attribution.curvature.exact import flat
from attribution.diffusion import Process, denoiser
from attribution.execution import Execution
from attribution.gradients.per_example import per_example_gradients
from attribution.images import ImageSet
from attribution.images.draws import Draws, Uniform
from attribution.measurements import Loss
from attribution.nodes import Get, InMemory
from attribution.training import Recorded, TrainingRecord
from experiments.metrics import lds as lds_metrics
from experiments.models.subsets import RandomSubsets
from tests.attribution.curvature import curvature_worlds as worlds
from tests.attribution.curvature.curvature_worlds import given, randomized
from tests.references import as_parameters
from tests.worlds import PROCESS, PROCESSES, Blobs

DRAWS = Uniform(4, seed=6)
EXACT = ExactGGN(draws=DRAWS, execution=Execution(device="cpu"))
LOSS = Loss(PROCESS)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_matrix_is_the_mean_of_jacobian_products(process):
    """Claim: H is 1/(NK) Σ Jᵀ (2 w_t/d) J with J by ``torch.autograd.functional``, all parameters, norms too, flips as drawn."""
    get, record, train = InMemory(), given(worlds.convolutions, Loss(process)), Blobs(n=2)
    basis = get(EXACT.basis(record, train, flips=True))
    model, x0 = record.network(get), get(train).x0().double()
    x, t, noise, _ = LOSS.inputs(x0, DRAWS.draw("curvature", get(train).ids(), process.T, flips=True))
    weight = process.weight(t, torch.float64)
    parameters = dict(model.named_parameters())

    def output(i: int, *values: Tensor) -> Tensor:
        given = dict(zip(parameters, values, strict=True))
        at_t = t[i : i + 1]
        x_t = process.add_noise(x[i : i + 1], at_t, noise[i : i + 1])
        return torch.func.functional_call(model, given, (process.network_input(x_t, at_t), process.network_time(at_t))).flatten()

    total = 0
    for i in range(len(t)):
        jacobians = torch.autograd.functional.jacobian(functools.partial(output, i), tuple(parameters.values()))
        J = torch.cat([j.flatten(1) for j in jacobians], 1)
        total = total + (2 / 64) * weight[i] * J.T @ J
    order = flat_order(model, x0, DRAWS.draw("curvature", get(train).ids(), PROCESS.T))
    expected = (total / len(t))[order][:, order]
    torch.testing.assert_close(basis.matrix(), expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


def flat_order(model: torch.nn.Module, x0: Tensor, draws: Draws) -> Tensor:
    """For each of the P places in the flat order, its place among ``model.parameters()`` one after another.

    The entries of the blocks are their places, which splitting the blocks reveals.
    """
    blocks = per_example_gradients(LOSS, model, x0[:1], draws.rows(slice(1)))
    start = 0
    for name, block in blocks.items():
        blocks[name] = torch.arange(start, start + block.numel()).view_as(block)
        start += block.numel()
    taken = as_parameters(model, blocks)
    return torch.cat([taken[name].flatten() for name, _ in model.named_parameters()]).argsort()


def test_solve_and_basis_invert_the_matrix():
    """Claim: solve is (H + λI)⁻¹ g by a dense solver; dividing by values + λ in the basis is the same."""
    get, record, train = InMemory(), given(worlds.convolutions), Blobs(n=3)
    basis = get(EXACT.basis(record, train))
    gradients = per_example_gradients(LOSS, record.network(get), get(train).x0().double(), DRAWS.draw("a", get(train).ids(), 100))
    g, damping = flat(gradients), 1e-2
    expected = torch.linalg.solve(basis.matrix() + damping * torch.eye(g.shape[1], dtype=g.dtype), g.T).T
    torch.testing.assert_close(basis.solve(g, damping), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(basis.solve(g[1], damping), expected[1], rtol=1e-8, atol=1e-10)
    (block,) = basis.layers
    rotated = basis.rotate(gradients)[block]
    assert rotated.shape == (3, *basis.values[block].shape)
    products = (rotated / (basis.values[block] + damping)).flatten(1) @ rotated.flatten(1).T
    torch.testing.assert_close(products, expected @ g.T, rtol=1e-8, atol=1e-10)


def test_execution_changes_no_matrix(tmp_path):
    """Claim: batches and shards change nothing beyond rounding, and no fingerprint; the basis comes back from disk."""
    record, train = given(worlds.perceptron), Blobs(n=5, size=4)
    node = EXACT.basis(record, train)
    basis = InMemory()(node)
    divided = ExactGGN(draws=DRAWS, execution=Execution(device="cpu", batch_size=3, shard=2, pass_memory=1)).basis(record, train)
    assert divided.fingerprint == node.fingerprint
    torch.testing.assert_close(InMemory()(divided).matrix(), basis.matrix(), rtol=1e-10, atol=1e-12)
    basis.save(tmp_path)
    again = DenseBasis.load(tmp_path)
    assert torch.equal(again.vectors, basis.vectors)
    assert torch.equal(again.eigenvalues, basis.eigenvalues)


def test_large_models_are_refused():
    """Claim: too many parameters are an error before any work, with both numbers."""
    record = given(worlds.unet)
    assert record.parameter_count > 5000
    with pytest.raises(ValueError, match=rf"exact curvature of {record.parameter_count} parameters: .* at most 5000"):
        EXACT.basis(record, Blobs())


@dataclass(frozen=True)
class LeastSquares(Recorded):
    """A linear denoiser "trained" to the least mean loss over the draws of every example: a stationary point, as theory asks."""

    data: ImageSet

    def compute(self, get: Get) -> TrainingRecord:
        folder = get.workspace(self)
        X, target, weight = (part.flatten(0, 1) for part in regression(self.data, self.process, get))
        theta = torch.linalg.lstsq(weight.sqrt() * X, weight.sqrt() * target).solution.T  # [16, 17]
        parameters = {"only.weight": theta[:, :-1].contiguous(), "only.bias": theta[:, -1].contiguous()}
        save_file(parameters, folder / "average.safetensors")
        return TrainingRecord(folder)


def regression(images: ImageSet, process: Process, get: Get) -> tuple[Tensor, Tensor, Tensor]:
    """What the linear denoiser is fitted to at the examples' draws.

    Inputs with a 1 appended ``[N, K, 17]``, targets ``[N, K, 16]`` and the weights of the timesteps ``[N, K, 1]``.
    """
    draws = DRAWS.draw("curvature", get(images).ids(), process.T, flips=True)
    x, t, noise, _ = LOSS.inputs(get(images).x0().double(), draws)
    seen = process.network_input(process.add_noise(x, t, noise), t).flatten(1)
    X = torch.cat([seen, torch.ones(len(seen), 1, dtype=seen.dtype)], 1)
    parts = X, process.target(x, t, noise).flatten(1), process.weight(t, X.dtype)[:, None]
    X, target, weight = (part.unflatten(0, (-1, DRAWS.count)) for part in parts)
    return X, target, weight


def retrained(X: Tensor, target: Tensor, weight: Tensor, weights: Tensor, damping: float, theta: Tensor) -> Tensor:
    """The minimizer ``[16, 17]`` of 1/N Σ_n w_n ℓ_n + λ/2 ‖θ - θ*‖², ℓ_n the mean over draws and pixels: a ridge regression."""
    N, K, d = target.shape
    w = (weights / (N * K))[:, None, None] * (2 / d) * weight
    H = torch.einsum("nki,nkj->ij", w * X, X) + damping * torch.eye(X.shape[2], dtype=X.dtype)
    return torch.linalg.solve(H, torch.einsum("nki,nko->io", w * X, target) + damping * theta.T).T


class LinearWorld:
    """A linear denoiser at its optimum: exact influence ``tau [Q, N]`` and the queries' costs after exact retraining."""

    def __init__(self, damping: float, n: int = 14, process: Process = PROCESS):
        get, self.train, queries = InMemory(), Blobs(n=n, size=4), Blobs(n=3, size=4, first=500)
        self.damping, self.loss = damping, Loss(process)
        record = LeastSquares(functools.partial(randomized, worlds.linear), self.loss, self.train)
        self.model = record.network(get)
        self.theta = torch.cat([self.model.only.weight, self.model.only.bias[:, None]], 1).detach()
        self.regression = regression(self.train, process, get)
        self.query_draws = DRAWS.draw("query", get(queries).ids(), PROCESS.T)
        self.queries = get(queries).x0().double()
        basis = get(EXACT.basis(record, self.train, flips=True))
        train_draws = DRAWS.draw("curvature", get(self.train).ids(), PROCESS.T, flips=True)
        train_side = flat(per_example_gradients(self.loss, self.model, get(self.train).x0().double(), train_draws))
        query_side = flat(per_example_gradients(self.loss, self.model, self.queries, self.query_draws))
        self.tau = query_side @ basis.solve(train_side, damping).T

    def costs(self, weights: Tensor) -> Tensor:
        """The queries' mean losses ``[Q]`` after retraining with a weight for every example."""
        parameters = retrained(*self.regression, weights, self.damping, self.theta)
        self.model.only.weight.data, self.model.only.bias.data = parameters[:, :-1], parameters[:, -1]
        inputs = self.loss.inputs(self.queries, self.query_draws)
        return self.loss(denoiser(self.model), *inputs).detach().unflatten(0, (len(self.queries), -1)).mean(1)


@pytest.mark.parametrize(
    ("damping", "process"), [(1e-3, PROCESS), *((0.3, process) for process in PROCESSES.values())], ids=["small", *PROCESSES]
)
def test_influence_is_the_derivative_of_retraining(damping, process):
    """Claim: for a linear denoiser ``-τ/N`` is the derivative of the query's cost by a training example's weight.

    The same finite draws and λ/2 ‖θ - θ*‖² in the retrained objective; the derivative by central differences; sign and scale.
    """
    world, step, truth = LinearWorld(damping, process=process), 1e-4, torch.zeros(3, 14, dtype=torch.float64)
    for i in range(14):
        up, down = torch.ones(14).double(), torch.ones(14).double()
        up[i] += step
        down[i] -= step
        truth[:, i] = (world.costs(up) - world.costs(down)) / (2 * step)
    assert torch.allclose(retrained(*world.regression, torch.ones(14).double(), damping, world.theta), world.theta)
    torch.testing.assert_close(-world.tau / 14, truth, rtol=1e-6, atol=1e-8 * float(truth.abs().max()))
    assert (world.tau > 0).any()
    assert (world.tau < 0).any()


@pytest.mark.parametrize("weight", [0.99, 0.5, 0.0])
def test_the_lds_of_exact_influence(weight):
    """Claim (sign test): where what a subset lacks is weighed by 0.99, exact influence has an LDS of at least 99 %; less at 0."""
    world = LinearWorld(0.3, n=30)
    subsets = RandomSubsets(count=40, weight=weight)
    removed = subsets.removed(InMemory()(world.train))
    measured = torch.stack([world.costs(torch.from_numpy(1 - taken)) for taken in removed], 1).numpy()
    predictions = lds_metrics.predicted(world.tau.numpy(), removed)
    correlation = lds_metrics.per_query(predictions, measured).mean()
    assert correlation >= {0.99: 0.99, 0.5: 0.95, 0.0: 0.8}[weight]
    change = predictions / 30
    if weight == 0.99:  # the scale too: Δm = Σ τ/N over what was taken away
        moved = measured - world.costs(torch.ones(30).double()).numpy()[:, None]
        np.testing.assert_allclose(change, moved, rtol=0.05, atol=0.02 * np.abs(moved).max())
