"""Forward processes, the calling convention of networks, and conditions, in float64 against formulas and autograd."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from attribution.diffusion import DDPM, EDM, NoiseSchedule, Process, RectifiedFlow, denoiser
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.gradients.per_example import PerExampleGradients
from attribution.images.draws import Draws, Even, Uniform
from attribution.measurements import Elbo, ElboWeighted, Inputs, JourneyLoss, Loss, SquareNorm, TrajectoryLikelihood
from attribution.nodes import describe
from attribution.retraining.stacked_forward import stacked_losses
from tests.references import as_parameters

SCHEDULE = NoiseSchedule(T=20, beta_start=0.01, beta_end=0.3)
PROCESS = DDPM(SCHEDULE)


def arrays(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 1, 2, 3)))


def test_ddpm_is_its_equations():
    """Claim: x_t = √ᾱ_t x_0 + √(1-ᾱ_t) ε; the target is ε, all weights are 1, and the network sees x_t itself."""
    x0, noise, t = arrays(20, 1), arrays(20, 2), torch.arange(1, 21)
    x_t = PROCESS.add_noise(x0, t, noise)
    assert PROCESS.T == 20
    for b in range(20):
        bar = np.prod([1 - (0.01 + 0.29 * s / 19) for s in range(b + 1)])
        torch.testing.assert_close(x_t[b], np.sqrt(bar) * x0[b] + np.sqrt(1 - bar) * noise[b], rtol=1e-12, atol=1e-12)
    assert torch.equal(PROCESS.target(x0, t, noise), noise)
    assert torch.equal(PROCESS.weight(t), torch.ones(20))
    assert torch.equal(PROCESS.network_input(x_t, t), x_t)


def test_the_target_as_output_predicts_the_noise_and_the_image():
    """Claim: where the network's output is the target, ``epsilon`` is the noise and ``x0`` the image, at every noise level."""
    x0, noise, t = arrays(20, 1), arrays(20, 2), torch.arange(1, 21)
    x_t, output = PROCESS.add_noise(x0, t, noise), PROCESS.target(x0, t, noise)
    torch.testing.assert_close(PROCESS.epsilon(output, x_t, t), noise, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(PROCESS.x0(output, x_t, t), x0, rtol=1e-10, atol=1e-10)
    for b in (0, 19):
        image = DDPMSampler(clip=False).predicted_image(PROCESS, x_t[b : b + 1], output[b : b + 1], t[b : b + 1])
        torch.testing.assert_close(PROCESS.x0(output, x_t, t)[b : b + 1], image, rtol=1e-12, atol=1e-12)


def test_fields_at_their_defaults_are_not_in_the_description():
    """Claim: prediction and weighting are not part of the identity while they have their defaults."""
    assert describe(PROCESS).keys() == {"class", "version", "schedule"}
    assert describe(DDPM(SCHEDULE, prediction="epsilon", weighting="constant")) == describe(PROCESS)
    for setting in ("prediction", "weighting"):
        with pytest.raises(ValueError, match=rf"DDPM\.{setting}=wrong: choose one of"):
            DDPM(SCHEDULE, **{setting: "wrong"})  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Doubling(Process):
    """Another process: x_t = x_0 + t ε; the network sees x_t / t and log t, predicts -ε, and is trained with weight 1/t."""

    NAME = "tests.Doubling"

    @property
    def T(self):
        return 20

    @property
    def log_snr(self):
        return -2 * np.log(np.arange(1, 21))

    def add_noise(self, x0, t, noise):
        return x0 + t[:, None, None, None] * noise

    def target(self, x0, t, noise):
        return -noise

    def weight(self, t, dtype=torch.float32):
        return 1 / t.to(dtype)

    def network_input(self, x_t, t):
        return x_t / t[:, None, None, None]

    def network_time(self, t):
        return t.double().log()

    def epsilon(self, output, x_t, t):
        return -output

    def x0(self, output, x_t, t):
        return x_t + t[:, None, None, None] * output


@pytest.mark.parametrize(
    "process",
    [
        DDPM(SCHEDULE),
        DDPM(NoiseSchedule(T=20, rescale_zero_terminal_snr=True), prediction="v"),
        RectifiedFlow(T=20, time="logit_normal"),
        EDM(T=20),
    ],
    ids=lambda process: type(process).__name__,
)
def test_log_snr_is_that_of_noisy_images(process):
    """Claim: it is the log of the ratio of variances of image and noise in x_t, for an image of variance 1; -inf for pure noise."""
    t, one, zero = torch.arange(1, process.T + 1), *(torch.full((process.T, 1, 1, 1), value).double() for value in (1, 0))
    signal, noise = process.add_noise(one, t, zero).flatten(), process.add_noise(zero, t, one).flatten()
    np.testing.assert_allclose(process.log_snr, (2 * (signal / noise).log()).numpy(), rtol=1e-9, atol=1e-9)


def test_the_loss_is_that_of_any_process():
    """Claim: ``Loss`` is weight(t) times the mean square of target minus output, at the network's input and time."""
    x0, noise, t = arrays(3, 1), arrays(3, 2), torch.tensor([1, 4, 20])
    loss = Loss(Doubling())(lambda x, time, condition=None: torch.sin(x) + time[:, None, None, None], x0, t, noise)
    for b, time in enumerate(t.tolist()):
        expected = ((-noise[b] - torch.sin((x0[b] + time * noise[b]) / time) - math.log(time)) ** 2).mean() / time
        assert loss[b].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(
    "use",
    [
        lambda p: ElboWeighted(p),
        lambda p: Elbo(p, 255),
        lambda p: TrajectoryLikelihood(p, DDPMSampler()),
        lambda p: JourneyLoss(p, DDPMSampler()),
        lambda p: DDIMSampler().sample(lambda x, t, condition=None: x, p, (1, 2, 2), torch.arange(1)),
    ],
)
@pytest.mark.parametrize("process", [Doubling(), EDM(), RectifiedFlow()], ids=lambda process: type(process).__name__)
def test_what_needs_a_ddpm_says_so(use, process):
    """Claim: measures and samplers that are defined by a noise schedule refuse another process in one sentence."""
    name = type(process).__name__
    with pytest.raises(ValueError, match=rf"\.process={name}: .* of a DDPM: train a DDPM|needs a DDPM process .* not {name}"):
        use(process)


class Conditional(nn.Module):
    """A network that also takes a vector for each image."""

    def __init__(self):
        super().__init__()
        self.image, self.vector, self.out = nn.Linear(6, 5), nn.Linear(4, 5), nn.Linear(5, 6)

    def forward(self, x, t, condition):
        return self.out(torch.tanh(self.image(x.flatten(1)) + self.vector(condition) * t[:, None] / 20)).view_as(x)


@pytest.mark.parametrize("batch_size", [2, 128])
@pytest.mark.parametrize("measure", [Loss(PROCESS), SquareNorm(PROCESS), ElboWeighted(PROCESS)], ids=str)
def test_per_example_gradients_with_a_condition_are_autograds(measure, batch_size):
    """Claim: the condition of each example reaches the network with all its draws, for any batch size."""
    torch.manual_seed(0)
    model = Conditional().double()
    x0, condition = arrays(3), torch.randn(3, 4, dtype=torch.float64)
    draws = Uniform(4).draw("query", torch.arange(3), 20)
    captured = PerExampleGradients(model, batch_size).capture(measure, x0, draws, condition)
    found = as_parameters(model, captured.mean())
    for b in range(3):
        one = draws.rows(slice(b, b + 1))
        noise = one.noise((1, 2, 3), torch.float64)[0]
        inputs = x0[b].expand(4, -1, -1, -1), one.timestep[0], noise, condition[b].expand(4, -1)
        cost = measure(lambda x, t, c=None: model(x, t, c), *inputs).mean()
        for (name, p), expected in zip(model.named_parameters(), torch.autograd.grad(cost, list(model.parameters())), strict=True):
            assert p.requires_grad
            torch.testing.assert_close(found[name][b], expected, rtol=1e-9, atol=1e-11)


def test_conditions_reach_stacked_models():
    """Claim: the losses of models with stacked parameters, each with its own conditions, are those of the models alone."""
    torch.manual_seed(0)
    models = [Conditional().double() for _ in range(2)]
    inputs = Inputs(
        torch.randn(2, 5, 1, 2, 3).double(),
        torch.randint(1, 21, (2, 5)),
        torch.randn(2, 5, 1, 2, 3).double(),
        torch.randn(2, 5, 4).double(),
    )
    state = {name: torch.stack([dict(m.named_parameters())[name] for m in models]) for name, _ in models[0].named_parameters()}
    losses = stacked_losses(models[0], state, Loss(PROCESS), inputs)
    for m, model in enumerate(models):
        torch.testing.assert_close(losses[m], Loss(PROCESS)(denoiser(model), *inputs.rows(m)), rtol=1e-12, atol=1e-12)


def test_a_condition_without_a_use_is_an_error():
    """Claim: a network that takes no condition refuses one, and draws that no measure evaluates are refused."""
    network = nn.Conv2d(1, 1, 1)
    x, t = torch.zeros(2, 1, 3, 3), torch.tensor([1, 2])
    with pytest.raises(ValueError, match=r"the images have a condition, but Conv2d\.forward takes none"):
        denoiser(network)(x, t, torch.zeros(2))
    draws = Even(2).draw("query", torch.arange(2), 20)
    for field, message in (("weight", "evaluate draws.unweighted"), ("condition_dropped", "leave it as None")):
        with pytest.raises(ValueError, match=message):
            Loss(PROCESS).inputs(x, Draws(draws.timestep, draws.noise_seed, draws.flip, **{field: draws.flip}))
