"""Measures against their definitions, written out in float64 with loops, scipy's distributions and diffusers' schedulers."""

import math
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from scipy import integrate, stats

from attribution.diffusion import DDPM, NoiseSchedule
from attribution.gradients.per_example import per_example_gradients
from attribution.images.draws import Even
from attribution.measurements import Elbo, ElboWeighted, Loss, LossAtT, SquareNorm, decoder, elbo
from attribution.measurements.base import Measure
from experiments import figures
from tests.worlds import PROCESS, UNET

CONF = Path(__file__).parents[3] / "conf"
SHORT = NoiseSchedule(T=12, beta_start=0.01, beta_end=0.4)
SHAPE = (2, 3, 3)
LEVELS = 16


def bent(x_t, t, condition=None):
    """A nonlinear denoiser that depends on time and predicts badly."""
    return torch.tanh(1.5 * x_t + 0.3) * (0.4 + 0.6 * t.to(x_t)[:, None, None, None] / 1000)


def images(n: int, levels: int = LEVELS) -> torch.Tensor:
    """n images on the grid of values, including both ends, float64."""
    pixels = np.random.default_rng(n).integers(0, levels + 1, (n, *SHAPE))
    pixels[:, 0, 0, :2] = 0, levels
    return torch.from_numpy(2 * pixels / levels - 1)


def noises(n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, *SHAPE)))


def every_t(measure: Measure, x0: torch.Tensor, noise: torch.Tensor, denoise=bent) -> np.ndarray:
    """The cost of one image at t = 1..T with the same noise."""
    T = measure.process.T
    t = torch.arange(1, T + 1)
    return measure(denoise, x0.expand(T, *x0.shape), t, noise.expand(T, *noise.shape)).numpy()


def gaussian_kl(mean0: float, variance0: float, mean1: float, variance1: float) -> float:
    """KL between two normal distributions."""
    return math.log(variance1 / variance0) / 2 + (variance0 + (mean0 - mean1) ** 2) / (2 * variance1) - 0.5


def slow_bound(
    schedule: NoiseSchedule, x0: np.ndarray, noise: np.ndarray, levels: int, denoise=bent, prediction: str = "epsilon"
) -> tuple[float, list[float]]:
    """Eq. 5 of Ho et al. at one noise: L_T and [L_0, .., L_{T-1}], computed pixel by pixel from the distributions."""
    beta = schedule.betas
    alpha_bar = [math.prod(1 - b for b in beta[:t]) for t in range(schedule.T + 1)]

    def posterior(x_t: Any, pixel: Any, t: int) -> tuple[Any, float]:
        # q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0): precisions add up.
        b, a = beta[t - 1], alpha_bar[t - 1]
        precision = (1 - b) / b + 1 / (1 - a)
        return (math.sqrt(1 - b) * x_t / b + math.sqrt(a) * pixel / (1 - a)) / precision, 1 / precision

    prior = sum(gaussian_kl(math.sqrt(alpha_bar[-1]) * p, 1 - alpha_bar[-1], 0, 1) for p in x0.flatten())
    terms = []
    for t in range(1, schedule.T + 1):
        x_t = math.sqrt(alpha_bar[t]) * x0 + math.sqrt(1 - alpha_bar[t]) * noise
        output = denoise(torch.from_numpy(x_t)[None], torch.tensor([t - 1]))[0].numpy()
        if prediction == "epsilon":
            mean = (x_t - beta[t - 1] / math.sqrt(1 - alpha_bar[t]) * output) / math.sqrt(1 - beta[t - 1])  # eq. 11
        else:  # the mean of the posterior at the predicted image
            image = output if prediction == "sample" else math.sqrt(alpha_bar[t]) * x_t - math.sqrt(1 - alpha_bar[t]) * output
            mean = image if t == 1 else posterior(x_t, image, t)[0]
        term = 0.0
        for pixel, x, m in zip(x0.flatten(), x_t.flatten(), mean.flatten(), strict=True):
            if t == 1:  # eq. 13
                sigma = math.sqrt(posterior(0, 0, 2)[1])
                below = -math.inf if pixel == -1 else pixel - 1 / levels
                above = math.inf if pixel == 1 else pixel + 1 / levels
                term -= math.log(stats.norm.cdf(above, m, sigma) - stats.norm.cdf(below, m, sigma))
            else:
                q_mean, variance = posterior(x, pixel, t)
                term += gaussian_kl(q_mean, variance, m, variance)
        terms.append(term)
    return prior, terms


