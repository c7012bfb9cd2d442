"""Predictions, schedules and weightings of DDPM, in float64 against formulas and against diffusers' schedulers."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.training_utils import compute_snr
from torch import Tensor

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.nodes import describe

SCHEDULE = NoiseSchedule(T=20, beta_start=0.01, beta_end=0.3)
ZERO = NoiseSchedule(T=20, beta_start=0.01, beta_end=0.3, rescale_zero_terminal_snr=True)
NAMES = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
"""``prediction_type`` of diffusers by ours."""
CASES = [(SCHEDULE, "epsilon"), (SCHEDULE, "v"), (SCHEDULE, "sample"), (ZERO, "v"), (ZERO, "sample")]
SEEDS = torch.arange(4) * 1_000_003 - 7


def arrays(n: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, 1, 2, 3)))


def bent(x: Tensor, time: Tensor) -> Tensor:
    """A nonlinear network that depends on time."""
    return torch.tanh(1.5 * x + 0.3) * (0.4 + 0.6 * time.to(x)[:, None, None, None] / 20)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", ["linear", "cosine", "scaled_linear", "sigmoid"])
def test_schedules_are_those_of_diffusers(kind, zero):
    """Claim: β_t and ᾱ_t are those of DDPMScheduler, which computes in float32; zero terminal SNR is exactly 0 and keeps ᾱ_1."""
    schedule = NoiseSchedule(T=500, kind=kind, rescale_zero_terminal_snr=zero)
    name = {"cosine": "squaredcos_cap_v2"}.get(kind, kind)
    theirs = diffusers.DDPMScheduler(500, beta_schedule=name, rescale_betas_zero_snr=zero)
    np.testing.assert_allclose(schedule.betas, theirs.betas.numpy(), rtol=1e-3, atol=2e-6)
    np.testing.assert_allclose(schedule.alpha_bars[1:], theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6)
    assert schedule.alpha_bars[1] == pytest.approx(NoiseSchedule(T=500, kind=kind).alpha_bars[1], rel=1e-12)
    assert (schedule.alpha_bars[-1] == 0) == zero


def test_given_variances():
    """Claim: ``trained_betas`` are the β_t whatever the kind, also from a list; the last may be 1."""
    schedule = NoiseSchedule(T=3, kind="cosine", trained_betas=[0.1, 0.5, 1.0])
    np.testing.assert_array_equal(schedule.betas, [0.1, 0.5, 1.0])
    np.testing.assert_allclose(schedule.alpha_bars, [1, 0.9, 0.45, 0])
    assert hash(schedule) == hash(NoiseSchedule(T=3, kind="cosine", trained_betas=(0.1, 0.5, 1.0)))
    for wrong in ([0.1, 0.0, 0.2], [0.1, 1.0, 0.2], [float("nan"), 0.1, 0.2]):
        with pytest.raises(ValueError, match=r"NoiseSchedule\.trained_betas\[\d\]=.* must be between 0 and 1"):
            NoiseSchedule(T=3, trained_betas=wrong)
    with pytest.raises(ValueError, match=r"NoiseSchedule\.T=1000: trained_betas lists 2: set T=2"):
        NoiseSchedule(trained_betas=[0.1, 0.2])
    with pytest.raises(ValueError, match=r"NoiseSchedule\.T=1"):
        NoiseSchedule(T=1, rescale_zero_terminal_snr=True)


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_predictions_are_those_of_diffusers(schedule, prediction):
    """Claim: x_t, the target and the predicted image are ``add_noise``, ``get_velocity`` and ``step`` of DDPMScheduler."""
    process, x0, noise, t = DDPM(schedule, prediction), arrays(20, 1), arrays(20, 2), torch.arange(1, 21)
    theirs = diffusers.DDPMScheduler(
        20, trained_betas=schedule.betas.astype(np.float32), prediction_type=NAMES[prediction], clip_sample=False
    )
    theirs.alphas_cumprod = torch.from_numpy(schedule.alpha_bars[1:])
    x_t, target = process.add_noise(x0, t, noise), process.target(x0, t, noise)
    torch.testing.assert_close(x_t, theirs.add_noise(x0, noise, t - 1), rtol=1e-12, atol=1e-12)
    expected = {"epsilon": noise, "v": theirs.get_velocity(x0, noise, t - 1), "sample": x0}[prediction]
    torch.testing.assert_close(target, expected, rtol=1e-12, atol=1e-12)
    output = arrays(20, 3)
    for b in range(20):
        seen = theirs.step(output[b], b, x_t[b], generator=torch.Generator()).pred_original_sample
        torch.testing.assert_close(process.x0(output, x_t, t)[b], seen, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_the_target_as_output_predicts_the_noise_and_the_image(schedule, prediction):
    """Claim: where the output is the target, ``epsilon`` and ``x0`` are exact, also where x_T is pure noise.

    An error of the output is ``image_error`` times as large in the image, and the two estimates always agree with x_t.
    """
    process, x0, noise, t = DDPM(schedule, prediction), arrays(20, 1), arrays(20, 2), torch.arange(1, 21)
    x_t, output = process.add_noise(x0, t, noise), process.target(x0, t, noise)
    torch.testing.assert_close(process.epsilon(output, x_t, t), noise, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(process.x0(output, x_t, t), x0, rtol=1e-10, atol=1e-10)
    wrong = output + arrays(20, 3)
    factor = torch.from_numpy(process.image_error)[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(process.x0(wrong, x_t, t) - x0, factor * (output - wrong), rtol=1e-9, atol=1e-9)
    again = process.add_noise(process.x0(wrong, x_t, t), t, process.epsilon(wrong, x_t, t))
    torch.testing.assert_close(again, x_t, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_min_snr_weighs_the_error_of_the_image(schedule, prediction):
    """Claim: weight times squared error of the output is min(SNR, γ) times that of x_0, as in diffusers' scripts."""
    process, t = DDPM(schedule, prediction, "min_snr", snr_gamma=3.0), torch.arange(1, 21)
    x0, noise, output = arrays(20, 1), arrays(20, 2), arrays(20, 3)
    x_t, weight = process.add_noise(x0, t, noise), process.weight(t, torch.float64)
    found = weight * (process.target(x0, t, noise) - output).square().flatten(1).sum(1)
    for b in range(20):
        bar = np.prod(1 - schedule.betas[: b + 1])
        error = (x0 - process.x0(output, x_t, t))[b].square().sum().item()
        assert found[b].item() == pytest.approx(min(bar / (1 - bar), 3.0) * error, rel=1e-9, abs=1e-12)
    theirs = diffusers.DDPMScheduler(20, trained_betas=schedule.betas.astype(np.float32))
    snr = compute_snr(theirs, t - 1)
    divisor = {"epsilon": snr, "v": snr + 1, "sample": 1}[prediction]
    torch.testing.assert_close(process.weight(t), snr.clamp(max=3.0) / divisor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "sampler", [DDPMSampler(), DDIMSampler(steps=7, eta=0.4), DDIMSampler(steps=7, timestep_spacing="trailing")]
)
@pytest.mark.parametrize("schedule", [SCHEDULE, ZERO])
def test_a_sample_does_not_depend_on_what_is_predicted(sampler, schedule):
    """Claim: networks that predict the same image in terms of v and x_0 (and ε, where it can) give the same samples."""
    images = DDPM(schedule, "sample")

    def by(process: DDPM):
        def denoise(x: Tensor, time: Tensor) -> Tensor:
            x, t = x.double(), time + 1
            image = bent(x, time)
            return process.target(image, t, images.epsilon(image, x, t))

        return sampler.sample(denoise, process, (1, 2, 3), SEEDS)

    samples = [by(DDPM(schedule, prediction)) for same, prediction in CASES if same is schedule]
    assert all(sample.isfinite().all() for sample in samples)
    for sample in samples[1:]:
        torch.testing.assert_close(sample, samples[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_ddim_agrees_with_diffusers(schedule, prediction, spacing):
    """Claim: for every prediction and spacing, DDIMScheduler, which computes in float32, gives the same images."""
    ours = DDIMSampler(steps=5, timestep_spacing=spacing).sample(
        bent, DDPM(schedule, prediction), (1, 2, 3), SEEDS, trajectory=True
    )
    theirs = diffusers.DDIMScheduler(
        20, trained_betas=schedule.betas.astype(np.float32), prediction_type=NAMES[prediction], timestep_spacing=spacing
    )
    theirs.set_timesteps(5)
    assert (theirs.timesteps + 1).tolist() == ours.timesteps.tolist()
    x = ours.states[:, 0]
    for t in theirs.timesteps.tolist():
        x = theirs.step(bent(x, torch.full((4,), t)), t, x).prev_sample
    torch.testing.assert_close(x, ours.images, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_ddpm_agrees_with_diffusers(schedule, prediction, monkeypatch):
    """Claim: for every prediction, DDPMScheduler gives the same images with the same noise."""
    process, sampler = DDPM(schedule, prediction), DDPMSampler()
    ours = sampler.sample(bent, process, (1, 2, 3), SEEDS, trajectory=True)
    theirs = diffusers.DDPMScheduler(20, trained_betas=schedule.betas.astype(np.float32), prediction_type=NAMES[prediction])
    x = ours.states[:, 0]
    for j, t in enumerate(theirs.timesteps.tolist()):
        output = bent(ours.states[:, j], torch.full((4,), t))
        mean, std = sampler.transition(process, ours.states[:, j], output, t + 1, t)
        noise = (ours.states[:, j + 1] - mean) / std if std > 0 else torch.zeros_like(x)
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, noise=noise, **__: noise)
        x = theirs.step(bent(x, torch.full((4,), t)), t, x).prev_sample
    torch.testing.assert_close(x, ours.images, rtol=1e-3, atol=1e-3)


def test_what_cannot_be_is_refused():
    """Claim: bad values are errors that name the field; new fields are no part of the identity at their defaults."""
    with pytest.raises(ValueError, match=r"DDPM\.prediction=epsilon: x_T is pure noise .* choose v or sample"):
        DDPM(ZERO)
    for gamma in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"DDPM\.snr_gamma="):
            DDPM(SCHEDULE, snr_gamma=gamma)
    with pytest.raises(ValueError, match=r"DDIMSampler\.timestep_spacing=linspace: choose leading or trailing"):
        DDIMSampler(timestep_spacing="linspace")  # pyright: ignore[reportArgumentType]
    assert describe(NoiseSchedule()).keys() == {"class", "version", "T", "kind", "beta_start", "beta_end"}
    assert describe(DDIMSampler()).keys() == {"class", "version", "clip", "steps", "eta"}
    assert describe(DDPM(SCHEDULE)).keys() == {"class", "version", "schedule"}
