"""Rectified flow and EDM, in float64 against their equations, and their samplers against diffusers' schedulers."""

import math

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from scipy import stats
from torch import Tensor

from attribution.diffusion import DDPM, EDM, NoiseSchedule, RectifiedFlow
from attribution.diffusion.euler_samplers import EDMEulerSampler, FlowMatchEulerSampler
from attribution.measurements import Loss, LossAtT
from attribution.nodes import describe

FLOW, LOGIT, KARRAS = RectifiedFlow(T=20), RectifiedFlow(T=20, time="logit_normal", logit_mean=0.3), EDM(T=20, sigma_data=0.6)
PROCESSES = [FLOW, LOGIT, KARRAS]
SAMPLERS = [(FLOW, FlowMatchEulerSampler(steps=6)), (KARRAS, EDMEulerSampler(steps=6))]
SEEDS = torch.arange(4) * 1_000_003 - 7


def arrays(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 1, 2, 3)))


def bent(x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
    """A nonlinear network that depends on time."""
    return torch.tanh(1.5 * x + 0.3) * (0.4 + 0.1 * torch.sin(time.to(x))[:, None, None, None])


@pytest.mark.parametrize(
    ("process", "distribution"),
    [
        (FLOW, stats.uniform()),
        (RectifiedFlow(T=7, time="logit_normal", logit_mean=0.3, logit_std=0.8), None),
        (EDM(T=500), stats.lognorm(s=1.2, scale=math.exp(-1.2))),
    ],
)
def test_levels_are_midpoints_of_quantiles(process, distribution):
    """Claim: level t is the (t - ½)/T quantile of the training distribution, by scipy; a logit-normal s has a normal logit."""
    probabilities = (np.arange(process.T) + 0.5) / process.T
    levels = process.level(torch.arange(1, process.T + 1), torch.float64).numpy()
    if distribution is None:
        levels, distribution = np.log(levels / (1 - levels)), stats.norm(0.3, 0.8)
    np.testing.assert_allclose(distribution.cdf(levels), probabilities, rtol=1e-9)


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
def test_rectified_flow_is_its_equations(time):
    """Claim: x_s = (1-s) x_0 + s ε, the target is ε - x_0, the network gets x_s and 1000 s, all weights are 1."""
    process, x0, noise, t = RectifiedFlow(T=20, time=time), arrays(20, 1), arrays(20, 2), torch.arange(1, 21)
    x_t = process.add_noise(x0, t, noise)
    for b in range(20):
        z = stats.norm.ppf((b + 0.5) / 20)
        s = (b + 0.5) / 20 if time == "uniform" else 1 / (1 + math.exp(-z))
        torch.testing.assert_close(x_t[b], (1 - s) * x0[b] + s * noise[b], rtol=1e-12, atol=1e-12)
        assert process.network_time(t)[b].item() == pytest.approx(1000 * s, rel=1e-6)
    assert torch.equal(process.target(x0, t, noise), noise - x0)
    assert torch.equal(process.network_input(x_t, t), x_t)
    assert torch.equal(process.weight(t), torch.ones(20))


def test_edm_is_its_equations():
    """Claim: target, input, time and denoised image are those of table 1; weight 1 of F is λ(σ) for the image (eq. 2, 8)."""
    x0, noise, output, t, d = arrays(20, 1), arrays(20, 2), arrays(20, 3), torch.arange(1, 21), 0.6
    x_t, target = KARRAS.add_noise(x0, t, noise), KARRAS.target(x0, t, noise)
    loss = Loss(KARRAS)(lambda x, time, condition=None: output, x0, t, noise)
    for b in range(20):
        sigma = math.exp(-1.2 + 1.2 * stats.norm.ppf((b + 0.5) / 20))
        c_skip, c_out = d**2 / (sigma**2 + d**2), sigma * d / math.sqrt(sigma**2 + d**2)
        x = x0[b] + sigma * noise[b]
        torch.testing.assert_close(x_t[b], x, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(target[b], (x0[b] - c_skip * x) / c_out, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(KARRAS.network_input(x_t, t)[b], x / math.sqrt(sigma**2 + d**2), rtol=1e-12, atol=1e-12)
        assert KARRAS.network_time(t)[b].item() == pytest.approx(math.log(sigma) / 4, rel=1e-5)
        denoised = c_skip * x + c_out * output[b]
        torch.testing.assert_close(KARRAS.x0(output, x_t, t)[b], denoised, rtol=1e-12, atol=1e-12)
        weight = (sigma**2 + d**2) / (sigma * d) ** 2
        assert loss[b].item() == pytest.approx(weight * ((denoised - x0[b]) ** 2).mean().item(), rel=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_target_as_output_predicts_the_noise_and_the_image(process):
    """Claim: where the output is the target, both estimates are exact, for int64 t and for levels beyond the grid."""
    for t in (torch.arange(1, 21), torch.linspace(0.002, 1, 20, dtype=torch.float64) * (1 if process is not KARRAS else 80)):
        x0, noise = arrays(20, 1), arrays(20, 2)
        x_t, output = process.add_noise(x0, t, noise), process.target(x0, t, noise)
        torch.testing.assert_close(process.epsilon(output, x_t, t), noise, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(process.x0(output, x_t, t), x0, rtol=1e-9, atol=1e-9)
        wrong = output + arrays(20, 3)
        again = process.add_noise(process.x0(wrong, x_t, t), t, process.epsilon(wrong, x_t, t))
        torch.testing.assert_close(again, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_timestep_is_its_level(process):
    """Claim: every method gives the same for t and for the level of t, and the loss at t is the loss there."""
    x0, noise, output, t = arrays(20, 1), arrays(20, 2), arrays(20, 3), torch.arange(1, 21)
    level = process.level(t, torch.float64)
    x_t = process.add_noise(x0, t, noise)
    for of in (
        lambda t: process.add_noise(x0, t, noise),
        lambda t: process.target(x0, t, noise),
        lambda t: process.network_input(x_t, t),
        lambda t: process.epsilon(output, x_t, t),
        lambda t: process.x0(output, x_t, t),
        process.network_time,
        process.weight,
        lambda t: Loss(process)(bent, x0, t, noise),
    ):
        torch.testing.assert_close(of(level), of(t))
    assert torch.equal(LossAtT(process, 7)(bent, x0, t, noise), Loss(process)(bent, x0, torch.full((20,), 7), noise))


def test_the_loss_is_that_of_diffusers_training_scripts():
    """Claim: noisy samples and the target at sigma are those of FlowMatchEulerDiscreteScheduler and EDMEulerScheduler."""
    x0, noise, t = arrays(4, 1).float(), arrays(4, 2).float(), torch.tensor([1, 5, 9, 20])
    flow = FlowMatchEulerDiscreteScheduler()
    flow.set_timesteps(sigmas=FLOW.level(t.flip(0)).tolist())
    noisy = flow.scale_noise(x0, flow.timesteps.flip(0), noise)
    torch.testing.assert_close(FLOW.add_noise(x0, t, noise), noisy)
    karras, sigma = EDMEulerScheduler(sigma_data=0.6), KARRAS.level(t)[:, None, None, None]
    x_t, output = KARRAS.add_noise(x0, t, noise), arrays(4, 3).float()
    torch.testing.assert_close(KARRAS.x0(output, x_t, t), karras.precondition_outputs(x_t, output, sigma))
    torch.testing.assert_close(KARRAS.network_input(x_t, t), karras.precondition_inputs(x_t, sigma))
    torch.testing.assert_close(KARRAS.network_time(t), karras.precondition_noise(KARRAS.level(t)))


def test_flow_samples_are_those_of_diffusers():
    """Claim: the loop of a pipeline with FlowMatchEulerDiscreteScheduler gives the same images; s falls evenly from 1 to 0."""
    ours = FlowMatchEulerSampler(steps=6).sample(bent, FLOW, (1, 2, 3), SEEDS, trajectory=True)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6).tolist())
    x = ours.states[:, 0]
    for time in scheduler.timesteps:
        x = scheduler.step(bent(x, time.expand(4)), time, x).prev_sample
    torch.testing.assert_close(ours.images, x)
    np.testing.assert_allclose(ours.timesteps.numpy(), [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6], rtol=1e-6)


def test_edm_samples_are_those_of_diffusers():
    """Claim: the loop of a pipeline with EDMEulerScheduler, and Euler's method written out, give the same images."""
    sampler = EDMEulerSampler(steps=6)
    ours = sampler.sample(bent, KARRAS, (1, 2, 3), SEEDS, trajectory=True)
    scheduler = EDMEulerScheduler(sigma_data=0.6)
    scheduler.set_timesteps(6)
    x = slow = ours.states[:, 0].double()
    for time in scheduler.timesteps:
        output = bent(scheduler.scale_model_input(x, time), time.expand(4))
        x = scheduler.step(output, time, x).prev_sample
    torch.testing.assert_close(ours.images.double(), x.double(), rtol=1e-4, atol=1e-4)
    sigmas = [(80 ** (1 / 7) + i / 5 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(6)]
    for sigma, following in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        scale = math.sqrt(sigma**2 + 0.36)
        denoised = 0.36 / scale**2 * slow + sigma * 0.6 / scale * bent(slow / scale, torch.full((4,), math.log(sigma) / 4))
        slow = slow + (following - sigma) * (slow - denoised) / sigma
    torch.testing.assert_close(ours.images.double(), slow, rtol=1e-3, atol=1e-3)
    assert ours.states[:, 0].std().item() == pytest.approx(80, rel=0.3)


@pytest.mark.parametrize(("process", "sampler"), SAMPLERS, ids=["flow", "edm"])
def test_samples_are_a_function_of_their_seeds_alone(process, sampler):
    """Claim: the same seeds give the same bits one by one, in a batch and in another order; no global random number is drawn."""
    state = torch.get_rng_state()
    together = sampler.sample(bent, process, (1, 2, 3), SEEDS)
    singly = torch.cat([sampler.sample(bent, process, (1, 2, 3), seed[None]) for seed in SEEDS])
    assert torch.equal(singly, together)
    assert torch.equal(sampler.sample(bent, process, (1, 2, 3), SEEDS.flip(0)), together.flip(0))
    assert len(together.flatten(1).unique(dim=0)) == 4
    assert torch.equal(torch.get_rng_state(), state)
    assert len(sampler.levels(process)) == 6


@pytest.mark.parametrize(
    ("process", "sampler"),
    [(RectifiedFlow(), FlowMatchEulerSampler(steps=200)), (EDM(), EDMEulerSampler(steps=200))],
    ids=["flow", "edm"],
)
def test_the_best_network_gives_samples_with_the_variance_of_the_data(process, sampler):
    """Claim: for data N(0, s²) the best output is linear in x_t, and its samples are nearly N(0, s²)."""
    s2 = 0.09

    def best(x: Tensor, time: Tensor) -> Tensor:
        if isinstance(process, RectifiedFlow):
            s = time[:, None, None, None] / 1000
            return (s - (1 - s) * s2) / ((1 - s) ** 2 * s2 + s**2) * x
        sigma = (4 * time).exp()[:, None, None, None]
        scale = (sigma**2 + 0.25).sqrt()
        denoised = s2 / (s2 + sigma**2) * (x * scale)
        return (denoised - 0.25 / scale**2 * x * scale) / (sigma * 0.5 / scale)

    samples = sampler.sample(best, process, (1, 32, 32), torch.arange(16)).double()
    assert samples.mean().item() == pytest.approx(0, abs=0.02)
    assert samples.var().item() == pytest.approx(s2, rel=0.06)


def test_what_cannot_be_is_refused():
    """Claim: bad values and a sampler of another process are errors in a sentence; the fields are the identity."""
    for make, field in (
        (lambda: RectifiedFlow(time="cosine"), "RectifiedFlow.time=cosine"),  # pyright: ignore[reportArgumentType]
        (lambda: RectifiedFlow(logit_std=0), "RectifiedFlow.logit_std=0"),
        (lambda: RectifiedFlow(T=0), "RectifiedFlow.T=0"),
        (lambda: EDM(P_std=-1), "EDM.P_std=-1"),
        (lambda: EDM(sigma_data=0), "EDM.sigma_data=0"),
        (lambda: EDMEulerSampler(sigma_min=100), "EDMEulerSampler.sigma_min=100"),
        (lambda: EDMEulerSampler(rho=0), "EDMEulerSampler.rho=0"),
        (lambda: FlowMatchEulerSampler(steps=0), "FlowMatchEulerSampler.steps=0"),
        (lambda: EDMEulerSampler().levels(FLOW), "needs the process EDM, not RectifiedFlow"),
        (lambda: FlowMatchEulerSampler().levels(DDPM(NoiseSchedule())), "needs the process RectifiedFlow, not DDPM"),
    ):
        with pytest.raises(ValueError, match=field.replace(".", r"\.")):
            make()
    assert describe(EDM()) == {"class": "EDM", "version": 1, "T": 1000, "P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EDM(P_mean=800.0), "0 or infinite in float32"),
        (lambda: EDM(P_mean=-110.0), "0 or infinite in float32"),
        (lambda: EDMEulerSampler(rho=0.001), "EDMEulerSampler.rho=0.001: too small"),
    ],
)
def test_levels_beyond_floating_point_are_refused(make, message):
    """Claim: parameters whose levels overflow or vanish are refused when they are set."""
    with pytest.raises(ValueError, match=message):
        make()