def test_loss_is_the_mean_square_error():
    """Claim: ℓ_t is the mean over pixels of (ε - ε_θ(x_t, t))², and square_norm the mean of ε_θ(x_t, t)²."""
    x0, noise, t = images(3), noises(3), torch.tensor([1, 5, 12])
    for b in range(3):
        bar = math.prod(1 - beta for beta in SHORT.betas[: t[b]])
        output = bent(math.sqrt(bar) * x0[b : b + 1] + math.sqrt(1 - bar) * noise[b : b + 1], t[b : b + 1] - 1)[0]
        expected = {Loss: np.mean((noise[b] - output).numpy() ** 2), SquareNorm: np.mean(output.numpy() ** 2)}
        for measure, value in expected.items():
            assert measure(DDPM(SHORT))(bent, x0, t, noise)[b].item() == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("levels", [1, 16, 255])
@pytest.mark.parametrize("schedule", [SHORT, NoiseSchedule(T=5, kind="cosine"), NoiseSchedule(T=2, beta_start=0.1, beta_end=0.5)])
def test_elbo_is_the_bound_written_out(schedule, levels):
    """Claim: each draw is T · L_{t-1} + L_T: KL terms from means and variances of the posterior, the decoder from cdfs."""
    x0, noise = images(1, levels)[0], noises(1)[0]

    def decent(x_t, t, condition=None):  # good enough that the reference's cdfs are precise in float64
        return noise + 0.1 * bent(x_t, t)

    prior, terms = slow_bound(schedule, x0.numpy(), noise.numpy(), levels, decent)
    costs = every_t(Elbo(DDPM(schedule), levels), x0, noise, decent)
    np.testing.assert_allclose(costs, schedule.T * np.array(terms) + prior, rtol=1e-9)
    assert costs.mean() == pytest.approx(prior + sum(terms), rel=1e-9)


@pytest.mark.parametrize("prediction", ["v", "sample"])
@pytest.mark.parametrize("zero", [False, True])
def test_elbo_of_other_predictions_is_the_bound_written_out(zero, prediction):
    """Claim: the same for networks that predict v or x_0, from the predicted image, also where x_T is pure noise.

    The loss with the bound's weights is the part of the KL terms with σ_t² = β_t that depends on the network.
    """
    schedule = NoiseSchedule(T=12, beta_start=0.01, beta_end=0.4, rescale_zero_terminal_snr=zero)
    process, x0, noise = DDPM(schedule, prediction), images(1, 16)[0], noises(1)[0]

    def decent(x, time, condition=None):
        target = process.target(x0.expand_as(x), time + 1, noise.expand_as(x))
        return target + 0.05 * bent(x, time)

    prior, terms = slow_bound(schedule, x0.numpy(), noise.numpy(), 16, decent, prediction)
    np.testing.assert_allclose(every_t(Elbo(process, 16), x0, noise, decent), 12 * np.array(terms) + prior, rtol=1e-9)
    small, large = elbo.small_variances(schedule), schedule.betas
    weighted = every_t(ElboWeighted(process), x0, noise, decent)
    np.testing.assert_allclose(weighted[1:] / 12, np.array(terms[1:]) * small[1:] / large[1:], rtol=1e-9)


