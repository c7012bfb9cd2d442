"""Classifier-free guidance in samplers."""

import pytest
import torch

from attribution.checks import FieldError
from attribution.diffusion import DDPM, EDM, NoiseSchedule, RectifiedFlow
from attribution.diffusion.euler_samplers import EDMEulerSampler, FlowMatchEulerSampler
from attribution.diffusion.samplers import DDIMSampler, DDPMSampler
from attribution.images.conditions import null
from attribution.images.draws import Uniform
from attribution.measurements import JourneyLoss
from attribution.measurements.sampling_trajectory import TrajectoryLikelihood

PROCESS, SHAPE, SEEDS = DDPM(NoiseSchedule(T=20)), (1, 2, 3), torch.arange(4)
CLASS = torch.tensor([0, 1, 2, 1])
EMBEDDING = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))


def denoise(x, t, condition):
    """A network's output that depends on all of its inputs."""
    if condition.is_floating_point():
        condition = condition.sum((1, 2))
    return torch.sin(x + condition[:, None, None, None]) + t[:, None, None, None] / 40


SAMPLERS = [
    (DDIMSampler(steps=5, guidance=3.0), PROCESS),
    (DDPMSampler(guidance=0.5), PROCESS),
    (FlowMatchEulerSampler(steps=4, guidance=2.0), RectifiedFlow(T=20)),
    (EDMEulerSampler(steps=4, guidance=2.0), EDM(T=20)),
]


@pytest.mark.parametrize("condition", [CLASS, EMBEDDING], ids=["classes", "embeddings"])
@pytest.mark.parametrize(("sampler", "process"), SAMPLERS, ids=lambda value: type(value).__name__)
def test_guidance_is_its_formula(sampler, process, condition):
    """Claim: samples are those of the network o(∅) + g (o(c) - o(∅)), written out, in a sampler without guidance."""
    nothing = torch.full_like(condition, -1) if condition is CLASS else torch.zeros_like(condition)

    def literal(x, t, _=None):
        conditional, unconditional = denoise(x, t, condition), denoise(x, t, nothing)
        return unconditional + sampler.guidance * (conditional - unconditional)

    plain = type(sampler)(**({"steps": sampler.steps} if hasattr(sampler, "steps") else {}))
    guided = sampler.sample(denoise, process, SHAPE, SEEDS, condition=condition)
    torch.testing.assert_close(guided, plain.sample(literal, process, SHAPE, SEEDS), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(guided, plain.sample(denoise, process, SHAPE, SEEDS, condition=condition), atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_sample_is_a_function_of_its_seed_and_condition(guidance):
    """Claim: alone or with others, a sample is the same; scale 1 calls the network with the condition only, 0 without any."""
    sampler = DDIMSampler(steps=4, guidance=guidance)
    together = sampler.sample(denoise, PROCESS, SHAPE, SEEDS, condition=CLASS)
    for i in range(4):
        alone = sampler.sample(denoise, PROCESS, SHAPE, SEEDS[i : i + 1], condition=CLASS[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-6, atol=1e-6)
    none = DDIMSampler(steps=4, guidance=0.0).sample(denoise, PROCESS, SHAPE, SEEDS, condition=CLASS)
    without = DDIMSampler(steps=4).sample(denoise, PROCESS, SHAPE, SEEDS, condition=null(CLASS))
    torch.testing.assert_close(none, without, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_journey_is_measured_at_the_guided_estimate(guidance):
    """Claim: x̂_0 is the sampler's estimate with guidance; the loss there is that of the network with the condition."""
    sampler = DDIMSampler(steps=5, guidance=guidance)
    states = sampler.sample(denoise, PROCESS, SHAPE, SEEDS, True, condition=CLASS).states
    measure = JourneyLoss(PROCESS, sampler)
    inputs = measure.inputs(states, Uniform(3).draw("query", SEEDS, PROCESS.T), CLASS)
    x_t, t, noise, condition = inputs
    conditional, unconditional = (denoise(x_t, t - 1, c) for c in (condition, torch.full_like(condition, -1)))
    bar = torch.tensor(PROCESS.schedule.alpha_bars, dtype=torch.float32)[t].view(-1, 1, 1, 1)
    guided = unconditional + guidance * (conditional - unconditional)
    estimate = ((x_t - (1 - bar).sqrt() * guided) / bar.sqrt()).clamp(-1, 1)
    output = denoise(bar.sqrt() * estimate + (1 - bar).sqrt() * noise, t - 1, condition)
    expected = (noise - output).square().flatten(1).mean(1)  # 20 / 5 timesteps select each of the 5 steps
    torch.testing.assert_close(measure(denoise, *inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("guidance", "inputs"), [(1.0, 1), (0.0, 2), (2.5, 2)])
def test_a_sampler_says_how_often_it_calls_the_network(guidance, inputs):
    """Claim: the network inputs of a sample are those that are counted for its cost."""
    seen = []
    sampler = DDIMSampler(steps=3, guidance=guidance)
    sampler.sample(lambda x, t, c: seen.append(len(x)) or denoise(x, t, c), PROCESS, SHAPE, SEEDS, condition=CLASS)
    assert sum(seen) == 3 * inputs * len(SEEDS)
    assert sampler.inputs_per_step == inputs


def test_guidance_without_a_use_is_refused():
    """Claim: a scale below 0, guidance without conditions, and the density of guided trajectories are refused by name."""
    with pytest.raises(FieldError, match=r"guidance=-1\.0: must be a number, at least 0"):
        DDIMSampler(guidance=-1.0)
    with pytest.raises(FieldError, match=r"guidance=2\.0: is for images with conditions"):
        DDIMSampler(steps=2, guidance=2.0).sample(lambda x, t: x, PROCESS, SHAPE, SEEDS)
    with pytest.raises(FieldError, match=r"guidance=2\.0: the density of guided trajectories"):
        TrajectoryLikelihood(PROCESS, DDPMSampler(guidance=2.0))
