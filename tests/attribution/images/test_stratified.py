"""Stratified draws are unbiased whatever they are drawn by, and spread over the timesteps."""

import numpy as np
import pytest
import torch
from scipy import stats

from attribution.checks import FieldError
from attribution.diffusion import DDPM, NoiseSchedule
from attribution.diffusion.samplers import DDIMSampler
from attribution.images.draws import Even, Fixed, Uniform
from attribution.images.proposals import Proposal
from attribution.images.stratified import Stratified, timesteps
from attribution.measurements import Elbo, ElboWeighted, Loss, LossAtT, TrajectoryLikelihood
from tests.references import stretch_probabilities


def proposals(T: int) -> dict[str, Proposal]:
    process, cosine = DDPM(NoiseSchedule(T=T)), DDPM(NoiseSchedule(T=T, kind="cosine"))
    return {
        "uniform": Proposal.uniform(T),
        "steep": Proposal.weighted(np.arange(1, T + 1) ** -3.0, first_apart=True),
        "last": Proposal.weighted(np.arange(1, T + 1) ** 5.0),
        "elbo": Elbo(process, 255).proposal(),
        "elbo, cosine": Elbo(cosine, 255).proposal(),
        "elbo_weighted": ElboWeighted(process).proposal(),
        "loss_at_t": LossAtT(process, [1, T, 1 + T // 2]).proposal(),
        "trajectory": TrajectoryLikelihood(process, DDIMSampler(steps=min(7, T), eta=1.0)).proposal(),
    }


@pytest.mark.parametrize("name", proposals(10))
@pytest.mark.parametrize("T", [3, 10, 97, 1000])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 100, 250])
def test_weighted_means_are_unbiased(name, T, n):
    """Claim: over all positions of the draws, E[mean_k w_k f(t_k)] is the mean of f over 1..T, also for n > T."""
    proposal = proposals(T)[name]
    f = np.random.default_rng(T).lognormal(sigma=3, size=T)
    probability, weight = stretch_probabilities(proposal, n)
    np.testing.assert_allclose(probability.sum(1), 1, rtol=1e-12)
    assert (probability * weight * f).sum() / n == pytest.approx(f.mean(), rel=1e-11)


