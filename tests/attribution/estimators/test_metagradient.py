"""Metagradients against training that is differentiated as one graph, against retraining with other weights, and influence."""

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from safetensors.torch import load_file, save_file
from torch import nn

from attribution.checks import FieldError
from attribution.diffusion import denoiser
from attribution.estimators import metagradient
from attribution.estimators.metagradient import Metagradient
from attribution.execution import Execution
from attribution.images.draws import Even, Uniform
from attribution.measurements import Loss, Measure
from attribution.models.trained import with_parameters
from attribution.nodes import InMemory
from attribution.retraining.fit_together import Member, fit_together
from attribution.retraining.modes import Alone
from attribution.retraining.selection import Selection
from attribution.training import RecordError, reverse
from attribution.training.checkpoints import EverySteps
from attribution.training.optimizer_steps import PARAMETERS, optimizer_settings, step_after
from attribution.training.recipe import Recipe
from attribution.training.record import checkpoint_file
from attribution.training.replay import replay_gradient, visit_losses
from attribution.training.rerun import Rerun
from attribution.training.selected import Matching
from experiments.models.trained import TrainedModel
from experiments.store.store import Store
from tests.attribution.curvature.curvature_worlds import given, perceptron
from tests.conditional_networks import DIT
from tests.worlds import PROCESS, UNET, Blobs, Conditioned, trained

TRAIN, QUERIES, DRAWS = Blobs(n=7, size=4), Blobs(n=2, first=900, size=4), Uniform(3)
N, STEPS = TRAIN.n, 9