def test_elbo_bounds_the_probability_of_the_image():
    """Claim: for one pixel and two steps, -log P(x_0), by quadrature, is at most the expected cost and close to it."""
    schedule, levels = NoiseSchedule(T=2, beta_start=0.3, beta_end=0.9), 3
    bars, sigma = schedule.alpha_bars, math.sqrt(elbo.small_variances(schedule)[1])
    values = torch.tensor([-1, -1 / 3, 1 / 3, 1], dtype=torch.float64)

    def denoise(x_t, t, condition=None):
        """The optimal denoiser: it uses the posterior mean of x_0, where all values are equally likely."""
        bar = torch.from_numpy(bars)[t + 1][:, None, None, None]
        posterior = torch.softmax(-((x_t - bar.sqrt() * values) ** 2) / (2 * (1 - bar)), dim=-1)
        return (x_t - bar.sqrt() * (posterior * values).sum(-1, keepdim=True)) / (1 - bar).sqrt()

    grid = np.linspace(-9, 9, 1201)
    mean = {}
    for t in (1, 2):
        epsilon = denoise(torch.from_numpy(grid)[:, None, None, None], torch.full((1201,), t - 1)).flatten().numpy()
        mean[t] = (grid - schedule.betas[t - 1] / math.sqrt(1 - bars[t]) * epsilon) / math.sqrt(1 - schedule.betas[t - 1])
    density_1 = integrate.trapezoid(stats.norm.pdf(grid[:, None], mean[2], sigma) * stats.norm.pdf(grid), grid, axis=1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    noise = torch.from_numpy(nodes)[:, None, None, None]
    total = 0.0
    for pixel in values.tolist():
        above = 1.0 if pixel == 1 else stats.norm.cdf(pixel + 1 / levels, mean[1], sigma)
        below = 0.0 if pixel == -1 else stats.norm.cdf(pixel - 1 / levels, mean[1], sigma)
        probability = integrate.trapezoid((above - below) * density_1, grid)
        costs = [Elbo(DDPM(schedule), levels)(denoise, torch.full_like(noise, pixel), torch.full((60,), t), noise) for t in (1, 2)]
        expected = np.mean([cost.numpy() @ weights / weights.sum() for cost in costs])
        assert 0 < expected + math.log(probability) < 0.4
        total += probability
    assert total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_weights_are_the_formulas_and_diffusers_variances(kind):
    """Small: σ_t² is diffusers' fixed_small and w_t = β_t/(2α_t(1-ᾱ_{t-1})), t >= 2; large: fixed_large and β_t/(2α_t(1-ᾱ_t))."""
    schedule = NoiseSchedule(kind=kind)
    name = {"linear": "linear", "cosine": "squaredcos_cap_v2"}[kind]
    other = diffusers.DDPMScheduler(beta_schedule=name, variance_type="fixed_small", clip_sample=False)
    beta, bar = schedule.betas, schedule.alpha_bars
    small, large = elbo.small_variances(schedule), schedule.betas
    of_small, of_large = (elbo.loss_weights(DDPM(schedule), variances) for variances in (small, large))
    for t in (2, 3, 40, 999, 1000):
        assert small[t - 1] == pytest.approx(other._get_variance(t - 1).item(), rel=2e-3)  # float32's 1 - ᾱ
        assert large[t - 1] == pytest.approx(other._get_variance(t - 1, variance_type="fixed_large").item(), rel=1e-3)
        alpha = 1 - beta[t - 1]
        assert of_small[t - 1] == pytest.approx(beta[t - 1] / (2 * alpha * (1 - bar[t - 1])), rel=1e-9)
        assert of_large[t - 1] == pytest.approx(beta[t - 1] / (2 * alpha * (1 - bar[t])), rel=1e-9)
    assert small[0] == small[1]


def test_elbo_weighted_is_the_bound_of_the_large_variance():
    """Claim: T · w_t · sum of squares is the part of the KL terms with σ_t² = β_t that depends on θ; t = 1 has the same formula."""
    x0, noise = images(1)[0], noises(1)[0]
    losses = every_t(Loss(DDPM(SHORT)), x0, noise) * x0.numel()
    weights = SHORT.betas / (2 * (1 - SHORT.betas) * (1 - np.cumprod(1 - SHORT.betas)))
    costs = every_t(ElboWeighted(DDPM(SHORT)), x0, noise)
    np.testing.assert_allclose(costs, 12 * weights * losses, rtol=1e-12)
    t = 7
    bar, beta = SHORT.alpha_bars, SHORT.betas[t - 1]
    x_t = DDPM(SHORT).add_noise(x0[None], torch.tensor([t]), noise[None])
    means = []
    for epsilon in (noise[None], bent(x_t, torch.tensor([t - 1]))):  # eq. 11 with the true noise is the mean of the posterior
        means.append((x_t - beta / math.sqrt(1 - bar[t]) * epsilon) / math.sqrt(1 - beta))
    divergences = [gaussian_kl(a, beta, b, beta) for a, b in zip(*(m.flatten().tolist() for m in means), strict=True)]
    assert costs[t - 1] / 12 == pytest.approx(sum(divergences), rel=1e-9)


def test_the_best_denoiser_of_gaussian_data_is_known():
    """Claim: for x_0 ~ N(0, I) it is √(1-ᾱ_t) x_t with E‖ε - ε_θ‖² = d·ᾱ_t, so the smallest weighted loss is Σ w_t d ᾱ_t."""

    def best(x_t, t, factor=1.0):
        return factor * (1 - torch.from_numpy(SHORT.alpha_bars)[t + 1]).sqrt()[:, None, None, None] * x_t

    n = 8000
    x0, noise, t = noises(n, 1), noises(n, 2), 1 + torch.arange(n) % 12
    found = {f: ElboWeighted(DDPM(SHORT))(lambda x, t, _, f=f: best(x, t, f), x0, t, noise) for f in (0.8, 1.0, 1.2)}
    weights = SHORT.betas / (2 * (1 - SHORT.betas) * (1 - SHORT.alpha_bars[1:]))
    expected = 18 * (weights * SHORT.alpha_bars[1:]).sum()
    error = 4 * found[1.0].std().item() / math.sqrt(n)
    assert found[1.0].mean().item() == pytest.approx(expected, abs=error)
    assert error < 0.05 * expected
    assert found[1.0].mean() < min(found[0.8].mean(), found[1.2].mean())


def test_the_decoder_is_a_distribution():
    """Claim: the probabilities of all values sum to 1 for any mean."""
    level = torch.arange(LEVELS + 1.0, dtype=torch.float64)
    for mean in (-3.0, -1.0, 0.03, 0.99, 4.0):
        for std in (0.005, 0.1, 2.0):
            error = mean - decoder.value(level, LEVELS)
            total = decoder.log_probability(level, error, std, LEVELS).exp().sum()
            assert total.item() == pytest.approx(1, rel=1e-9)


def slow_log_mass(low: float, high: float) -> float:
    """log of the standard normal's mass in 0 <= low < high, by quadrature relative to its density at low."""
    z = np.linspace(0, min(high - low, 40 / max(low, 1)), 20001)
    return float(stats.norm.logpdf(low)) + math.log(integrate.trapezoid(np.exp(-low * z - z**2 / 2), z))


@pytest.mark.parametrize("levels", [16, 255])
def test_the_decoder_is_right_far_out_in_float32(levels):
    """Claim: value and gradient agree with quadrature at errors of up to 10⁵ σ, where cdfs are 0 or 1, in inner and outer bins."""
    std, epsilon = 0.0074, 1e-3
    half = 1 / (levels * std)
    for k in (0, levels // 3, levels):
        for sigmas in (-1e5, -300.0, -20.0, -3.0, 0.5, 40.0, 5e3):
            error = torch.tensor([sigmas * std], requires_grad=True)
            value = decoder.log_probability(torch.tensor([float(k)]), error, std, levels)
            (gradient,) = torch.autograd.grad(value.sum(), error)

            def truth(sigmas: float, k=k) -> float:
                center = -sigmas if k < levels else sigmas  # of the bin relative to the mean; the last bin is mirrored
                if k in (0, levels):
                    return float(stats.norm.logcdf(center + half))
                if abs(center) < half + 1:
                    return math.log(stats.norm.cdf(center + half) - stats.norm.cdf(center - half))
                return slow_log_mass(abs(center) - half, abs(center) + half)

            slope = (truth(sigmas + epsilon) - truth(sigmas - epsilon)) / (2 * epsilon)
            assert value.item() == pytest.approx(truth(sigmas), rel=2e-6, abs=2e-6)
            assert gradient.item() * std == pytest.approx(slope, rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3, 1e8])
def test_gradients_are_finite_in_float32(size):
    """Claim: for any error of the network, at t = 1 and later, for black, white and gray pixels, with 1 to 65535 levels."""
    x0 = torch.linspace(-1, 1, 18).view(1, *SHAPE).expand(4, *SHAPE)
    for levels in (1, 16, 255, 65535):
        scale = torch.tensor(size, requires_grad=True)
        cost = Elbo(DDPM(NoiseSchedule()), levels)(
            lambda x, t, _, s=scale: s * x.sign(), x0, torch.tensor([1, 1, 2, 1000]), noises(4).float()
        )
        cost.sum().backward()
        assert cost.isfinite().all()
        assert scale.grad is not None
        assert scale.grad.isfinite()
        assert cost.dtype == torch.float32


def test_elbo_in_float32_is_that_in_float64():
    """Claim: costs and gradients agree to 1e-4 on the schedule of the papers."""
    x0, noise, t = images(5, 255), noises(5), torch.tensor([1, 1, 2, 500, 1000])

    def of(dtype):
        scale = torch.tensor(0.7, dtype=dtype, requires_grad=True)
        cost = Elbo(DDPM(NoiseSchedule()), 255)(
            lambda x, t, _: scale * noise.to(dtype) + 0.1 * bent(x, t), x0.to(dtype), t, noise.to(dtype)
        )
        slopes = [torch.autograd.grad(c, scale, retain_graph=True)[0] for c in cost]
        return cost.detach().double(), torch.stack(slopes).double()

    for single, double in zip(of(torch.float32), of(torch.float64), strict=True):
        torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-4)


