"""Measurements of models: weighted means over draws, which targets and estimators do not share."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from attribution.checks import FieldError
from attribution.diffusion import DDPM, NoiseSchedule, denoiser
from attribution.diffusion.samplers import DDIMSampler
from attribution.execution import Execution
from attribution.images.draws import DrawScheme, Even, Fixed, Uniform
from attribution.images.stratified import Stratified
from attribution.measurements import Elbo, ElboWeighted, Loss, LossAtT, Measure, TrajectoryLikelihood
from attribution.nodes import InMemory
from attribution.retraining.modes import Alone
from experiments.estimators.datamodels import Datamodels
from experiments.models.measured import Measured
from experiments.models.quadrature import quadrature_notes
from experiments.models.samples import Samples
from experiments.models.subsets import RandomSubsets
from tests.test_random_streams import ROLES
from tests.worlds import PROCESS, Blobs, trained

RECORD, QUERIES = trained(), Blobs(n=5, first=900)
GET = InMemory()
CPU = Execution(device="cpu")


def measured(measure: Measure, draws: DrawScheme, images: Any = QUERIES, **changes: Any) -> np.ndarray:
    return GET(Measured(model=RECORD, images=images, measure=measure, draws=draws, **{"execution": CPU, **changes})).values


@pytest.mark.parametrize("measure", [Elbo(PROCESS, 255), ElboWeighted(PROCESS), Loss(PROCESS), LossAtT(PROCESS, [3, 50, 90])])
@pytest.mark.parametrize("draws", [Stratified(9, seed=4), Stratified(1, seed=4), Uniform(9, seed=4), Even(9, seed=4)])
def test_values_are_weighted_means_of_costs(measure, draws):
    """Claim: the mean over draws of weight times cost, each cost computed alone."""
    network, images = denoiser(RECORD.network(GET)), GET(QUERIES)
    drawn = draws.draw_for(measure.proposal(), "measurement", torch.from_numpy(images.index))
    weight = torch.ones(5, draws.count) if drawn.weight is None else drawn.weight
    expected = np.zeros(5)
    with torch.inference_mode():
        for q in range(5):
            for k in range(draws.count):
                one = drawn.unweighted().rows(slice(q, q + 1)).columns(slice(k, k + 1))
                cost = measure(network, *measure.inputs(images.x0(slice(q, q + 1)).double(), one))
                expected[q] += float(weight[q, k]) * float(cost) / draws.count
    np.testing.assert_allclose(measured(measure, draws), expected, rtol=1e-5)


def test_values_do_not_depend_on_batches():
    """Claim: the same values however many network inputs make a pass."""
    whole = measured(Elbo(PROCESS, 255), Stratified(9))
    apart = InMemory()(
        Measured(
            model=RECORD,
            images=QUERIES,
            measure=Elbo(PROCESS, 255),
            draws=Stratified(9),
            execution=Execution(device="cpu", batch_size=4),
        )
    ).values
    np.testing.assert_allclose(whole, apart, rtol=1e-5)


@pytest.mark.parametrize("measure", [Elbo(PROCESS, 255), ElboWeighted(PROCESS)])
def test_many_draws_approach_all_timesteps(measure):
    """Claim: 1,000 stratified draws are within 10 % of all timesteps with 10 noises each; 10 even draws are off by 20 %."""
    images = Blobs(n=2, first=900)
    all_timesteps = measured(measure, Even(100, noises=10, seed=9), images)
    np.testing.assert_allclose(measured(measure, Stratified(1000), images), all_timesteps, rtol=0.1)
    assert np.abs(measured(measure, Even(10), images) / all_timesteps - 1).min() > 0.2


def test_a_trajectory_is_summed_exactly():
    """Claim: with a multiple of the sampler's steps as draws, every step counts equally: the values have no error."""
    sampler = DDIMSampler(steps=7, eta=1.0)
    samples = Samples(trained=RECORD, sampler=sampler, shape=(1, 8, 8), n=3, seed=0, execution=CPU)
    measure = TrajectoryLikelihood(PROCESS, sampler)
    every = measured(measure, Even(100), samples)
    for draws in (Stratified(7), Stratified(14, seed=5)):
        np.testing.assert_allclose(measured(measure, draws, samples), every, rtol=1e-5)