class Small(nn.Module):
    """A layer with dropout, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(17, 5), nn.Linear(5, 5), nn.Linear(5, 16)
        self.dropout = nn.Dropout(0.2)
        self.frozen.requires_grad_(False)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(torch.cat([x_t.flatten(1), t[:, None].to(x_t.dtype) / 100], 1)))
        return self.last(self.dropout(torch.tanh(self.frozen(hidden)))).view_as(x_t)


RECIPE = Recipe(steps=STEPS, batch_size=3, lr_schedule="cosine", warmup=0.2, precision="64-true")
SGD = functools.partial(torch.optim.SGD, lr=0.3, momentum=0.8, weight_decay=0.01)
ADAMW = functools.partial(torch.optim.AdamW, lr=0.02, weight_decay=0.01, eps=1e-4)


def model(**changes: Any) -> TrainedModel:
    settings = {"model": Small, "data": TRAIN, "optimizer": SGD, "recipe": RECIPE, "checkpoints": EverySteps(4)}
    return trained(**{**settings, **changes})


def scored(node: TrainedModel, get: Any, **changes: Any) -> np.ndarray:
    settings = {"measurement": node.objective, "draws": DRAWS, "execution": Execution(device="cpu"), **changes}
    return Metagradient(**settings).score(node, node.data, QUERIES, get).values


def measured(network: nn.Module, objective: Measure, get: Any) -> torch.Tensor:
    """The cost of each query, ``[Q]``."""
    queries = get(QUERIES)
    draws = DRAWS.draw("query", queries.ids(), PROCESS.T)
    return objective(denoiser(network.eval()), *objective.inputs(queries.x0().double(), draws)).view(len(queries), -1).mean(1)


def differentiated(node: TrainedModel, get: Any) -> np.ndarray:
    """Training as one graph from the weights to the measurement, differentiated by autograd, ``[Q, N]``."""
    record, images, network = get(node), get(TRAIN), node.network(get)
    kind, settings = optimizer_settings(node.optimizer)
    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings["lr"])
    recipe, weights = node.recipe, torch.ones(N, dtype=torch.float64, requires_grad=True)
    schedule = get_scheduler(
        recipe.lr_schedule, dummy, num_warmup_steps=round(recipe.warmup * recipe.steps), num_training_steps=recipe.steps
    )
    torch.manual_seed(node.seed)
    shapes = {name: p.double() for name, p in node.model().named_parameters() if p.requires_grad}
    state: dict[str, Any] = {PARAMETERS: torch.cat([p.detach().flatten() for p in shapes.values()])}
    average = None

    class Moved(nn.Module):
        def forward(self, x_t, t):
            pieces = moved.values.split([p.numel() for p in shapes.values()])
            named = {name: piece.view_as(p) for (name, p), piece in zip(shapes.items(), pieces, strict=True)}
            return torch.func.functional_call(network, named, (x_t, t))

    moved: Any = Moved()
    moved.register_parameter("of_dtype", nn.Parameter(torch.zeros(1).double()))
    moved.network = network
    for step in range(recipe.steps):
        visits = record.visits_of_step(step)
        rows = [images.index.tolist().index(example) for example in visits["example"]]
        moved.values = state[PARAMETERS] if state[PARAMETERS].requires_grad else state[PARAMETERS].requires_grad_()
        torch.manual_seed(int(record.step_table["dropout_seed"][step]))
        loss = (weights[rows] * visit_losses(moved.train(), node.objective, images, visits)).mean()
        (gradient,) = torch.autograd.grad(loss, moved.values, create_graph=True)
        if recipe.clip is not None:
            gradient = gradient * torch.clamp(recipe.clip / (gradient.norm() + 1e-6), max=1)
        state = step_after(kind, settings, float(schedule.get_last_lr()[0]), step, state, gradient)
        dummy.step()
        schedule.step()
        if recipe.ema is not None:
            decay = recipe.ema_decay(step)
            average = state[PARAMETERS] if average is None else decay * average + (1 - decay) * state[PARAMETERS]
    moved.values = state[PARAMETERS] if average is None else average
    costs = measured(moved, node.objective, get)
    return -N * torch.stack([torch.autograd.grad(cost, weights, retain_graph=True)[0] for cost in costs]).numpy()


WORLDS = {
    "momentum": model(),
    "adamw": model(optimizer=ADAMW),
    "momentum, clipped": model(recipe=replace(RECIPE, clip=0.3)),
    "adamw, clipped, averaged": model(optimizer=ADAMW, recipe=replace(RECIPE, clip=0.3, ema=0.7)),
}


@pytest.fixture(scope="module")
def get():
    return InMemory()


@pytest.mark.parametrize("name", WORLDS)
def test_scores_are_the_derivative_of_training_as_one_graph(name, get):
    """Claim: with schedule, clipping, averages, dropout and flips, scores are -N times the derivative by autograd, to rounding."""
    node = WORLDS[name]
    clipped = get(node).step_table["clip_factor"] < 1
    assert ("clipped" in name) == clipped.any()
    np.testing.assert_allclose(scored(node, get), differentiated(node, get), rtol=2e-6, atol=1e-9)


THREE_STEPS = Recipe(steps=3, batch_size=4)
NETWORKS = {
    "labels": trained(model=DIT, data=Conditioned(n=6), recipe=THREE_STEPS),
    "channels_last": trained(model=functools.partial(UNET, dropout=0.3), recipe=replace(THREE_STEPS, channels_last=True)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_on_the_way_back_are_those_of_training(name, get, monkeypatch):
    """Claim: label dropout of the network is off and the memory format is that of training, on which masks of dropout depend."""
    node, found, original = NETWORKS[name], {}, reverse.pulled_back

    def pulled_back(kind, settings, rate, step, before, gradient, adjoints):
        found[step] = gradient.clone()
        return original(kind, settings, rate, step, before, gradient, adjoints)

    monkeypatch.setattr(reverse, "pulled_back", pulled_back)
    queries = replace(node.data, n=1, first=900)
    Metagradient(measurement=node.objective, draws=DRAWS, execution=Execution(device="cpu")).score(node, node.data, queries, get)
    rerun = Rerun(node, get(node), get(node.data), torch.device("cpu"))
    for step in range(3):
        gradients = replay_gradient(rerun.network, node.objective, rerun.record, rerun.images, step).values()
        expected = torch.cat([gradient.reshape(-1) for gradient in gradients])
        assert (found[step] - expected).norm() < 1e-4 * expected.norm()
        rerun.advance()


def retrained(node: TrainedModel, weights: np.ndarray, folder: Any, get: Any) -> np.ndarray:
    """The costs of the queries after training with ``weights [N]`` of the images, ``[Q]``."""
    folder.mkdir(parents=True)
    member = Member(node.seed, Selection.weighted(weights), folder)
    fit_together([member], get(TRAIN), node.model, node.objective, node.optimizer, node.recipe, Alone(), node.flips)
    network = with_parameters(node.model(), load_file(member.parameters))
    with torch.no_grad():
        return measured(network, node.objective, get).numpy()


@pytest.mark.parametrize("name", ["momentum, clipped", pytest.param("adamw, clipped, averaged", marks=pytest.mark.slow)])
def test_scores_are_differences_of_retraining(name, get, tmp_path):
    """Claim: scores are central differences of the project's retraining with the weight of one image at 1 ± ε, times -N."""
    node, epsilon = WORLDS[name], 1e-4
    scores = scored(node, get)
    for i in range(3):
        ends = []
        for sign in (1, -1):
            weights = np.ones(N)
            weights[i] += sign * epsilon
            ends.append(retrained(node, weights, tmp_path / f"{i}{sign}", get))
        np.testing.assert_allclose(scores[:, i], -N * (ends[0] - ends[1]) / (2 * epsilon), rtol=1e-4, atol=1e-7)


