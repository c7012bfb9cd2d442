"""Windows of timesteps chosen from groups of draws by bins."""

import itertools

import numpy as np
import pytest

from experiments.metrics import lds
from experiments.metrics.windows import agreement, best

B, Q, N, M, D = 3, 12, 40, 80, 30
SIZES, NOISES = np.array([1.0, 1.0, 0.3]), np.array([3.0, 0.7, 0.2])
"""How large the gradients of a bin are, and the noise of one draw in it: the first bin is the noisy one."""
RNG = np.random.default_rng(0)
QUERIES, TRAIN = (RNG.standard_normal((n, D)) + 0.5 * RNG.standard_normal((B, n, D)) for n in (Q, N))
REMOVED = np.array([RNG.permutation(N) < N // 2 for _ in range(M)])


def gradients(mean: np.ndarray, draws: float, groups: int, rng) -> np.ndarray:
    """The part of each bin in the mean gradients: ``[groups, B, n, D]``; ``draws`` lie in each bin, inf for no noise."""
    noise = rng.standard_normal((groups, *mean.shape)) * (NOISES / np.sqrt(draws))[:, None, None]
    return (SIZES[:, None, None] * mean + noise) / B


def predictions(query: np.ndarray, train: np.ndarray) -> np.ndarray:
    """``[R, S, B, B, Q, M]``"""
    return np.einsum("rbqd,scnd->rsbcqn", query, train) @ REMOVED.T


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """The mean rank correlation over all but the last axis."""
    return float(lds.per_query(x.reshape(-1, M), np.broadcast_to(y, x.shape).reshape(-1, M)).mean())


@pytest.fixture(scope="module")
def of_groups() -> np.ndarray:
    """Eight groups of either side with two draws in each bin."""
    rng = np.random.default_rng(1)
    return predictions(gradients(QUERIES, 2, 8, rng), gradients(TRAIN, 2, 8, rng))


@pytest.mark.parametrize("draws", [12, 96])
def test_the_agreement_is_what_fresh_draws_have(draws, of_groups):
    """Claim: with any number of draws in a window, predictions correlate as expected with noiseless ones of all bins."""
    rng = np.random.default_rng(2)
    exact = predictions(gradients(QUERIES, np.inf, 1, rng), gradients(TRAIN, np.inf, 1, rng)).sum((0, 1, 2, 3))
    taken = 8 * 2 * B
    found = agreement(of_groups, draws / taken, draws / taken)
    for first in range(B):
        for last in range(first, B):
            bins = slice(first, last + 1)
            fresh = predictions(*(gradients(mean, draws / (last + 1 - first), 15, rng)[:, bins] for mean in (QUERIES, TRAIN)))
            assert found[first, last] == pytest.approx(correlation(fresh.sum((2, 3)), exact), abs=0.06)
    assert np.isnan(found[np.tril_indices(B, -1)]).all()


def test_few_draws_leave_out_the_noisy_bin_and_many_do_not(of_groups):
    """Claim: the chosen window depends on the number of draws, because noise counts less the more there are."""
    assert best(agreement(of_groups, 0.1, 0.1))[0] == 1
    assert best(agreement(of_groups, 1e6, 1e6))[0] == 0


def test_without_noise_all_timesteps_agree_with_themselves():
    """Claim: it is 1 for all bins; a window correlates with them as it does, however many draws it has."""
    one = predictions(gradients(QUERIES, np.inf, 1, RNG), gradients(TRAIN, np.inf, 1, RNG))
    found = agreement(np.broadcast_to(one, (2, 2, *one.shape[2:])), 3, 7)
    assert found[0, -1] == pytest.approx(1)
    alone = one[0, 0, 1, 1]
    assert found[1, 1] == pytest.approx(correlation(alone, one.sum((0, 1, 2, 3))))


def test_correlations_are_of_groups_that_share_nothing():
    """Claim: only pairs of groups that differ on both sides count, as a loop over them says."""
    rng = np.random.default_rng(3)
    some = predictions(gradients(QUERIES, 9, 2, rng), gradients(TRAIN, 9, 3, rng))
    whole, part = some.sum((2, 3)), some[:, :, :2, :2].sum((2, 3))
    apart = [(r, s, u, v) for r, s, u, v in itertools.product(range(2), range(3), range(2), range(3)) if r != u and s != v]
    found, all_bins = (np.mean([correlation(x[r, s], whole[u, v]) for r, s, u, v in apart]) for x in (part, whole))
    of_one_group = agreement(some, 1 / 2 * 2 / 3, 1 / 3 * 2 / 3)[0, 1], agreement(some, 1 / 2, 1 / 3)[0, 2]
    assert of_one_group[0] / of_one_group[1] == pytest.approx(found / all_bins, rel=1e-6)


def test_nothing_is_chosen_from_nothing():
    """Claim: predictions that do not vary give no agreement, one group is refused, and no window is chosen from none."""
    nothing = agreement(np.zeros((2, 2, B, B, Q, M)), 1, 1)
    assert np.isnan(nothing).all()
    with pytest.raises(ValueError, match="say nothing"):
        best(nothing)
    with pytest.raises(ValueError, match="1 and 2 groups of draws"):
        agreement(np.zeros((1, 2, B, B, Q, M)), 1, 1)