@pytest.mark.parametrize("scheme", [Uniform(4, seed=1), Even(4, seed=1), Fixed([3, 9], seed=1), Stratified(4, seed=1)])
def test_targets_share_no_draw_with_estimators(scheme):
    """Claim: with the same seed and ids, the noises of a target are those of no other role, a datamodel's measurements included."""
    ids = torch.arange(50)
    noises = {role: set(scheme.draw(role, ids, 100).noise_seed.flatten().tolist()) for role in ROLES}
    others = set().union(*(found for role, found in noises.items() if role != "measurement"))
    assert len(noises["measurement"]) == 50 * scheme.count
    assert not noises["measurement"] & others


def test_datamodels_measure_at_draws_of_their_own():
    """Claim: a datamodel's measurements have another role than a target's; their values differ though all settings are the same."""
    estimator = Datamodels(
        measurement=Loss(PROCESS), measurement_draws=Stratified(4), subsets=RandomSubsets(count=4), mode=Alone(), execution=CPU
    )
    selections = estimator.subsets.selections(GET(RECORD.data))
    nodes = estimator.truth(RECORD, selections).nodes(estimator.measurement, QUERIES)
    assert {node.role for node in nodes} == {"datamodel"}
    target = Measured(model=RECORD, images=QUERIES, measure=Loss(PROCESS), draws=Stratified(4), execution=CPU)
    own = replace(target, role="datamodel")
    assert target.role == "measurement"
    assert target.fingerprint != own.fingerprint
    assert (GET(target).values != GET(own).values).all()


def test_given_timesteps_that_are_badly_off_are_noted():
    """Claim: one line where few even timesteps misrepresent the weights; none where timesteps are harmless or random."""
    process, cosine = DDPM(NoiseSchedule()), DDPM(NoiseSchedule(kind="cosine"))
    for measure in (Elbo(process, 255), ElboWeighted(process), Elbo(cosine, 255), ElboWeighted(cosine)):
        for n in (16, 64, 250, 500):
            (line,) = quadrature_notes(measure, Even(n))
            assert line.startswith(f"note: Even draws ({n} timesteps) are badly off for the measurement {type(measure).__name__}")
            assert "draws@benchmark.draws=stratified" in line
            assert "\n" not in line
        assert quadrature_notes(measure, Fixed([500]))
        assert not quadrature_notes(measure, Even(1000))
        assert not quadrature_notes(measure, Uniform(64))
        assert not quadrature_notes(measure, Stratified(64))
    for measure in (Loss(process), LossAtT(process, 10), LossAtT(process, [1, 500])):
        assert not quadrature_notes(measure, Even(16))
        assert not quadrature_notes(measure, Fixed([500]))


def test_weighted_draws_have_no_gradients():
    """Claim: a measure refuses draws with weights, which a mean of gradients would lose."""
    measure = Elbo(PROCESS, 255)
    draws = Stratified(3).draw_for(measure.proposal(), "measurement", torch.arange(2))
    with pytest.raises(ValueError, match=r"evaluate draws.unweighted\(\), then draws.mean\(costs\)"):
        measure.inputs(torch.zeros(2, 1, 8, 8), draws)


def test_a_target_takes_one_number_of_draws():
    """Claim: lists and bins of draws are for scores."""
    for scheme in (Uniform([2, 4]), Uniform(4, bins=2)):
        with pytest.raises(FieldError, match="a measurement takes"):
            Datamodels(
                measurement=Loss(PROCESS), measurement_draws=scheme, subsets=RandomSubsets(count=4), mode=Alone(), execution=CPU
            )


def test_precision_is_part_of_what_was_measured():
    """Claim: bf16-mixed is autocast: it moves values by bfloat16's rounding; float32 and a CPU's tf32 are equal; all are nodes of
    their own, except the default."""
    model = trained(recipe=replace(RECORD.recipe, precision="32-true"))
    base = Measured(model=model, images=QUERIES, measure=Loss(PROCESS), draws=Stratified(9), execution=CPU)
    nodes = [base, *(replace(base, precision=precision) for precision in ("32-true", "tf32", "bf16-mixed"))]
    plain, same, tf32, bf16 = (GET(node).values for node in nodes)
    assert np.array_equal(plain, same)
    assert np.array_equal(plain, tf32)
    error = np.abs(bf16 / plain - 1)
    assert 1e-5 < error.max() < 0.03
    assert base.fingerprint == nodes[1].fingerprint
    assert len({node.fingerprint for node in nodes}) == 3
    with pytest.raises(FieldError, match="precision=float16: must be one of 32-true, tf32, bf16-mixed"):
        replace(base, precision="float16")