def test_a_generated_image_is_measured_as_it_would_be_saved():
    """Claim: an image off the grid costs as much as the nearest image on it; pixels outside [-1, 1] move to the ends."""
    grid, noise, t = images(3), noises(3), torch.tensor([1, 2, 9])
    shifted = grid + torch.from_numpy(np.random.default_rng(0).uniform(-0.99, 0.99, grid.shape)) / LEVELS
    measure = Elbo(DDPM(SHORT), LEVELS)
    assert (shifted.abs() > 1).any()
    assert torch.equal(measure(bent, shifted, t, noise), measure(bent, grid, t, noise))
    assert not torch.allclose(Loss(DDPM(SHORT))(bent, shifted, t, noise), Loss(DDPM(SHORT))(bent, grid, t, noise))
    torch.testing.assert_close(decoder.value(decoder.nearest_level(grid, LEVELS), LEVELS), grid, rtol=0, atol=1e-15)


@pytest.mark.parametrize("chosen", [500, [500], [3, 500, 1000], [7, 7, 9], list(range(1, 600))])
def test_loss_at_t_is_the_mean_over_its_timesteps(chosen):
    """Claim: the mean over all T drawn timesteps is exact, also where the number of chosen timesteps does not divide T."""
    schedule = NoiseSchedule()
    x0, noise = images(1)[0], noises(1)[0]
    losses = every_t(Loss(DDPM(schedule)), x0, noise)
    expected = losses[np.atleast_1d(chosen) - 1].mean()
    assert every_t(LossAtT(DDPM(schedule), chosen), x0, noise).mean() == pytest.approx(expected, rel=1e-12)


