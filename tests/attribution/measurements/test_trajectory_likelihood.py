"""The density of sampling trajectories, against DDIM's equations and scipy's normal distribution, step by step."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.gradients.per_example import per_example_gradients
from attribution.images.draws import Draws, Even, Uniform
from attribution.measurements import TrajectoryLikelihood
from tests.attribution.measurements.test_measurements import SHAPE, SHORT, bent, images, noises
from tests.worlds import PROCESS, UNET


def density_of(sampler, schedule: NoiseSchedule, states: torch.Tensor, timesteps: list[int], denoise=bent) -> list[float]:
    """-log N of every step of one trajectory, pixel by pixel; the transitions are DDIM's (Song et al. eq. 12 and 16)."""
    eta = sampler.eta if isinstance(sampler, DDIMSampler) else 1.0
    result, sigmas = [], []
    for step, (t, s) in enumerate(zip(timesteps, [*timesteps[1:], 0], strict=True)):
        a, b = schedule.alpha_bars[t], schedule.alpha_bars[s]
        x_t = states[step].numpy()
        epsilon = denoise(states[step][None], torch.tensor([t - 1]))[0].numpy()
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        image = (x_t - math.sqrt(1 - a) * epsilon) / math.sqrt(a)
        if sampler.clip:
            image = np.clip(image, -1, 1)
        if isinstance(sampler, DDPMSampler):  # the direction to x_t is that of the clipped image
            epsilon = (x_t - math.sqrt(a) * image) / math.sqrt(1 - a)
        mean = math.sqrt(b) * image + math.sqrt(1 - b - sigma**2) * epsilon
        sigmas.append(sigma if s > 0 else sigmas[-1])
        result.append(-stats.norm.logpdf(states[step + 1].numpy(), mean, sigmas[-1]).sum())
    return result


