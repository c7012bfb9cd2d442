"""The noise schedule and the samplers, against formulas in float64 and against diffusers' schedulers."""

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from attribution.diffusion import DDPM, NoiseSchedule, denoiser
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler, Trajectory
from attribution.images import philox
from attribution.measurements import Loss

LINEAR = NoiseSchedule()
SHAPE = (1, 4, 4)


def bent(x_t, t):
    """A nonlinear denoiser that depends on time, acts on each pixel separately, and makes clipping matter."""
    return torch.tanh(1.5 * x_t + 0.3) * (0.4 + 0.6 * t[:, None, None, None] / 1000)


def seeds(n, first=0):
    return torch.arange(first, first + n) * 1_000_003 - 7


def test_forward_process_has_the_moments_of_q():
    """Claim: x_t given x_0 is normal with mean √ᾱ_t x_0 and variance 1 - ᾱ_t, ᾱ_t the product of the 1 - β."""
    for t in (1, 300, 1000):
        noise = philox.normal(torch.arange(400), 100).view(400, 1, 10, 10)
        x_t = DDPM(LINEAR).add_noise(torch.full_like(noise, 0.7), torch.full((400,), t), noise).double()
        alpha_bar = np.prod([1 - (1e-4 + (0.02 - 1e-4) * s / 999) for s in range(t)])
        error = 4 * np.sqrt((1 - alpha_bar) / noise.numel())
        assert x_t.mean().item() == pytest.approx(0.7 * np.sqrt(alpha_bar), abs=error)
        assert x_t.var().item() == pytest.approx(1 - alpha_bar, rel=0.03)