def test_loss_at_t_serves_its_timesteps_in_order_and_evenly():
    """Claim: even draws, a multiple of the list's length, select each entry equally often; a single entry has weight 1."""
    schedule = NoiseSchedule(T=100)
    met: list[int] = []

    def listen(x_t, t, condition):
        met.extend(t.tolist())
        return x_t

    draws = Even(n=21).draw("query", torch.arange(1), 100)
    zero = torch.zeros(21, 1, 1, 1)
    LossAtT(DDPM(schedule), [5, 90, 30])(listen, zero, draws.timestep[0], zero)
    assert met == [4] * 7 + [89] * 7 + [29] * 7
    x0, noise, t = images(4), noises(4), torch.tensor([1, 40, 99, 100])
    assert torch.equal(LossAtT(DDPM(schedule), 40)(bent, x0, t, noise), Loss(DDPM(schedule))(bent, x0, torch.full((4,), 40), noise))
    assert LossAtT(DDPM(schedule), 40) == LossAtT(DDPM(schedule), [40])


def test_impossible_measures_are_errors():
    """Claim: the message names the setting and how to fix it."""
    for t in ([], 0, [1, 13], list(range(1, 14))):
        with pytest.raises(ValueError, match=r"LossAtT\.t=.*1\.\.12"):
            LossAtT(DDPM(SHORT), t)
    with pytest.raises(ValueError, match=r"Elbo\.levels=0"):
        Elbo(DDPM(SHORT), 0)
    with pytest.raises(ValueError, match=r"NoiseSchedule\.T=1"):
        Elbo(DDPM(NoiseSchedule(T=1)), 255)