SAMPLERS = [
    DDPMSampler(clip=False),
    DDPMSampler(),
    DDIMSampler(steps=12, eta=1.0),
    DDIMSampler(steps=5, eta=0.4),
    DDIMSampler(steps=2, eta=0.7, clip=False),
    DDIMSampler(steps=5, eta=0.4, timestep_spacing="trailing"),
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_trajectory_is_the_density_of_every_step(sampler):
    """Claim: the mean over t = 1..T is the sum over all steps, for any S; t selects the step from the largest t' <= t.

    For trailing timesteps it is the step from the smallest t' >= t.
    """
    trajectory = sampler.sample(bent, DDPM(SHORT), SHAPE, torch.tensor([3, 4]), trajectory=True)
    states = trajectory.states.double() + 0.01 * torch.randn(trajectory.states.shape, generator=torch.Generator().manual_seed(0))
    timesteps = trajectory.timesteps.tolist()
    measure = TrajectoryLikelihood(DDPM(SHORT), sampler)
    t = torch.arange(1, 13).expand(2, -1)
    inputs = measure.inputs(states, Draws(t, torch.zeros_like(t), torch.zeros_like(t, dtype=torch.bool)))
    costs = measure(bent, *inputs).view(2, 12)

    def start(t: int) -> int:
        return max(s for s in timesteps if s <= t) if timesteps[-1] == 1 else min(s for s in timesteps if s >= t)

    for b in range(2):
        expected = density_of(sampler, SHORT, states[b], timesteps)
        assert costs[b].mean().item() == pytest.approx(sum(expected), rel=1e-9)
        for drawn in (1, 3, 12):
            times = sum(start(drawn) == start(other) for other in range(1, 13))
            assert costs[b, drawn - 1].item() == pytest.approx(12 / times * expected[timesteps.index(start(drawn))], rel=1e-9)


@pytest.mark.parametrize("prediction", ["v", "sample"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_the_density_does_not_depend_on_what_is_predicted(sampler, prediction):
    """Claim: a network that predicts v or the image has the density of one that predicts the same noise."""
    process, plain = DDPM(SHORT, prediction), DDPM(SHORT)
    states = sampler.sample(bent, plain, SHAPE, torch.tensor([3, 4]), trajectory=True).states.double()

    def denoise(x, time, condition=None):
        t, epsilon = time + 1, bent(x, time)
        return process.target(plain.x0(epsilon, x, t), t, epsilon)

    draws = Uniform(n=9).draw("query", torch.arange(2), 12)
    costs = [
        measure(network, *measure.inputs(states, draws))
        for measure, network in ((TrajectoryLikelihood(plain, sampler), bent), (TrajectoryLikelihood(process, sampler), denoise))
    ]
    torch.testing.assert_close(costs[1], costs[0], rtol=1e-7, atol=1e-7)


def test_trajectory_takes_draws_in_any_order():
    """Claim: rows of a batch do not depend on each other or on their order, and the gradient is correct in float64."""
    sampler = DDPMSampler(clip=False)
    states = sampler.sample(bent, DDPM(SHORT), SHAPE, torch.tensor([1, 2, 3]), trajectory=True).states.double()
    measure = TrajectoryLikelihood(DDPM(SHORT), sampler)
    draws = Uniform(n=20).draw("query", torch.arange(3), 12)
    x, t, noise, _ = measure.inputs(states, draws)
    costs = measure(bent, x, t, noise)
    for row in (0, 17, 59):
        torch.testing.assert_close(measure(bent, x[row : row + 1], t[row : row + 1], noise)[0], costs[row])
    scale = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: measure(lambda x, t, _: s * bent(x, t), x, t, noise), scale)


def test_per_example_gradients_are_those_of_the_whole_trajectory():
    """Claim: with one draw per step, the mean is the gradient of the trajectory's density, for another U-Net than the sampler's."""
    sampler = DDIMSampler(steps=4, eta=1.0)
    torch.manual_seed(0)
    maker, model = UNET(), UNET().eval()
    states = sampler.sample(maker, PROCESS, (1, 8, 8), torch.tensor([5, 6]), trajectory=True).states
    measure = TrajectoryLikelihood(PROCESS, sampler)
    gradients = per_example_gradients(measure, model, states, Even(n=4).draw("query", torch.arange(2), PROCESS.T))
    weight = model.conv_in.weight
    for b in range(2):
        total = torch.zeros(())
        stds = []
        for step, (t, s) in enumerate(((76, 51), (51, 26), (26, 1), (1, 0))):
            epsilon = model(states[b, step][None], torch.tensor([t - 1])).sample
            mean, std = sampler.transition(PROCESS, states[b, step][None], epsilon, t, s)
            stds.append(std or stds[-1])
            total = total + ((states[b, step + 1] - mean) ** 2).sum() / (2 * stds[-1] ** 2)
        (expected,) = torch.autograd.grad(total, weight)
        found = gradients["conv_in"][b, :, :-1].view_as(weight)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_impossible_trajectories_are_errors():
    """Claim: the message names the setting and how to fix it."""
    for sampler in (DDIMSampler(), DDIMSampler(steps=1, eta=1.0)):
        with pytest.raises(ValueError, match=r"sample by DDPM, or by DDIM with eta above 0"):
            TrajectoryLikelihood(PROCESS, sampler)
    trajectory = TrajectoryLikelihood(DDPM(SHORT), DDPMSampler())
    draws = Even(n=3).draw("query", torch.arange(2), 12)
    for wrong in (images(2), torch.zeros(2, 12, *SHAPE)):
        with pytest.raises(ValueError, match=r"\[B, 13, C, H, W\].*generated images"):
            trajectory.inputs(wrong, draws)
    with pytest.raises(ValueError, match="flips"):
        trajectory.inputs(torch.zeros(2, 13, *SHAPE), Draws(draws.timestep, draws.noise_seed, draws.timestep > 3))
    with pytest.raises(ValueError, match=r"inputs\(\)"):
        trajectory(bent, images(2), torch.tensor([1, 2]), noises(2))