@dataclass(frozen=True)
class Regression(Measure):
    """The squared error of the first pixel of the output, with the mean of the image as its target. Draws do not matter."""

    NAME = "Regression of tests"

    def __call__(self, denoise, x0, t, noise, condition=None):
        return (denoise(x0, t)[:, 0, 0, 0] - x0.flatten(1).mean(1) ** 3).square()


class Affine(nn.Module):
    """One number: an affine function of four pixels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x_t[:, 0, :2, :2].flatten(1))[:, :, None, None].expand_as(x_t)


@pytest.mark.slow
def test_where_sgd_converges_on_a_convex_loss_scores_are_influence(get):
    """Claim: full batches to convergence give ∇m(q)ᵀ (H + λI)⁻¹ ∇ℓ(z), sign and scale included, with λ the weight decay."""
    objective, decay = Regression(PROCESS), 0.2
    sgd = functools.partial(torch.optim.SGD, lr=0.3, momentum=0.5, weight_decay=decay)
    recipe = Recipe(steps=100, batch_size=N, precision="64-true")
    node = model(model=Affine, objective=objective, optimizer=sgd, recipe=recipe, checkpoints=EverySteps(30), flips=False)
    layer: Any = node.network(get).layer

    def parts(images):
        x = images.x0().double()
        inputs = torch.cat([x[:, 0, :2, :2].flatten(1), torch.ones(len(x), 1).double()], 1)
        theta = torch.cat([layer.weight[0], layer.bias]).detach()
        return inputs, 2 * (inputs @ theta - x.flatten(1).mean(1) ** 3)[:, None] * inputs

    inputs, gradients = parts(get(TRAIN))
    damped = 2 * inputs.T @ inputs / N + decay * torch.eye(5).double()
    expected = parts(get(QUERIES))[1] @ torch.linalg.solve(damped, gradients.T)
    np.testing.assert_allclose(scored(node, get), expected.numpy(), rtol=2e-4, atol=1e-6 * float(expected.abs().max()))


def test_an_altered_checkpoint_is_noticed():
    """Claim: a checkpoint that differs in one number stops the computation, and the message says where and why."""
    get, node = InMemory(), model()
    path = checkpoint_file(get(node).folder, 8)
    state = load_file(path)
    state["last.bias"][3] += 1e-9
    save_file(state, path)
    with pytest.raises(ValueError, match=r"differs from its checkpoint at step 8 \(by up to 1.0e-09 in last.bias\)"):
        scored(node, get)


def test_training_by_several_processes_is_refused():
    """Claim: sums over processes cannot be computed again to the bit."""
    get, node = InMemory(), model()
    get(node).info["processes"] = 2
    with pytest.raises(ValueError, match="2 processes trained the model"):
        scored(node, get)


def test_a_killed_sweep_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Claim: killed in any segment and started again, scores are those of a sweep in one go, without repeating what was saved."""
    node = model(optimizer=ADAMW)
    whole, taken = scored(node, Store(tmp_path / "whole")), []
    of = metagradient.ReverseSteps.__call__

    def killed(self, step, before, adjoints):
        taken.append(step)
        if len(taken) in (5, 8):
            raise KeyboardInterrupt
        return of(self, step, before, adjoints)

    monkeypatch.setattr(metagradient.ReverseSteps, "__call__", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            scored(node, Store(tmp_path / "pieces"))
    assert np.array_equal(scored(node, Store(tmp_path / "pieces")), whole)
    assert metagradient.segment(STEPS) == 3
    assert taken == [8, 7, 6, 5, 4, 5, 4, 3, 5, 4, 3, 2, 1, 0]


def test_queries_are_independent(get):
    """Claim: one query at a time gives the same scores."""
    node = WORLDS["adamw, clipped, averaged"]
    whole = scored(node, get)
    np.testing.assert_allclose(scored(node, InMemory(), execution=Execution(device="cpu", query_shard=1)), whole, rtol=1e-6)


def test_passes_are_counted(get):
    """Claim: training twice, two passes per visit for the graph of gradients, two for each query, and the query's draws."""
    node = model()
    scores = Metagradient(measurement=node.objective, draws=DRAWS, execution=Execution(device="cpu")).scores(node, TRAIN, QUERIES)
    visits = len(get(node).visits)
    assert scores.passes(get) == pytest.approx(visits * (4 + 2 * QUERIES.n) + QUERIES.n * DRAWS.count, rel=1e-9)


def in_two_groups(parameters):
    """SGD whose first tensor has a group of its own, if there are several."""
    first, *others = parameters
    groups = [{"params": group} for group in ([first], others) if group]
    return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": in_two_groups}, "one group of parameters"),
        ({"optimizer": functools.partial(torch.optim.RMSprop, lr=0.1)}, "TrainedModel.optimizer=RMSprop.*choose one of these"),
        ({"recipe": replace(RECIPE, precision="bf16-mixed")}, "Recipe.precision=bf16-mixed.*32-true or 64-true"),
        ({"recipe": replace(RECIPE, compiler="eager")}, "Recipe.compiler=eager.*set this to null"),
    ],
)
def test_training_that_cannot_be_differentiated_is_refused_by_name(changes, said):
    """Claim: before anything is computed, the error names the field and says what to choose."""
    with pytest.raises(FieldError, match=said):
        scored(model(**changes), InMemory())


def test_other_bad_settings_are_refused():
    """Claim: lists and sides of draws, parts of the parameters and models from elsewhere are refused."""
    settings: dict[str, Any] = {"measurement": Loss(PROCESS), "execution": Execution(device="cpu")}
    with pytest.raises(FieldError, match="recorded"):
        Metagradient(draws=Uniform(3, train=2), **settings)
    with pytest.raises(FieldError, match="metagradient"):
        Metagradient(draws=Uniform([2, 4]), **settings)
    with pytest.raises(FieldError, match=r"Matching.pattern=last.*attribute to all"):
        Metagradient(draws=Even(4), **settings).scores(Matching("last").of(model()), TRAIN, QUERIES)
    with pytest.raises(RecordError, match="train the model here"):
        Metagradient(draws=Even(4), **settings).scores(given(perceptron), TRAIN, QUERIES)