@pytest.mark.parametrize(
    "measure", [Elbo(PROCESS, 16), ElboWeighted(PROCESS), LossAtT(PROCESS, [1, 60]), SquareNorm(PROCESS)], ids=str
)
def test_per_example_gradients_are_those_of_the_mean_cost(measure):
    """Claim: for a U-Net, with t = 1 among the draws, they equal autograd's gradients of the mean of the same costs."""
    torch.manual_seed(0)
    model = UNET().eval()
    x0 = decoder.value(torch.randint(0, 17, (2, 1, 8, 8)).float(), 16)
    draws = Even(n=4).draw("query", torch.arange(2), PROCESS.T)
    gradients = per_example_gradients(measure, model, x0, draws)
    cost = measure(lambda x, t, _: model(x, t).sample, *measure.inputs(x0, draws)).view(2, 4).mean(1)
    assert torch.isfinite(cost / (64 * math.log(2))).all()  # bits per dimension
    weight = model.conv_in.weight
    for b in range(2):
        (expected,) = torch.autograd.grad(cost[b], weight, retain_graph=True)
        found = gradients["conv_in"][b, :, :-1].view_as(weight)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "measurement").glob("*.yaml")))
def test_every_config_measures(name):
    """Claim: each composes with the process and sampler of the run and gives a finite cost per draw."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"measurement={name}", "diffusion=ddpm", "diffusion.schedule.T=500", "++data.levels=16"])
    measure = instantiate(config.estimator.measurement, _convert_="all")
    assert isinstance(measure, Measure)
    assert measure.process.T == 500
    x0 = torch.zeros(2, 501, *SHAPE) if name == "trajectory" else images(2).float()
    cost = measure(bent, *measure.inputs(x0, Even(n=5).draw("query", torch.arange(2), 500)))
    assert cost.shape == (10,)
    assert cost.isfinite().all()


def test_figure_of_weights_shows_those_of_the_measures():
    """Claim: it shows loss, elbo and elbo_weighted on a log axis; each curve is cost over loss of the measure, up to its mean."""
    schedule = NoiseSchedule(T=50)
    (axes,) = figures.loss_weights(DDPM(schedule)).axes
    assert axes.get_yscale() == "log"
    curves = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    x0, noise = images(1)[0], noises(1)[0]
    loss = every_t(Loss(DDPM(schedule)), x0, noise)
    prior = slow_bound(schedule, x0.numpy(), noise.numpy(), LEVELS, lambda x, t: noise)[0]
    bound = every_t(Elbo(DDPM(schedule), LEVELS), x0, noise) - prior
    for name, costs in {"loss": loss, "elbo": bound, "elbo_weighted": every_t(ElboWeighted(DDPM(schedule)), x0, noise)}.items():
        t, height = curves[name][:, 0].astype(int), curves[name][:, 1]
        assert t[-1] == 50
        ratio = (costs / loss)[t - 1]
        np.testing.assert_allclose(height, ratio / ratio.mean(), rtol=1e-6)
    assert len(curves["elbo"]) == 49