@pytest.mark.parametrize("name", ["uniform", "elbo", "steep"])
@pytest.mark.parametrize("n", [1, 5, 64])
def test_draws_have_the_probabilities_of_their_stretches(name, n):
    """Claim: draws have the frequencies and weights that the test above enumerates."""
    proposal = proposals(97)[name]
    probability, weight = stretch_probabilities(proposal, n)
    examples = 4000
    draws = Stratified(n, seed=3).draw_for(proposal, "measurement", torch.arange(examples))
    for k in {0, n // 2, n - 1}:
        counts = np.bincount(draws.timestep[:, k], minlength=98)[1:]
        assert not counts[probability[k] == 0].any()
        expected = examples * probability[k]
        rare = expected < 5
        pooled = [np.append(values[~rare], values[rare].sum()) for values in (counts, expected)]
        keep = pooled[1] > 0
        if keep.sum() > 1:
            assert stats.chisquare(pooled[0][keep], pooled[1][keep], sum_check=False).pvalue > 1e-4
    if name == "uniform":
        assert draws.weight is None
        np.testing.assert_allclose(weight, 1)
    else:
        assert draws.weight is not None
        torch.testing.assert_close(draws.weight, torch.from_numpy(weight)[draws.timestep - 1])


@pytest.mark.parametrize("n", [2, 3, 10, 64, 1000])
def test_the_first_timestep_is_a_stratum_of_its_own(n):
    """Claim: every example has the same number of draws at t = 1: its share, rounded, at least one, never all."""
    proposal = Elbo(DDPM(NoiseSchedule()), 255).proposal()
    first = (Stratified(n).draw_for(proposal, "measurement", torch.arange(200)).timestep == 1).sum(1)
    assert first.unique().tolist() == [min(max(1, round(n * proposal.size[0])), n - 1)]


def test_a_share_of_the_draws_is_uniform():
    """Claim: in proportion to the weights, mixed with 10 % uniform draws, so that no weight of a draw exceeds 10."""
    weights = np.array([0.0, 1.0, 3.0, 0.0])
    np.testing.assert_allclose(Proposal.weighted(weights).counts(20), 20 * (0.9 * weights / 4 + 0.1 / 4))
    elbo = ElboWeighted(DDPM(NoiseSchedule()))
    draws = Stratified(64).draw_for(elbo.proposal(), "measurement", torch.arange(50))
    assert draws.weight is not None
    assert float(draws.weight[draws.timestep > 1].max()) < 10 * 64 / 62


def test_stretches_without_a_proposal():
    """Claim: one timestep in each of n equal stretches; n = T is every timestep once, n = 2T twice; no weights."""
    draws = Stratified(8).draw("query", torch.arange(30), 1000)
    assert ((draws.timestep - 1) // 125).tolist() == [list(range(8))] * 30
    assert draws.weight is None
    assert Stratified(10).draw("query", torch.arange(3), 10).timestep.tolist() == [list(range(1, 11))] * 3
    twice = Stratified(20).draw("query", torch.arange(3), 10).timestep
    assert twice.tolist() == [sorted(2 * list(range(1, 11)))] * 3
    assert len(Stratified(8).draw("query", torch.arange(30), 1000).timestep.unique()) > 150


def test_an_estimator_may_draw_other_numbers_for_training_images():
    """Claim: ``train`` is the number of the training side; a list of numbers is refused, because first draws are not stratified."""
    scheme = Stratified(8, seed=2, train=3)
    assert [scheme.side(side) for side in ("query", "train")] == [Stratified(8, seed=2), Stratified(3, seed=2)]
    assert scheme.pairs == [(8, 3)]
    with pytest.raises(FieldError, match=r"Stratified.n=\[2, 4\]: must be one number"):
        Stratified([2, 4])  # pyright: ignore[reportArgumentType]


def test_measures_without_weights_need_none():
    """Claim: the loss, the loss at one timestep and the steps of evenly spaced samplers are drawn uniformly."""
    process = DDPM(NoiseSchedule())
    for measure in (Loss(process), LossAtT(process, 500), TrajectoryLikelihood(process, DDIMSampler(steps=50, eta=1.0))):
        assert measure.proposal().is_uniform
        assert Stratified(5).draw_for(measure.proposal(), "measurement", torch.arange(2)).weight is None


@pytest.mark.parametrize("scheme", [Uniform(5, seed=1), Even(5, seed=1), Fixed([3, 9], seed=1)])
def test_other_schemes_draw_as_ever(scheme):
    """Claim: a proposal changes no draw of a scheme that does not draw by it."""
    proposal, ids = Proposal.weighted(np.arange(1.0, 101)), torch.arange(4)
    plain, drawn = scheme.draw("query", ids, 100), scheme.draw_for(proposal, "query", ids)
    assert torch.equal(plain.timestep, drawn.timestep)
    assert torch.equal(plain.noise_seed, drawn.noise_seed)
    assert drawn.weight is None


def test_weights_that_leave_out_a_timestep_are_refused():
    """Claim: a timestep that is never drawn would be lost from the mean."""
    for size in ([0.0, 1.0], [1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="give every timestep a positive, finite size"):
            Proposal(np.array(size))


def test_the_ends_of_the_positions():
    """Claim: positions at and beside the boundaries of stretches give timesteps within 1..T."""
    proposal = proposals(1000)["elbo, cosine"]
    position = torch.tensor([0.0, 1e-12, 1.0, 32.0, 64 - 1e-12, 64.0], dtype=torch.float64)
    timestep, weight = timesteps(proposal, 64, position)
    assert timestep[0] == 1
    assert timestep.max() == 1000
    assert weight.isfinite().all()