def test_cosine_schedule_is_nichol_and_dhariwals():
    """Claim: ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s) π/2), s = 0.008, wherever β is below its limit of 0.999."""
    schedule = NoiseSchedule(T=500, kind="cosine")
    for t in (0, 1, 250, 499):
        expected = (np.cos((t / 500 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
        assert schedule.alpha_bars[t] == pytest.approx(expected, rel=1e-9)
    assert schedule.betas.max() == 0.999
    assert (schedule.betas > 0).all()


@pytest.mark.parametrize("settings", [{"kind": "squared"}, {"T": 0}, {"beta_start": 0.5, "beta_end": 0.1}])
def test_impossible_schedules_are_errors(settings):
    with pytest.raises(ValueError, match=r"^NoiseSchedule\."):
        NoiseSchedule(**settings)


def test_networks_count_timesteps_from_0():
    """Claim: measures call the network with t - 1, and ``denoiser`` accepts tensors and diffusers' outputs."""

    class Clock(nn.Module):
        def forward(self, x, t):
            return x * 0 + t[:, None, None, None]

    x, t = torch.zeros(2, 1, 1, 1), torch.tensor([1, 1000])
    assert Loss(DDPM(LINEAR)).output(denoiser(Clock()), x, t, None).flatten().tolist() == [0, 999]
    net = diffusers.UNet2DModel(8, 1, 1, block_out_channels=(8,), down_block_types=("DownBlock2D",),
                                up_block_types=("UpBlock2D",), norm_num_groups=4, layers_per_block=1)  # fmt: skip
    assert denoiser(net)(torch.zeros(1, 1, 8, 8), torch.tensor([1])).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("t", [1, 2, 500, 1000])
def test_ddpm_transition_is_the_posterior(t):
    """Claim: p(x_{t-1} | x_t) is, by Bayes' rule, the product of q(x_{t-1} | x_0) and q(x_t | x_{t-1}) at the predicted image."""
    x_t, epsilon = (philox.normal(torch.tensor([k]), 16).view(1, *SHAPE).double() for k in (1, 2))
    mean, std = DDPMSampler(clip=True).transition(DDPM(LINEAR), x_t, epsilon, t, t - 1)
    beta, bar, bar_before = LINEAR.betas[t - 1], np.prod(1 - LINEAR.betas[:t]), np.prod(1 - LINEAR.betas[: t - 1])
    x0 = ((x_t - np.sqrt(1 - bar) * epsilon) / np.sqrt(bar)).clamp(-1, 1)
    if t == 1:
        torch.testing.assert_close(mean, x0, rtol=1e-9, atol=1e-9)
        assert std == 0
        return
    precision = 1 / (1 - bar_before) + (1 - beta) / beta
    expected = (np.sqrt(bar_before) * x0 / (1 - bar_before) + np.sqrt(1 - beta) * x_t / beta) / precision
    torch.testing.assert_close(mean, expected, rtol=1e-9, atol=1e-9)
    assert std**2 == pytest.approx(1 / precision, rel=1e-9)


def test_deterministic_ddim_solves_its_ode():
    """Claim: with η = 0, every step changes x/√ᾱ by ε times the change of √(1/ᾱ - 1) (Song et al. 2021, eq. 13)."""
    trajectory = DDIMSampler(steps=7, clip=False).sample(
        lambda x, t: bent(x, t).double(), DDPM(LINEAR), SHAPE, seeds(3), trajectory=True
    )
    for j, t in enumerate(trajectory.timesteps.tolist()):
        s = (*trajectory.timesteps.tolist(), 0)[j + 1]
        bar_t, bar_s = (np.prod(1 - LINEAR.betas[:u]) for u in (t, s))
        x_t, x_s = trajectory.states[:, j].double(), trajectory.states[:, j + 1].double()
        change = bent(x_t, torch.full((3,), t - 1)) * (np.sqrt(1 / bar_s - 1) - np.sqrt(1 / bar_t - 1))
        torch.testing.assert_close(x_s / np.sqrt(bar_s), x_t / np.sqrt(bar_t) + change, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "T"),
    [(DDPMSampler(), 1000), (DDIMSampler(steps=50), 1000), (DDIMSampler(steps=1), 1000), (DDIMSampler(steps=7), 10)],
)
def test_timesteps_fall_to_1(sampler, T):
    """Claim: every sampler visits distinct timesteps of 1..T in descending order and ends at 1; those of DDIM cover the range."""
    timesteps = sampler.timesteps(T)
    assert timesteps == sorted(set(timesteps), reverse=True)
    assert timesteps[-1] == 1
    assert T - timesteps[0] < -(-T // len(timesteps))


class NoiseOf:
    """The noise of our samplers by timestep, for diffusers' schedulers, which take the noise of a whole batch."""

    def __init__(self, trajectory: Trajectory, sampler, process, denoise):
        self.noise = {}
        states, timesteps = trajectory.states, trajectory.timesteps.tolist()
        for j, (t, s) in enumerate(zip(timesteps, [*timesteps[1:], 0], strict=True)):
            x = states[:, j]
            mean, std = sampler.transition(process, x, denoise(x, torch.full((len(x),), t - 1)), t, s)
            self.noise[t] = (states[:, j + 1] - mean) / std if std > 0 else torch.zeros_like(x)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", ["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_agrees_with_diffusers(eta, kind, clip):
    """Claim: with the same noise, diffusers' DDIMScheduler, which computes in float32, gives the same images."""
    schedule, sampler = NoiseSchedule(kind=kind), DDIMSampler(steps=20, eta=eta, clip=clip)
    ours = sampler.sample(bent, DDPM(schedule), SHAPE, seeds(5), trajectory=True)
    noise = NoiseOf(ours, sampler, DDPM(schedule), bent).noise
    theirs = diffusers.DDIMScheduler(trained_betas=schedule.betas.astype(np.float32), clip_sample=clip)
    theirs.set_timesteps(20)
    assert (theirs.timesteps + 1).tolist() == ours.timesteps.tolist()
    x = ours.states[:, 0]
    for t in theirs.timesteps.tolist():
        epsilon = bent(x, torch.full((5,), t))
        x = theirs.step(epsilon, t, x, eta=eta, variance_noise=noise[t + 1]).prev_sample
    torch.testing.assert_close(x, ours.images, rtol=2e-3, atol=2e-3)


def test_ddpm_agrees_with_diffusers(monkeypatch):
    """Claim: with the same noise, diffusers' DDPMScheduler, which computes in float32, gives the same images."""
    ours = DDPMSampler().sample(bent, DDPM(LINEAR), SHAPE, seeds(5), trajectory=True)
    noise = NoiseOf(ours, DDPMSampler(), DDPM(LINEAR), bent).noise
    theirs = diffusers.DDPMScheduler(trained_betas=LINEAR.betas.astype(np.float32))
    x = ours.states[:, 0]
    for t in theirs.timesteps.tolist():
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, step_noise=noise[t + 1], **__: step_noise
        )
        x = theirs.step(bent(x, torch.full((5,), t)), t, x).prev_sample
    torch.testing.assert_close(x, ours.images, rtol=2e-3, atol=2e-3)


def test_full_noise_ddim_is_ddpm():
    """Claim: without clipping, DDIM with η = 1 at all timesteps gives the same images as DDPM (Song et al. 2021, §4.1)."""
    schedule = NoiseSchedule(T=60)
    ancestral = DDPMSampler(clip=False).sample(bent, DDPM(schedule), SHAPE, seeds(4))
    torch.testing.assert_close(DDIMSampler(steps=60, eta=1.0, clip=False).sample(bent, DDPM(schedule), SHAPE, seeds(4)), ancestral)


@pytest.mark.parametrize("sampler", [DDPMSampler(clip=False), DDIMSampler(steps=250, clip=False)])
def test_exact_denoiser_gives_samples_with_the_variance_of_the_data(sampler):
    """Claim: for data N(0, s²) the optimal ε_θ is √(1-ᾱ_t) x_t / (ᾱ_t s² + 1 - ᾱ_t), and its samples are nearly N(0, s²)."""
    s2 = 0.25

    def exact(x_t, t):
        bar = float(LINEAR.alpha_bars[t[0] + 1])
        return np.sqrt(1 - bar) / (bar * s2 + 1 - bar) * x_t

    samples = sampler.sample(exact, DDPM(LINEAR), (1, 32, 32), seeds(16)).double()
    assert samples.mean().item() == pytest.approx(0, abs=4 * np.sqrt(s2 / samples.numel()))
    assert samples.var().item() == pytest.approx(s2, rel=0.05)


@pytest.mark.parametrize("sampler", [DDPMSampler(), DDIMSampler(steps=9, eta=0.5)])
def test_samples_are_a_function_of_their_seeds_alone(sampler):
    """Claim: the same seeds give the same bits one by one, in a batch and in another order; other seeds give other images."""
    schedule = NoiseSchedule(T=30)
    together = sampler.sample(bent, DDPM(schedule), SHAPE, seeds(6))
    singly = torch.cat([sampler.sample(bent, DDPM(schedule), SHAPE, seed[None]) for seed in seeds(6)])
    assert torch.equal(singly, together)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(sampler.sample(bent, DDPM(schedule), SHAPE, seeds(6)[order]), together[order])
    assert len(together.flatten(1).unique(dim=0)) == 6


def test_noise_is_standard_normal_and_new_in_every_step():
    """Claim: a sampler adds N(0, 1) noise that is independent between steps and images."""

    def nothing(x_t, t):
        return torch.zeros_like(x_t)

    schedule, sampler = NoiseSchedule(T=6), DDPMSampler(clip=False)
    trajectory = sampler.sample(nothing, DDPM(schedule), (1, 40, 40), seeds(4), trajectory=True)
    noise = NoiseOf(trajectory, sampler, DDPM(schedule), nothing).noise
    series = torch.stack([trajectory.states[:, 0], *(noise[t] for t in range(2, 7))]).flatten(2).flatten(0, 1)
    # 24 series of 1,600 numbers: correlations are 0 ± 1/40.
    torch.testing.assert_close(torch.corrcoef(series), torch.eye(24), rtol=0, atol=0.12)
    assert series.mean().abs() < 0.03
    assert series.var().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("sampler", [DDPMSampler(), DDIMSampler(steps=4)])
def test_trajectories_end_in_the_samples(sampler):
    """Claim: ``trajectory=True`` gives S + 1 states, from the noise to the sample, and the S timesteps of the steps."""
    schedule = NoiseSchedule(T=12)
    trajectory = sampler.sample(bent, DDPM(schedule), SHAPE, seeds(2), trajectory=True)
    assert trajectory.states.shape == (2, len(trajectory.timesteps) + 1, *SHAPE)
    assert trajectory.timesteps.tolist() == sampler.timesteps(12)
    assert torch.equal(trajectory.images, sampler.sample(bent, DDPM(schedule), SHAPE, seeds(2)))
    assert torch.equal(
        trajectory.states[:, 0], DDPMSampler().sample(bent, DDPM(schedule), SHAPE, seeds(2), trajectory=True).states[:, 0]
    )


def test_networks_sample_in_eval_mode_and_are_left_as_they_were():
    """Claim: sampling disables dropout and gradients, restores the mode of every module, and reports progress."""
    net = nn.Sequential(nn.Dropout(0.5), nn.Conv2d(1, 1, 1))
    net[1].eval()

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            assert not self.net[0].training
            return self.net(x)

    network, calls = Network(), []
    one = DDIMSampler(steps=3).sample(network, DDPM(LINEAR), SHAPE, seeds(2), progress=lambda *step: calls.append(step))
    assert torch.equal(DDIMSampler(steps=3).sample(network, DDPM(LINEAR), SHAPE, seeds(2)), one)
    assert not one.requires_grad
    assert (network.training, net[0].training, net[1].training) == (True, True, False)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_impossible_samplers_are_errors():
    """Claim: the message names the setting, and samples that are not finite are an error."""
    with pytest.raises(ValueError, match=r"DDIMSampler\.steps=11.*T=10"):
        DDIMSampler(steps=11).sample(bent, DDPM(NoiseSchedule(T=10)), SHAPE, seeds(1))
    for settings in ({"steps": 0}, {"eta": 1.5}):
        with pytest.raises(ValueError, match=r"^DDIMSampler\.(steps|eta)="):
            DDIMSampler(**settings)
    with pytest.raises(FloatingPointError, match="diverged"):
        DDIMSampler(steps=2).sample(lambda x, t: x * torch.nan, DDPM(LINEAR), SHAPE, seeds(1))
